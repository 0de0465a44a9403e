"""Whoever starts kproxy without the right to change the network's rules is told which right is missing, in any mode."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from kproxy.lab.namespaces import Namespace, unavailable

NEEDED = "it takes root, or at least the capability NET_ADMIN"
# Still root by name, as the code may lie where no other user can read it.
NO_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
NO_NET_ADMIN = ("setpriv", "--bounding-set=-net_admin")
ROOT_ELSEWHERE = ("unshare", "--user", "--map-root-user")
"""It has every capability, in a user namespace that the network does not belong to."""


def ending(confined: tuple[str, ...], folder: Path, *arguments: str) -> tuple[int, str]:
    """The exit status of `kproxy run` and the last line that it says; what cannot be set before is only warned of."""
    if reason := unavailable(("iptables-nft-save", "setpriv", "unshare")):
        pytest.skip(reason)
    command = (sys.executable, "-m", "kproxy", "run", "--manifests=/", "--hostname-override=node1", *arguments)
    with closing(Namespace("node1")) as space:
        done = space.call(
            subprocess.run,
            (*confined, *command),
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "XTABLES_LOCKFILE": str(folder / "lock")},
        )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("mode", ["iptables", "ipvs", "userspace", "nftables"])
@pytest.mark.parametrize("confined", [NO_RIGHTS, NO_NET_ADMIN], ids=["no capability", "root without NET_ADMIN"])
def test_every_mode_says_the_same(tmp_path: Path, confined: tuple[str, ...], mode: str) -> None:
    said = ending(confined, tmp_path, f"--proxy-mode={mode}")
    assert said == (1, f"kproxy: error: {mode} mode cannot work: {NEEDED}")


def test_who_names_the_backend_is_told_the_same(tmp_path: Path) -> None:
    said = ending(NO_NET_ADMIN, tmp_path, "--iptables-backend=nft")
    assert said == (1, f"kproxy: error: iptables mode cannot work: {NEEDED}")


def test_where_only_trying_shows_it_the_kernels_refusal_is_explained(tmp_path: Path) -> None:
    said = ending(ROOT_ELSEWHERE, tmp_path, "--proxy-mode=nftables")
    assert said == (1, f"kproxy: error: change nf_tables: Operation not permitted: {NEEDED}")
