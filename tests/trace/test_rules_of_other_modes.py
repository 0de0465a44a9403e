"""Rules of every mode that writes iptables, and those of a node that kube-proxy left, are understood to the last."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.errors import InvalidInput
from kproxy.model.node_info import NodeInfo as NodeHost
from kproxy.model.objects import Kind, Object
from kproxy.model.plans import Family, Protocol
from kproxy.modes.preview import Preview, load
from kproxy.trace.iptables import IptablesTracer
from kproxy.trace.iptables_parser import Tables
from kproxy.trace.outcome import Fate, Host, Probe, Verdict
from tests.model.builders import endpoint, service, slice_
from tests.parity.conftest import Case
from tests.trace.worlds import configuration

SAVED = Path(__file__).parent.parent / "iptables" / "data"
HOST = Host(frozenset({"172.18.0.2"}), {"eth0": "172.18.0.2"})


def misunderstood(text: str, family: Family) -> list[str]:
    return [f"{rule.text}: {rule.unknown}" for chain in Tables(text, family) for rule in chain.rules if rule.unknown]


@pytest.mark.parametrize("family", list(Family))
def test_rules_of_ipvs_and_userspace_mode(all_cases: tuple[Case, ...], family: Family) -> None:
    seen = 0
    for case in all_cases[::10]:
        state, _ = load(case.raw["node"], case.kinds(case.raw["final"]))
        preview = Preview(state, case.config, case.host)
        for text in (preview.ipvs(family).rules, preview.userspace(family).rules):
            # What IPVS carries only IPVS can tell.
            assert [rule for rule in misunderstood(text, family) if " -m ipvs " not in rule] == []
            seen += text.count("\n-A ")
    assert seen > 1000


@pytest.mark.parametrize("path", sorted(SAVED.glob("*save*")), ids=lambda path: path.name)
def test_what_kube_proxy_left(path: Path) -> None:
    family = Family.IPV6 if "ip6" in path.name else Family.IPV4
    assert misunderstood(path.read_text(), family) == []


def test_userspace_mode_leads_to_a_port_of_the_node() -> None:
    kinds: dict[Kind, list[Object]] = {
        Kind.SERVICE: [service()],
        Kind.ENDPOINT_SLICE: [slice_("web-1", [endpoint("10.244.1.7")])],
    }
    state, _ = load("node1", kinds)
    shown = Preview(state, configuration(), NodeHost(ips=("172.18.0.2",), addresses=tuple(HOST.addresses))).userspace(
        Family.IPV4
    )
    walker = IptablesTracer(shown.rules, Family.IPV4, HOST)
    (listener,) = shown.listeners
    arrived = {Verdict(Fate.DELIVERED, f"172.18.0.2:{listener.port}"): 1}
    assert walker.trace(Probe("192.0.2.1", "10.96.0.1", Protocol.TCP, 80, "eth0")).chances == arrived
    assert walker.trace(Probe("172.18.0.2", "10.96.0.1", Protocol.TCP, 80)).chances == arrived
    with pytest.raises(InvalidInput, match="interface veth5"):
        walker.trace(Probe("10.244.1.50", "10.96.0.1", Protocol.TCP, 80, "veth5"))
