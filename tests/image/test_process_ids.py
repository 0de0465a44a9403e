"""In a container process ids are not the kernel's: kproxy's own changes are still its own, and others' are others'."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from kproxy.kernel import netlink
from kproxy.kernel.commands import REMEMBERED
from kproxy.kernel.constants import NETLINK_NETFILTER
from kproxy.kernel.netlink_sockets import Socket
from kproxy.lab.namespaces import Namespace
from kproxy.lab.proxies import choose_backend, wait_for
from kproxy.netfilter.notifications import NFNLGRP_NFTABLES
from tests.image.test_starts import SLICE, Pod, Start, start

pytestmark = [pytest.mark.root, pytest.mark.slow]


__all__ = ["start"]  # the fixture

SOON = 60
REPAIRS = "kproxy_foreign_changes_repaired_total"
FULL_SYNCS = "kubeproxy_sync_full_proxy_rules_duration_seconds_count"
ENDPOINTS = [f"10.244.1.{number}" for number in range(10, 14)]


def nat(space: Namespace) -> str:
    text = space.run(["iptables-nft-save", "-t", "nat"])
    return re.sub(r"\[\d+:\d+\]|^#.*$", "", text, flags=re.MULTILINE)


def move(pod: Pod, space: Namespace, address: str) -> None:
    """Let the Service's endpoint be at `address`, and wait until it is."""
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


def restorer(pod: Pod, space: Namespace, address: str) -> int:
    """The process id, as the container sees it, of the command with which kproxy writes a change."""
    listener = space.call(Socket, NETLINK_NETFILTER, groups=(NFNLGRP_NFTABLES,))
    try:
        move(pod, space, address)
        heard = {note.portid for data in iter(listener.receive, None) for note in netlink.messages(data)}
    finally:
        listener.close()
    (found,) = heard - {0}
    return found


@pytest.mark.parametrize("whose", ["the node's", "another container's", "another container's, with an id of ours"])
def test_what_another_program_changes_is_repaired(pod: Pod, space: Namespace, whose: str) -> None:
    number = restorer(pod, space, ENDPOINTS[0])
    before = nat(space)
    flush = ["iptables-nft", "-t", "nat", "-F", "KUBE-SERVICES"]
    if whose != "the node's":
        first = number if whose.endswith("ours") else 1000
        numbered = f'echo {first - 1} > /proc/sys/kernel/ns_last_pid; "$@"; :'
        flush = ["unshare", "--pid", "--fork", "--mount-proc", "--", "sh", "-c", numbered, "sh", *flush]
    if whose.endswith("ours"):
        time.sleep(REMEMBERED + 1)  # until then the id is ours
    space.run(flush)
    assert wait_for(lambda: sorted(nat(space).splitlines()) == sorted(before.splitlines()), SOON), pod.container.said()
    assert sum(pod.metric(REPAIRS)) == 1
