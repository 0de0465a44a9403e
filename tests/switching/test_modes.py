"""A node changes its proxy mode at a restart: no client notices, and the old mode leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from kproxy.lab.background_clients import Ask, asking
from kproxy.lab.scenarios import Probe, Via
from kproxy.model.plans import Family

if TYPE_CHECKING:
    from tests.switching.conftest import Node

CLIENTS = (
    Probe("caller", Via.CLUSTER_IP, ()),
    Probe("node1", Via.CLUSTER_IP, ()),
    Probe("client", Via.NODE_PORT, ()),
    Probe("caller", Via.NODE_PORT, ()),
)
IPVS = pytest.mark.ipvs_kernel
# Each begins with the mode that the one before ends with. The other pairs without ipvs are in tests/takeover, under a
# heavier load.
SWITCHES = [
    pytest.param("nftables", "userspace"),
    pytest.param("userspace", "iptables"),
    pytest.param("iptables", "ipvs", marks=IPVS),
    pytest.param("ipvs", "ipvs", marks=IPVS),
    pytest.param("ipvs", "userspace", marks=IPVS),
    pytest.param("userspace", "ipvs", marks=IPVS),
    pytest.param("ipvs", "nftables", marks=IPVS),
    pytest.param("nftables", "ipvs", marks=IPVS),
    pytest.param("ipvs", "iptables", marks=IPVS),
]


@pytest.mark.parametrize("mode", ["iptables", "nftables", "userspace", pytest.param("ipvs", marks=IPVS)])
def test_cleanup_leaves_the_kernel_as_it_was(node: Node, mode: str) -> None:
    """These come first, when the kernel holds nothing of any mode."""
    before = node.holds()
    node.start(mode)
    assert node.left_by(mode)
    if mode in ("ipvs", "nftables"):
        assert node.counters() == [], "no rule of this mode counts in them"
    node.stop()
    node.cleanup()
    assert (node.holds(), node.counters()) == (before, [])


@pytest.mark.parametrize(("old", "new"), SWITCHES)
def test_no_client_notices(node: Node, old: str, new: str, eventually: Callable[..., bool]) -> None:
    web, dns = node.scenario.ports
    asks = [Ask(probe, port, family) for probe in CLIENTS for port in (web, dns) for family in Family]
    pause = 0.01
    if "ipvs" in (old, new):  # where the processor is emulated, eager clients would leave the proxy no time to start
        pod, host, outside, _ = CLIENTS
        asks = [Ask(pod, web, Family.IPV4), Ask(host, web, Family.IPV6), Ask(outside, dns, Family.IPV4)]
        pause = 0.5
    node.run(old)
    with asking(node.deployed, node.scenario, asks, pause) as record:
        assert eventually(lambda: len(record.answered) == len(asks))
        node.stop()
        before = record.answered.copy()
        node.start(new)
        after = record.answered.copy()
        assert eventually(lambda: all(record.answered[who] > after[who] + 5 for who in after))
        if old != new:
            assert eventually(lambda: not node.left_by(old)), node.left_by(old)
    assert record.failures == []
    assert all(after[who] > before[who] for who in before), "clients must have asked while the new mode started"
    assert node.left_by(new)


@IPVS
def test_ipvs_mode_is_handed_over_to_iptables_rules_at_the_end(node: Node, eventually: Callable[..., bool]) -> None:
    """nftables mode: tests/takeover. Userspace mode does it always: above."""
    web = node.scenario.ports[0]
    asks = [Ask(CLIENTS[0], web, Family.IPV4), Ask(CLIENTS[1], web, Family.IPV6)]
    node.end()
    node.start("ipvs", "--hand-over-at-end")
    with asking(node.deployed, node.scenario, asks, 0.5) as record:
        assert eventually(lambda: len(record.answered) == len(asks))
        node.stop()
        assert (node.left_by("ipvs"), bool(node.left_by("iptables"))) == ("", True)
        after = record.answered.copy()
        assert eventually(lambda: all(record.answered[who] > after[who] + 5 for who in after))
    assert record.failures == []
