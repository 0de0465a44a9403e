"""One Service's plans from its slices: which endpoints belong to a port, duplicates, and what the node adds."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kproxy.model.node_info import NodeInfo
from kproxy.model.planner import candidates, plan_service
from kproxy.model.plans import Endpoint, Family, Protocol, ServicePlan
from kproxy.model.slices import Slice, SliceAddress
from kproxy.model.state import ServiceName
from tests.model.builders import DUAL, NODE, cluster, endpoint, plan, plans, service, slice_

V4 = Family.IPV4
WEB = ServiceName("default", "web")
READY, DRAINING = SliceAddress("10.244.0.1", NODE), SliceAddress("10.244.0.1", NODE, False, True, True)
DEAD = SliceAddress("10.244.0.1", NODE, False, False, False)
DYING = SliceAddress("10.244.0.1", NODE, False, False, True)
ELSEWHERE = SliceAddress("10.244.0.1", "node2")
PORT = ("http", Protocol.TCP, 8080)


def piece(
    *addresses: SliceAddress, family: Family = V4, ports: tuple[tuple[str, Protocol, int], ...] = (PORT,)
) -> Slice:
    return Slice("web", family, ports, addresses)


def found(*pieces: Slice, node: str = NODE) -> list[tuple[str, SliceAddress]]:
    return [(str(c.endpoint), c.address) for c in candidates(pieces, "http", Protocol.TCP, V4, node)]


# ---------------------------------------------------------------- duplicates over slices


@pytest.mark.parametrize(
    ("copies", "counts"),
    [
        pytest.param([READY, DEAD], DEAD, id="the last one counts"),
        pytest.param([DEAD, READY], READY, id="the last one counts, the other way round"),
        pytest.param([READY, DRAINING], READY, id="one that terminates does not hide one that does not"),
        pytest.param([DRAINING, READY], READY, id="one that does not terminate hides one that does"),
        pytest.param([DEAD, DRAINING], DEAD, id="not even a dead one"),
        pytest.param([DRAINING, DYING], DRAINING, id="both terminate: the first counts"),
        pytest.param([DYING, DRAINING], DYING, id="both terminate, the other way round"),
        pytest.param([DRAINING, READY, DYING], READY, id="one between two that terminate"),
        pytest.param([READY, ELSEWHERE], ELSEWHERE, id="the pod's address moved to another node"),
        pytest.param([READY, DRAINING, ELSEWHERE], ELSEWHERE, id="three copies"),
    ],
)
def test_an_endpoint_in_several_slices_counts_once(copies: list[SliceAddress], counts: SliceAddress) -> None:
    expected = [("10.244.0.1:8080", counts)]
    assert found(*(piece(copy) for copy in copies)) == expected
    assert found(piece(*copies)) == expected


def test_slices_are_read_in_the_order_of_their_names_however_they_came_in() -> None:
    """web-2 says the endpoint is dead, and is read after web-1."""
    items = [
        slice_("web-1", [endpoint("10.244.0.1")]),
        slice_("web-2", [endpoint("10.244.0.1", conditions="dead")]),
        slice_("web-10", [endpoint("10.244.0.1")]),
    ]
    for order in itertools.permutations(items):
        assert plan(service(), *order).cluster == ()


def test_endpoints_of_all_slices_come_sorted_by_their_text() -> None:
    ips = ["10.244.0.10", "10.244.0.9", "10.244.0.100"]
    assert [text for text, _ in found(*(piece(SliceAddress(ip)) for ip in ips))] == [
        "10.244.0.100:8080",
        "10.244.0.10:8080",
        "10.244.0.9:8080",
    ]


def test_one_address_on_two_port_numbers_is_two_endpoints() -> None:
    other = ("http", Protocol.TCP, 9090)
    assert [text for text, _ in found(piece(READY), piece(READY, ports=(other,)))] == [
        "10.244.0.1:8080",
        "10.244.0.1:9090",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(piece(READY, ports=()), id="no ports"),
        pytest.param(piece(READY, ports=(("https", Protocol.TCP, 8080),)), id="another name"),
        pytest.param(piece(READY, ports=(("", Protocol.TCP, 8080),)), id="no name"),
        pytest.param(piece(READY, ports=(("http", Protocol.UDP, 8080),)), id="another protocol"),
        pytest.param(piece(SliceAddress("fd00::1"), family=Family.IPV6), id="another family"),
    ],
)
def test_an_endpoint_of_something_else_is_none(wrong: Slice) -> None:
    assert found(wrong) == []


def test_local_means_the_same_node() -> None:
    here, there, unknown = SliceAddress("10.0.0.1", NODE), SliceAddress("10.0.0.2", "node2"), SliceAddress("10.0.0.3")
    pieces = [piece(here, there, unknown)]
    local = [c.endpoint.local for c in candidates(pieces, "http", Protocol.TCP, V4, NODE)]
    assert local == [True, False, False]
    assert not any(c.endpoint.local for c in candidates(pieces, "http", Protocol.TCP, V4, ""))


# ---------------------------------------------------------------- plans


def test_each_family_has_its_own_endpoints() -> None:
    v6 = slice_("web-6", [endpoint("fd00::1", "node2")], addressType="IPv6")
    by_family = {p.family: p for p in plans(service(clusterIPs=DUAL), slice_("web-4", [endpoint("10.244.0.1")]), v6)}
    assert by_family[V4].cluster == (Endpoint("10.244.0.1", 8080, True),)
    assert by_family[Family.IPV6].cluster == (Endpoint("fd00::1", 8080, False),)


def test_each_port_has_its_own_endpoints() -> None:
    ports = [{"name": "a", "port": 1}, {"name": "b", "port": 2}, {"name": "b", "port": 2, "protocol": "UDP"}]
    slices = [
        slice_("web-1", [endpoint("10.244.0.1")], ports=[{"name": "a", "port": 11}, {"name": "b", "port": 12}]),
        slice_("web-2", [endpoint("10.244.0.2")], ports=[{"name": "b", "port": 13, "protocol": "UDP"}]),
    ]
    shown = {(p.key.port, p.protocol.value): [str(e) for e in p.cluster] for p in plans(service(ports=ports), *slices)}
    assert shown == {
        ("a", "TCP"): ["10.244.0.1:11"],
        ("b", "TCP"): ["10.244.0.1:12"],
        ("b", "UDP"): ["10.244.0.2:13"],
    }


def test_a_service_without_slices_has_no_endpoints() -> None:
    bare = plan(service())
    assert (bare.cluster, bare.local, bare.reachable, bare.has_endpoints, bare.endpoint_count) == ((), (), (), False, 0)


def test_an_unknown_service_has_no_plans() -> None:
    assert plans(slice_("web-1", [endpoint("10.244.0.1")])) == []


@pytest.mark.parametrize(
    ("fields", "cluster_used", "local_used"),
    [
        pytest.param({}, True, False, id="cluster IP, policy Cluster"),
        pytest.param({"internalTrafficPolicy": "Local"}, False, True, id="cluster IP, policy Local"),
        pytest.param({"type": "NodePort"}, True, False, id="node port, policy Cluster"),
        pytest.param({"type": "NodePort", "externalTrafficPolicy": "Local"}, True, True, id="node port, policy Local"),
        pytest.param(
            {"type": "NodePort", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"},
            True,  # local clients of the node port may go anywhere
            True,
            id="both policies Local",
        ),
        pytest.param({"type": "NodePort", "internalTrafficPolicy": "Local"}, True, True, id="inside Local only"),
        pytest.param(
            {
                "internalTrafficPolicy": "Local",
                "externalIPs": ["198.51.100.1"],
                "ports": [{"name": "http", "port": 80}],
            },
            True,
            True,
            id="inside Local, with an external IP",
        ),
        pytest.param(
            {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"name": "http", "port": 80}]},
            True,
            False,
            id="a load balancer that has no address yet, and no node port",
        ),
    ],
)
def test_which_lists_a_plan_needs(fields: dict[str, Any], cluster_used: bool, local_used: bool) -> None:
    spec = {"ports": [{"name": "http", "port": 80, "nodePort": 30080 if fields.get("type") else 0}], **fields}
    made = plan(service(**spec), slice_("web-1", [endpoint("10.244.0.1"), endpoint("10.244.0.2", "node2")]))
    assert [e.ip for e in made.cluster] == (["10.244.0.1", "10.244.0.2"] if cluster_used else [])
    assert [e.ip for e in made.local] == (["10.244.0.1"] if local_used else [])
    assert set(made.reachable) == {*made.cluster, *made.local}


def balanced(*endpoints: dict[str, Any], **spec: Any) -> ServicePlan:
    """The plan of a Service with a health check node port."""
    fields = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000, **spec}
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    return plan(service(ports=ports, **fields), slice_("web-1", endpoints))


def test_ready_local_ips_counts_ready_endpoints_on_this_node() -> None:
    endpoints = [
        endpoint("10.244.0.2"),
        endpoint("10.244.0.1", conditions="ready"),
        endpoint("10.244.0.3", conditions="draining"),
        endpoint("10.244.0.4", "node2"),
        endpoint("10.244.0.5", None),
    ]
    assert balanced(*endpoints).ready_local_ips == ("10.244.0.1", "10.244.0.2")


def test_draining_endpoints_serve_policy_local_but_fail_the_health_check() -> None:
    made = balanced(endpoint("10.244.0.3", conditions="draining"))
    assert [e.ip for e in made.local] == ["10.244.0.3"]
    assert made.ready_local_ips == ()


def test_ready_local_ips_is_empty_without_a_health_check_node_port() -> None:
    assert balanced(endpoint("10.244.0.1"), externalTrafficPolicy="Cluster").ready_local_ips == ()


@pytest.mark.parametrize(
    ("protocol", "endpoints", "still_serving"),
    [
        pytest.param(
            "UDP", [endpoint("10.244.0.1"), endpoint("10.244.0.2", conditions="draining")], ["2"], id="drains"
        ),
        pytest.param("UDP", [endpoint("10.244.0.1"), endpoint("10.244.0.2", conditions="dead")], [], id="dead"),
        pytest.param("UDP", [endpoint("10.244.0.2", conditions="draining")], [], id="drains, but is the only one"),
        pytest.param(
            "SCTP",
            [endpoint("10.244.0.1", zones=["zone-a"]), endpoint("10.244.0.2", zones=["zone-b"])],
            ["2"],
            id="hints lead elsewhere",
        ),
        pytest.param("TCP", [endpoint("10.244.0.1"), endpoint("10.244.0.2", conditions="draining")], [], id="TCP"),
    ],
)
def test_endpoints_that_serve_without_getting_new_flows_linger(
    protocol: str, endpoints: list[dict[str, Any]], still_serving: list[str]
) -> None:
    port = {"name": "http", "port": 80, "protocol": protocol}
    made = plan(service(ports=[port]), slice_("web-1", endpoints, ports=[port]))
    assert [e.ip.rpartition(".")[2] for e in made.still_serving] == still_serving


def test_here_has_every_endpoint_on_this_node_whatever_its_state() -> None:
    endpoints = [
        endpoint("10.244.0.4", conditions="dead"),
        endpoint("10.244.0.3", conditions="draining"),
        endpoint("10.244.0.1", zones=["zone-b"]),
        endpoint("10.244.0.2", "node2", zones=["zone-a"]),
        endpoint("10.244.0.5", None),
    ]
    made = plan(service(), slice_("web-1", endpoints))
    assert made.all_local == tuple(Endpoint(f"10.244.0.{n}", 8080, True) for n in (1, 3, 4))
    assert plan(service(), slice_("web-1", [endpoint("10.244.0.2", "node2")])).all_local == ()


def test_here_does_not_depend_on_what_the_service_uses() -> None:
    spec = {"internalTrafficPolicy": "Local"}
    made = plan(service(**spec), slice_("web-1", [endpoint("10.244.0.1", conditions="dead")]))
    assert (made.reachable, [e.ip for e in made.all_local]) == ((), ["10.244.0.1"])


def test_on_the_only_node_here_costs_no_memory_of_its_own() -> None:
    made = plan(service(), slice_("web-1", [endpoint("10.244.0.1"), endpoint("10.244.0.2")]))
    assert made.all_local is made.reachable


def test_endpoint_count_counts_the_unusable_too() -> None:
    states = ["ready", "dead", "draining", None]
    made = plan(service(), slice_("web-1", [endpoint(f"10.244.0.{i}", conditions=s) for i, s in enumerate(states)]))
    assert (made.endpoint_count, len(made.cluster)) == (4, 2)


@pytest.mark.parametrize(
    ("ranges", "v4", "v6"),
    [
        (["172.18.0.0/16"], True, False),
        (["10.0.0.0/8", "172.18.0.2/32"], True, False),
        (["10.0.0.0/8"], False, False),
        (["fd00:18::/64", "10.0.0.0/8"], False, True),
        ([], False, False),
    ],
)
def test_whether_the_node_lies_in_the_source_ranges(ranges: list[str], v4: bool, v6: bool) -> None:
    spec: dict[str, Any] = {"type": "LoadBalancer", "clusterIPs": DUAL, "loadBalancerSourceRanges": ranges}
    shown = {p.family: p.node_in_source_ranges for p in plans(service(**spec))}
    assert shown == {Family.IPV4: v4, Family.IPV6: v6}


def test_a_node_without_an_address_of_the_family_lies_in_no_range() -> None:
    spec = {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8"]}
    (made,) = plan_service(cluster(service(**spec)), WEB, NodeInfo(NODE))
    assert made.node_in_source_ranges is False


def test_external_ips_are_left_out_where_they_are_not_served() -> None:
    state = cluster(service(externalIPs=["198.51.100.1"]))
    served, left_out = ([p.external_ips for p in plan_service(state, WEB, NodeInfo(NODE), s)] for s in (True, False))
    assert (served, left_out) == ([("198.51.100.1",)], [()])
