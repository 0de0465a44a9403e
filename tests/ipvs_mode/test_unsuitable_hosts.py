"""`kproxy run` in IPVS mode on a host that lacks something: one line that names it, and exit status 1."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.kernel.ipvs import KernelIpvs
from kproxy.lab.namespaces import Namespace
from tests.guest.machine import kernel_has_ipvs
from tests.network_namespaces import fresh_namespace

NO_IPVS = "open IPVS: No such file or directory: the kernel has no IPVS (module ip_vs)"
NO_SCHEDULER = "ipvs.scheduler: this kernel has no scheduler twos, nor a module ip_vs_twos"
READ_ONLY = "net.ipv4.vs.conntrack cannot be set to 1: Read-only file system"
UNPRIVILEGED = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'


@pytest.fixture
def netns() -> Iterator[Namespace]:
    with fresh_namespace("unfit", "iptables-save", "iptables-restore") as space:
        yield space


def lacking(space: Namespace, scheduler: str) -> str:
    """What is said of this kernel. The last holds on any, as in a container that is not privileged."""
    if not kernel_has_ipvs():
        return NO_IPVS
    with space.call(KernelIpvs) as ipvs:
        return READ_ONLY if ipvs.has_scheduler(scheduler) else NO_SCHEDULER


@pytest.mark.parametrize(
    "scheduler",
    [
        pytest.param("rr", id="rr"),
        pytest.param("twos", id="twos-with-ipvs", marks=pytest.mark.ipvs_kernel),  # which Debian's kernel lacks
    ],
)
def test_run_ends_with_one_line(netns: Namespace, tmp_path: Path, scheduler: str) -> None:
    flags = ["--manifests", str(tmp_path), "--proxy-mode", "ipvs", "--ipvs-scheduler", scheduler]
    run = [sys.executable, "-m", "kproxy", "run", *flags, "--conntrack-max-per-core", "0"]
    argv = ["unshare", "--mount", "--", "sh", "-c", UNPRIVILEGED, "sh", *run]
    done = netns.call(subprocess.run, argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if "error: " in line] == [
        f"kproxy: error: {lacking(netns, scheduler)}"
    ]
    assert "Traceback" not in done.stderr
