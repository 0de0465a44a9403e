"""In random clusters, on nodes configured at random, packets meet what the plans say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.model.objects import Object
from kproxy.model.plans import Family
from kproxy.trace.outcome import Affinity, Fate, Probe
from tests.model.builders import cidr, endpoint, node, service, slice_
from tests.trace.differences import meant
from tests.trace.oracle import claimants, expected, probes
from tests.trace.worlds import TRACERS, World

POLICIES = st.sampled_from(["Cluster", "Local"])
RANGES = st.sampled_from(
    [
        [],
        ["192.0.2.0/24", "2001:db8:77::/64"],
        ["172.18.0.0/16"],
        ["10.244.0.0/17", "fd00:18::2/128"],
        ["10.0.0.0/8", "10.244.0.0/16", "::/0"],
        ["::ffff:192.0.2.0/120", "2001:db8:77::/200"],
        ["nonsense"],
    ]
)
CONDITIONS = st.sampled_from(["ready", "ready", "draining", "dead"])
HINTS = st.sampled_from([{}, {}, {"zones": ["zone-a"]}, {"zones": ["zone-b"]}, {"nodes": ["node1"]}])
PODS = st.lists(
    st.tuples(st.integers(7, 12), st.sampled_from(["node1", "node2"]), CONDITIONS, HINTS),
    max_size=4,
    unique_by=lambda e: e[0],
)
NODE_IPS = ["172.18.0.2", "fd00:18::2"]
SHARED = ["198.51.100.250", "2001:db8:5::250"]
HELD = ("203.0.113.77", "2001:db8:113::77")  # a load balancer's, which is an address of the node as well
PORTS = (("http", 80, "TCP"), ("dns", 53, "UDP"), ("sig", 80, "SCTP"))


@st.composite
def objects(draw: st.DrawFn, apart: bool = True) -> list[Object]:
    """Up to three Services, dual stack or not, and their endpoints. apart: no two share an address and port."""
    cidrs = draw(st.sampled_from([[], [cidr("kubernetes", "10.96.0.0/16", "fd00:96::/64")]]))
    pod_cidrs = {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]}
    services = range(1, draw(st.integers(1 if apart else 2, 3)) + 1)
    return [node(spec=pod_cidrs), *cidrs, *(item for number in services for item in _service(draw, number, apart))]


def _service(draw: st.DrawFn, number: int, apart: bool) -> list[Object]:
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
    own_ports = apart and draw(st.booleans())
    ports: list[dict[str, Any]] = [
        {
            "name": name,
            "port": port + 100 * number * own_ports,
            "protocol": protocol,
            "nodePort": 30000 + 10 * number + place,
        }
        for place, (name, port, protocol) in enumerate(PORTS)
    ]
    if kind == "ClusterIP":
        ports = [{k: v for k, v in port.items() if k != "nodePort"} for port in ports]
    external, balancer = [f"198.51.100.{number}", f"2001:db8:5::{number}"], _ingress(number)
    externals, balancers = [[], external], [balancer, [], [{**each, "ipMode": "Proxy"} for each in balancer]]
    if own_ports:
        externals += [NODE_IPS, [*external, *SHARED]]
        balancers += [[{"ip": ip} for ip in HELD], [*balancer, *({"ip": ip} for ip in SHARED)]]
    elif not apart:
        externals, balancers = [NODE_IPS, [*NODE_IPS, *SHARED]], [[{"ip": ip} for ip in (*HELD, *SHARED)]]
    spec: dict[str, Any] = {
        "type": kind,
        "clusterIP": f"10.96.0.{number}",
        "clusterIPs": [f"10.96.0.{number}", *draw(st.sampled_from([[], [f"fd00:96::{number}"]]))],
        "ports": ports[: draw(st.integers(1, 3))],
        "internalTrafficPolicy": draw(POLICIES),
        "externalTrafficPolicy": draw(POLICIES),
        "externalIPs": draw(st.sampled_from(externals)),
        "sessionAffinity": draw(st.sampled_from(["None", "ClientIP"])),
        "loadBalancerSourceRanges": draw(RANGES),
    }
    if kind == "LoadBalancer":
        spec["ingress"] = draw(st.sampled_from(balancers))
    pods, name = draw(PODS), f"web{number}"
    targets = [{"name": name, "port": 8000 + port, "protocol": protocol} for name, port, protocol in PORTS]
    four = [endpoint(f"10.244.1.{n}", node, conditions, **hints) for n, node, conditions, hints in pods]
    six = [endpoint(f"fd00:10:244:1::{n:x}", node, conditions, **hints) for n, node, conditions, hints in pods]
    return [
        service(name, **spec),
        slice_(f"{name}-4", four, name, ports=targets),
        slice_(f"{name}-6", six, name, ports=targets, addressType="IPv6"),
    ]


def _ingress(number: int) -> list[dict[str, str]]:
    return [{"ip": f"203.0.113.{number}"}, {"ip": f"2001:db8:113::{number}"}]


CONFIGURATIONS = st.fixed_dictionaries(
    {
        "clusterCIDR": st.sampled_from(["10.244.0.0/16,fd00:10:244::/48", ""]),
        "detectLocalMode": st.sampled_from(["ClusterCIDR", "NodeCIDR", "InterfaceNamePrefix", "BridgeInterface"]),
        "detectLocal": st.just({"interfaceNamePrefix": "veth", "bridgeInterface": "cbr0"}),
        "nodePortAddresses": st.sampled_from(
            [[], ["172.18.0.0/16"], ["127.0.0.0/8", "fd00:18::/64"], ["::1/128", "192.168.0.0/16"], ["primary"]]
        ),
        "iptables": st.fixed_dictionaries({"masqueradeAll": st.booleans(), "localhostNodePorts": st.booleans()}),
    }
)


FAMILIES = st.sampled_from(list(Family))


def worlds(items: list[Object], family: Family, **config: Any) -> list[World]:
    """The same node in every mode."""
    return [World(mode, items, family, HELD, **config) for mode in TRACERS]


@settings(max_examples=60, deadline=None)
@given(objects(), CONFIGURATIONS, FAMILIES)
def test_packets_meet_what_the_plans_say(items: list[Object], config: dict[str, Any], family: Family) -> None:
    nodes = worlds(items, family, **config)
    plans, node = nodes[0].plans, nodes[0].node
    for probe in probes(plans, node, family):
        must = expected(plans, node, probe)
        for world in nodes:
            found = world.trace(probe, None)
            assert sum(branch.probability for branch in found.branches) == 1
            assert found.chances == meant(world.mode, plans, node, probe, must), (world.mode, probe)


@settings(max_examples=60, deadline=None)
@given(objects(apart=False), CONFIGURATIONS, FAMILIES)
def test_of_services_at_one_address_the_first_by_name_has_it(
    items: list[Object], config: dict[str, Any], family: Family
) -> None:
    nodes = worlds(items, family, **config)
    plans, node = nodes[0].plans, nodes[0].node
    for probe in probes(plans, node, family):
        found = claimants(plans, node, probe)
        if len(found) < 2:
            continue
        first, _ = found[0]
        must = expected([first], node, probe)
        for world in nodes:
            if world.mode == "iptables" and Fate.DELIVERED not in {verdict.fate for verdict in must}:
                continue  # which leads such packets to the next Service
            means = meant(world.mode, [first], node, probe, must)
            assert world.trace(probe, None).chances == means, (world.mode, probe)


@settings(max_examples=30, deadline=None)
@given(objects(), FAMILIES)
def test_who_is_remembered_goes_where_it_went(items: list[Object], family: Family) -> None:
    for world in worlds(items, family):
        sticky = [plan for plan in world.plans if plan.affinity_seconds]
        for probe in probes(sticky, world.node, family):
            for branch in world.trace(probe, None).branches:
                again = world.trace(probe, dict.fromkeys(branch.remembers, 1))
                assert again.chances == {branch.verdict: 1}, world.mode
                assert bool(branch.remembers) is (branch.verdict.fate is Fate.DELIVERED), world.mode


@settings(max_examples=40, deadline=None)
@given(objects(), FAMILIES, st.integers(0, 3))
def test_modes_mean_the_same_to_clients_that_are_remembered(items: list[Object], family: Family, place: int) -> None:
    first, *others = nodes = worlds(items, family)
    for plan in (plan for plan in first.plans if plan.affinity_seconds):
        for target in map(str, plan.reachable[place : place + 1]):
            asked = list(probes([plan], first.node, family))
            for source in {probe.source for probe in asked}:
                of_client = [probe for probe in asked if probe.source == source]
                known = [memories(world, of_client, target) for world in nodes]
                for probe in of_client if all(known) else ():
                    met, *found = (w.trace(probe, k).chances for w, k in zip(nodes, known, strict=True))
                    means = [meant(other.mode, first.plans, first.node, probe, met) for other in others]
                    assert found == means, probe


def memories(world: World, asked: Iterable[Probe], target: str) -> Affinity:
    """What is remembered of a client after one of its probes went to that endpoint; nothing if none of them can."""
    for probe in asked:
        for branch in world.trace(probe, None).branches:
            if branch.verdict.endpoint == target:
                return dict.fromkeys(branch.remembers, 5)
    return {}
