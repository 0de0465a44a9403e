"""Node ports on loopback by packets: modes, families, protocols, policies, affinity and lists of addresses."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from kproxy.lab.probes import Nothing
from tests.localhost_ports.conftest import BOTH, EXPOSED, LISTENERS, LOOPBACK, NODES, REJECTED, SERVED, Exposed

if TYPE_CHECKING:
    from tests.localhost_ports.conftest import Node

pytestmark = [pytest.mark.root, pytest.mark.slow]

ADDRESSES = ("127.0.0.1", "127.0.0.5", "::1")
PORTS = sorted(each.node_port for each in SERVED)
REFUSED, TIMED_OUT = frozenset({Nothing.REFUSED.value}), frozenset({Nothing.TIMED_OUT.value})
CROWD, ASKS = 16, 10


class Case(NamedTuple):
    """A configuration, the loopback addresses that a process serves, and those that rules serve. counts: what is
    refused on loopback is counted."""

    mode: str
    addresses: tuple[str, ...]
    by_process: tuple[str, ...]
    gate: bool = True
    by_rules: tuple[str, ...] = ()
    counts: bool = True
    more: Mapping[str, Any] = {}

    def __str__(self) -> str:
        return f"{self.mode} {','.join(self.addresses)} gate={self.gate} {','.join(self.more)}"


NFT, IPT = "nftables", "iptables"
CASES = [
    Case(NFT, (), ()),
    Case(NFT, NODES, ()),
    Case(NFT, BOTH, ADDRESSES),
    Case(NFT, BOTH, (), gate=False, counts=False),
    Case(NFT, LOOPBACK, ADDRESSES),
    Case(NFT, ("localhost",), ADDRESSES),
    Case(NFT, ("primary", "localhost"), ADDRESSES),
    Case(NFT, ("all",), ()),
    Case(NFT, (*NODES, "127.0.0.1/32"), ("127.0.0.1",)),
    Case(NFT, ("127.0.0.4/30",), ("127.0.0.5",)),
    Case(NFT, ("::1/128",), ("::1",)),
    Case(NFT, ("0.0.0.0/0", "::/0"), ()),
    Case(NFT, ("0.0.0.0/0", "::/0", *LOOPBACK), ADDRESSES),
    Case(NFT, ("126.0.0.0/7", "::/127"), ()),
    Case(IPT, BOTH, ("::1",), by_rules=("127.0.0.1",), counts=False),
    Case(IPT, ("localhost",), ("::1",), by_rules=("127.0.0.1",), counts=False),
    Case(IPT, BOTH, (), gate=False, by_rules=("127.0.0.1",), counts=False),
    Case(IPT, BOTH, (), counts=False, more={"iptables": {"localhostNodePorts": False}}),
    Case(IPT, (), (), by_rules=("127.0.0.1", "127.0.0.5"), counts=False),
]
"""Of ipvs mode: tests/ipvs/test_localhost_node_ports.py."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_addresses_that_are_named_answer_and_no_others(node: Node, case: Case) -> None:
    node.configure(case.mode, case.addresses, case.gate, **case.more)
    wanted = {}
    if {"127.0.0.1", "127.0.0.5"} & {*case.by_process}:
        wanted["127.0.0.1%lo"] = PORTS
    if "::1" in case.by_process:
        wanted["[::1]%lo"] = PORTS
    node.comes_to(wanted)
    if case.mode == NFT:  # iptables mode, which comes later, sets it
        assert node.space.run(["sysctl", "-n", "net.ipv4.conf.all.route_localnet"]) == "0\n"
    before = node.counted(REJECTED)
    missed: dict[tuple[str, Exposed], set[str]] = {}
    faults, refused = {}, dict.fromkeys(("IPv4,TCP", "IPv4,UDP", "IPv6,TCP", "IPv6,UDP"), 0)
    with ThreadPoolExecutor(CROWD) as crowd:
        asked = [
            (
                *(ip, each, each.meets if ip in case.by_process else frozenset[str]()),
                crowd.submit(node.meets, ip, each.node_port, ASKS if ip in case.by_process and each.meets else 1),
                crowd.submit(node.udp, ip, each.node_port),
            )
            for ip in ADDRESSES
            if ip not in case.by_rules
            for each in EXPOSED
        ]
    for ip, each, served, tcp, udp in asked:
        # Rules of iptables mode drop what has endpoints, but none here, wherever it is asked for.
        nothing = TIMED_OUT if case.mode == IPT and each.name == "elsewhere" else REFUSED
        if not (met := tcp.result()) <= (served or nothing) or (each.sticky and len(met) > 1):
            faults[ip, each.name, "TCP"] = met
        if udp.result() not in nothing:
            faults[ip, each.name, "UDP"] = {udp.result()}
        family = "IPv6" if ":" in ip else "IPv4"
        # Clients in lockstep take turns, so that each of two addresses may always get the same endpoint.
        missed.setdefault((family, each), {*served}).difference_update(met)
        refused[f"{family},TCP"] += not served
        refused[f"{family},UDP"] += 1
    assert faults == {}
    assert [each.name for (_, each), left in missed.items() if left and not each.sticky] == []
    now = node.counted(REJECTED)
    counted = {labels: now.get(labels, 0) - before.get(labels, 0) for labels in refused}
    assert counted == (refused if case.counts else dict.fromkeys(refused, 0))
    by_family = {"IPv4": wanted.get("127.0.0.1%lo"), "IPv6": wanted.get("[::1]%lo")}
    assert node.counted(LISTENERS) == {family: len(ports) for family, ports in by_family.items() if ports}
    node.runs(bool(wanted))
