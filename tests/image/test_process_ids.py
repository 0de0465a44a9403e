"""In a container process ids are not the kernel's: kproxy's own changes are still its own, and others' are others'."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kproxy.lab.namespaces import Namespace
from kproxy.lab.proxies import choose_backend, wait_for
from tests.image.test_starts import SLICE, Pod, Start, start

pytestmark = [pytest.mark.root, pytest.mark.slow]

__all__ = ["start"]  # the fixture

SOON = 15
REPAIRS = "kproxy_foreign_changes_repaired_total"
FULL_SYNCS = "kubeproxy_sync_full_proxy_rules_duration_seconds_count"
ENDPOINTS = [f"10.244.1.{number}" for number in range(10, 14)]


def nat(space: Namespace) -> str:
    text = space.run(["iptables-nft-save", "-t", "nat"])
    return re.sub(r"\[\d+:\d+\]|^#.*$", "", text, flags=re.MULTILINE)


def move(pod: Pod, space: Namespace, address: str) -> None:
    """Let the Service's endpoint be at ADDRESS, and wait until it is."""
    pod.server.apply({**SLICE, "endpoints": [{"addresses": [address], "conditions": {"ready": True}}]})
    assert wait_for(lambda: f"{address}:8080" in nat(space), SOON), pod.container.said()


@pytest.fixture
def pod(start: Start, space: Namespace) -> Pod:
    choose_backend(space, "nft")
    made = start("iptables")
    made.await_rules()
    own = Path(f"/proc/{made.container.pid}/ns/pid").readlink()
    assert own != Path("/proc/self/ns/pid").readlink(), "the container has no process ids of its own"
    return made


def test_what_it_changes_itself_is_not_taken_for_anothers(pod: Pod, space: Namespace) -> None:
    before = sum(pod.metric(FULL_SYNCS))
    for address in ENDPOINTS:
        move(pod, space, address)
    assert sum(pod.metric(REPAIRS)) == 0
    assert sum(pod.metric(FULL_SYNCS)) == before  # each was a change of one Service, never a look at everything


@pytest.mark.parametrize("own_ids", [False, True], ids=["on the node", "in another container"])
def test_what_another_program_changes_is_repaired(pod: Pod, space: Namespace, own_ids: bool) -> None:
    move(pod, space, ENDPOINTS[0])
    before = nat(space)
    flush = ["iptables-nft", "-t", "nat", "-F", "KUBE-SERVICES"]
    space.run(["unshare", "--pid", "--fork", "--", *flush] if own_ids else flush)
    assert wait_for(lambda: sorted(nat(space).splitlines()) == sorted(before.splitlines()), SOON), pod.container.said()
    assert sum(pod.metric(REPAIRS)) == 1
