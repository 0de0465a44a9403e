"""A lab leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from kproxy.errors import CommandError
from kproxy.lab.clusters import Pod, build
from kproxy.lab.namespaces import Namespace

ORPHAN = """
import subprocess, sys, time
from kproxy.lab.namespaces import Namespace
space = Namespace("orphan")
print(space.spawn(["sleep", "60"], subprocess.DEVNULL).pid, flush=True)
time.sleep(60)
"""

LATE = """
import os, subprocess
from kproxy.lab.namespaces import tied
subprocess.Popen(["sh", "-c", 'read go; exec "$@"', "-", *tied(["echo", "ran"])])
"""


def host_interfaces() -> set[str]:
    with IPRoute() as ip:
        return {link.get("ifname") for link in ip.get_links()}


def gone(pid: int, seconds: float = 30) -> bool:
    """Whether the process ends in time (a zombie has ended)."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def descriptors() -> set[tuple[str, str]]:
    """The open ones of this process: number and what it is of (of sockets and pipes there is one of each name)."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


def test_a_failure_inside_leaves_no_process_thread_descriptor_or_interface() -> None:
    """What other tests have left to the garbage collector may go meanwhile, so what is new counts."""
    before = host_interfaces(), set(threading.enumerate()), descriptors()
    with pytest.raises(ZeroDivisionError), build([Pod("one", 1, 11)]) as cluster:  # noqa: PT012
        sleeper = cluster.spaces["node1"].spawn(["sleep", "60"], subprocess.DEVNULL)
        assert host_interfaces() == before[0]
        assert descriptors() - before[2]
        assert set(threading.enumerate()) - before[1]
        _ = 1 / 0
    assert sleeper.returncode == -signal.SIGKILL
    assert host_interfaces() == before[0]
    assert set(threading.enumerate()) <= before[1]
    assert descriptors() <= before[2]


def test_a_process_in_a_namespace_dies_with_the_one_that_made_it() -> None:
    maker = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    pid = int(maker.stdout.readline())
    maker.kill()
    maker.wait()
    maker.stdout.close()
    assert gone(pid)


def test_a_process_whose_maker_is_gone_before_it_is_tied_to_it_does_not_start() -> None:
    pipe = subprocess.PIPE
    maker = subprocess.Popen([sys.executable, "-c", LATE], stdin=pipe, stdout=pipe, text=True)
    assert maker.wait(60) == 0
    assert maker.communicate("go\n", timeout=60)[0] == ""


def test_a_tied_process_runs_as_its_maker_lives() -> None:
    maker = subprocess.Popen(
        [sys.executable, "-c", LATE + "os.wait()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert maker.communicate("go\n", timeout=60)[0] == "ran\n"


def test_a_command_runs_inside_and_its_failure_is_named() -> None:
    with build([]) as cluster:
        assert "172.30.0.12" in cluster.spaces["node2"].run(["ip", "-br", "address"])
        with pytest.raises(CommandError, match="exit status 3"):
            cluster.spaces["node2"].run(["sh", "-c", "exit 3"])


def test_parameters_stay_inside() -> None:
    path = Path("/proc/sys/net/ipv4/conf/all/route_localnet")
    before = path.read_text()
    space = Namespace("knobs")
    try:
        space.sysctl({"ipv4/conf/all/route_localnet": "1" if before.strip() == "0" else "0"})
        assert space.call(path.read_text) != before
        assert path.read_text() == before
    finally:
        space.close()
