"""In random clusters, on nodes configured at random, packets meet what the plans say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.model.objects import Object
from kproxy.model.plans import Family
from kproxy.walk.verdicts import Affinity, Fate, Probe
from tests.model.builders import cidr, endpoint, service, slice_
from tests.walk.differences import meant
from tests.walk.oracle import expected, probes
from tests.walk.worlds import WALKERS, World

POLICIES = st.sampled_from(["Cluster", "Local"])
RANGES = st.sampled_from(
    [[], ["192.0.2.0/24", "2001:db8:77::/64"], ["172.18.0.0/16"], ["10.244.0.0/17", "fd00:18::2/128"]]
)
CONDITIONS = st.sampled_from(["ready", "ready", "draining", "dead"])
PODS = st.lists(
    st.tuples(st.integers(7, 12), st.sampled_from(["node1", "node2"]), CONDITIONS), max_size=4, unique_by=lambda e: e[0]
)


@st.composite
def objects(draw: st.DrawFn) -> list[Object]:
    """Up to three Services with addresses of their own, dual stack, and their endpoints."""
    return [item for number in range(1, draw(st.integers(1, 3)) + 1) for item in _service(draw, number)]


def _service(draw: st.DrawFn, number: int) -> list[Object]:
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
    ports: list[dict[str, Any]] = [
        {"name": name, "port": port, "protocol": protocol, "nodePort": 30000 + 10 * number + place}
        for place, (name, port, protocol) in enumerate((("http", 80, "TCP"), ("dns", 53, "UDP"), ("sig", 80, "SCTP")))
    ]
    if kind == "ClusterIP":
        ports = [{k: v for k, v in port.items() if k != "nodePort"} for port in ports]
    spec: dict[str, Any] = {
        "type": kind,
        "clusterIP": f"10.96.0.{number}",
        "clusterIPs": [f"10.96.0.{number}", f"fd00:96::{number}"],
        "ports": ports[: draw(st.integers(1, 3))],
        "internalTrafficPolicy": draw(POLICIES),
        "externalTrafficPolicy": draw(POLICIES),
        "externalIPs": draw(st.sampled_from([[], [f"198.51.100.{number}", f"2001:db8:5::{number}"]])),
        "sessionAffinity": draw(st.sampled_from(["None", "ClientIP"])),
        "loadBalancerSourceRanges": draw(RANGES),
    }
    if kind == "LoadBalancer":
        spec["ingress"] = [{"ip": f"203.0.113.{number}"}, {"ip": f"2001:db8:113::{number}"}]
    pods, name = draw(PODS), f"web{number}"
    targets = [{"name": p["name"], "port": 8000 + p["port"], "protocol": p["protocol"]} for p in ports]
    four = [endpoint(f"10.244.1.{n}", node, conditions) for n, node, conditions in pods]
    six = [endpoint(f"fd00:10:244:1::{n:x}", node, conditions) for n, node, conditions in pods]
    return [
        cidr("kubernetes", "10.96.0.0/16", "fd00:96::/64"),
        service(name, **spec),
        slice_(f"{name}-4", four, name, ports=targets),
        slice_(f"{name}-6", six, name, ports=targets, addressType="IPv6"),
    ]


CONFIGURATIONS = st.fixed_dictionaries(
    {
        "clusterCIDR": st.sampled_from(["10.244.0.0/16,fd00:10:244::/48", ""]),
        "detectLocalMode": st.sampled_from(["ClusterCIDR", "InterfaceNamePrefix", "BridgeInterface"]),
        "detectLocal": st.just({"interfaceNamePrefix": "veth", "bridgeInterface": "cbr0"}),
        "nodePortAddresses": st.sampled_from([[], ["172.18.0.0/16"], ["127.0.0.0/8", "fd00:18::/64"], ["primary"]]),
        "iptables": st.fixed_dictionaries({"masqueradeAll": st.booleans(), "localhostNodePorts": st.booleans()}),
    }
)


MODES = pytest.mark.parametrize("mode", WALKERS)
FAMILIES = st.sampled_from(list(Family))


@MODES
@settings(max_examples=60, deadline=None)
@given(objects(), CONFIGURATIONS, FAMILIES)
def test_packets_meet_what_the_plans_say(
    mode: str, items: list[Object], config: dict[str, Any], family: Family
) -> None:
    world = World(mode, items, family, **config)
    for probe in probes(world.plans, world.node, family):
        found = world.walk(probe, None)
        assert sum(branch.probability for branch in found.branches) == 1
        must = expected(world.plans, world.node, probe)
        assert found.chances == meant(mode, world.plans, world.node, probe, must), probe


@settings(max_examples=60, deadline=None)
@given(objects(), CONFIGURATIONS, FAMILIES)
def test_modes_mean_the_same(items: list[Object], config: dict[str, Any], family: Family) -> None:
    one, *others = (World(mode, items, family, **config) for mode in WALKERS)
    for probe in probes(one.plans, one.node, family):
        met = one.walk(probe, None).chances
        for other in others:
            assert other.walk(probe, None).chances == meant(other.mode, one.plans, one.node, probe, met), probe


@MODES
@settings(max_examples=30, deadline=None)
@given(objects(), FAMILIES)
def test_who_is_remembered_goes_where_it_went(mode: str, items: list[Object], family: Family) -> None:
    world = World(mode, items, family)
    sticky = [plan for plan in world.plans if plan.affinity_seconds]
    for probe in probes(sticky, world.node, family):
        for branch in world.walk(probe, None).branches:
            again = world.walk(probe, dict.fromkeys(branch.remembers, 1))
            assert again.chances == {branch.verdict: 1}
            assert bool(branch.remembers) is (branch.verdict.fate is Fate.DELIVERED)


@settings(max_examples=40, deadline=None)
@given(objects(), FAMILIES, st.integers(0, 3))
def test_modes_mean_the_same_to_clients_that_are_remembered(items: list[Object], family: Family, place: int) -> None:
    worlds = [World(mode, items, family) for mode in WALKERS]
    node = worlds[0].node
    for plan in (plan for plan in worlds[0].plans if plan.affinity_seconds):
        for target in map(str, plan.reachable[place : place + 1]):
            asked = list(probes([plan], node, family))
            for source in {probe.source for probe in asked}:
                of_client = [probe for probe in asked if probe.source == source]
                known = [memories(world, of_client, target) for world in worlds]
                for probe in of_client if all(known) else ():
                    met, *others = (w.walk(probe, k).chances for w, k in zip(worlds, known, strict=True))
                    for world, found in zip(worlds[1:], others, strict=True):
                        assert found == meant(world.mode, worlds[0].plans, node, probe, met), probe


def memories(world: World, asked: Iterable[Probe], target: str) -> Affinity:
    """What is remembered of a client after one of its probes went to that endpoint; nothing if none of them can."""
    for probe in asked:
        for branch in world.walk(probe, None).branches:
            if branch.verdict.endpoint == target:
                return dict.fromkeys(branch.remembers, 5)
    return {}
