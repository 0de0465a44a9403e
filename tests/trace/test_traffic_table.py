"""The trace agrees with what real packets met: every probe of the lab's table, on the lab's node1."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import msgspec
import pytest

from kproxy.lab import clusters
from kproxy.lab.differences import expected
from kproxy.lab.probes import Nothing
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import PODS, Port, Probe, Scenario, Seen, Via, node_objects
from kproxy.model.node_info import NodeInfo as NodeHost
from kproxy.model.objects import TYPES, Kind, Object
from kproxy.model.plans import Family, address_port
from kproxy.modes.preview import Preview, load
from kproxy.trace import outcome
from kproxy.trace.outcome import Fate, Host, Outcome, Verdict
from tests.trace.worlds import TRACERS, Trace, configuration

NODE_IPS = tuple(clusters.node_address(1, family) for family in Family)
ADDRESSES = (*NODE_IPS, *(clusters.gateway_of(1, family) for family in Family), "127.0.0.1", "::1")


@cache
def trace(mode: str, family: Family) -> Trace:
    """node1 with all Services of the table."""
    kinds: dict[Kind, list[Object]] = {}
    for item in (*node_objects(), *(item for scenario in SCENARIOS for item in scenario.objects())):
        kind = Kind(item["kind"])
        kinds.setdefault(kind, []).append(msgspec.convert(item, TYPES[kind]))
    state, problems = load("node1", kinds)
    assert {p.field.partition("[")[0] for p in problems} <= {"spec.loadBalancerSourceRanges"}
    preview = Preview(
        state, configuration(clusterCIDR=clusters.CLUSTER_CIDRS), NodeHost(ips=NODE_IPS, addresses=ADDRESSES)
    )
    return TRACERS[mode](preview, family, Host(frozenset(ADDRESSES)))


def probe_of(probe: Probe, scenario: Scenario, family: Family, port: Port) -> outcome.Probe:
    """The first packet that the lab's client sends, as node1 gets or sends it."""
    target = scenario.address(probe.via, family)
    match probe.source:
        case "client" | "client-other":
            clients = clusters.CLIENT if probe.source == "client" else clusters.CLIENT_OTHER
            source, interface = clients[family], "eth0"
        case "node1":
            source, interface = (target if probe.via is Via.LOCALHOST else clusters.node_address(1, family)), ""
        case name:
            pod = next(p for p in PODS if p.name == name)
            source, interface = pod.ip(family), f"veth{pod.number}"
    return outcome.Probe(source, target, port.protocol, scenario.port(probe.via, port), interface)


def fits(probe: Probe, port: Port, family: Family, outcome: Outcome, packet: outcome.Probe) -> bool:
    """Whether the lab's client sees what it must, if packets meet OUTCOME."""
    found = set(outcome.chances)
    match probe.expect:
        case Nothing.REFUSED:
            # The node refuses what comes to itself where nothing listens.
            own = packet.destination in ADDRESSES
            return found <= {Verdict(Fate.REJECTED), *([Verdict(Fate.UNTOUCHED)] if own else [])}
        case Nothing.TIMED_OUT:
            return found == {Verdict(Fate.DROPPED)}
        case Nothing():
            return found == {Verdict(Fate.UNTOUCHED)}
        case ("balancer",):
            return found == {Verdict(Fate.UNTOUCHED)}
    ips = [pod.ip(family) for pod in PODS if pod.name in probe.expect]
    if {v.endpoint for v in found} != {address_port(ip, port.target) for ip in ips}:
        return False
    masqueraded = {v.masqueraded for v in found}
    node_itself = packet.interface == "" and packet.source in NODE_IPS
    return {Seen.KEPT: masqueraded == {False}, Seen.REWRITTEN: node_itself or masqueraded == {True}}.get(
        probe.seen, True
    )


def asked(mode: str, scenario: Scenario) -> Iterator[tuple[Probe, Family, Port]]:
    for probe in filter(None, (expected(mode, scenario, probe) for probe in scenario.probes)):
        for family in probe.families:
            for port in scenario.ports:
                yield probe, family, port


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("mode", TRACERS)
def test_the_walk_meets_what_packets_meet(mode: str, scenario: Scenario) -> None:
    probes = list(asked(mode, scenario))
    assert probes
    for probe, family, port in probes:
        packet = probe_of(probe, scenario, family, port)
        outcome = trace(mode, family)(packet, None)
        assert fits(probe, port, family, outcome, packet), f"{packet}: {outcome.chances}, not {probe.expect}"
