"""`kproxy run` in nftables mode where the kernel refuses what the mode needs: one line, and exit status 1."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kproxy.lab.namespaces import Namespace, unavailable

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable(("nft",))), reason=unavailable(("nft",)))]

# What is tried at the start has names of its own; where they are taken by something else, the kernel refuses it.
TAKEN = "table ip6 kproxy-check { set clients { type inet_service; }; }"


@pytest.fixture
def netns() -> Iterator[Namespace]:
    with closing(Namespace("unfit")) as space:
        yield space


def test_run_ends_with_one_line_and_nothing_is_written(netns: Namespace, tmp_path: Path) -> None:
    netns.run(["nft", "-f", "-"], TAKEN)
    before = netns.run(["nft", "list", "ruleset"])
    flags = ["--manifests", str(tmp_path), "--proxy-mode", "nftables", "--conntrack-max-per-core", "0"]
    argv = [sys.executable, "-m", "kproxy", "run", *flags]
    done = netns.call(subprocess.run, argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if "error: " in line] == [
        "kproxy: error: nftables mode does not work here: the kernel's nf_tables lacks sets that packets fill for "
        f"IPv6: that came with Linux 4.1, and this is {platform.release()} (add set kproxy-check clients: File exists)"
    ]
    assert "Traceback" not in done.stderr
    assert netns.run(["nft", "list", "ruleset"]) == before
