"""What a Service says, field by field, before endpoints come in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.model import objects
from kproxy.model.plans import Family, Protocol, ServicePlan
from kproxy.model.services import parse
from tests.model.builders import DUAL, HTTP, service

V4, V6 = Family.IPV4, Family.IPV6
HOSTILE = ['a"b', "a\nb", "a\n", "..", "../x", ".", "", "-a", "a-", "a b", "a;b", "a$b", "a`b", "ä", "a\0", "x" * 254]


def only(**spec: Any) -> ServicePlan:
    """The one plan of a Service without problems."""
    found, problems = parse(service(**spec))
    assert problems == []
    (plan,) = found
    return plan


def test_a_plain_service_has_one_plan_with_nothing_but_its_cluster_ip() -> None:
    plan = only()
    assert str(plan.key) == "default/web:http"
    assert (plan.family, plan.cluster_ip, plan.port, plan.protocol) == (V4, "10.96.0.1", 80, Protocol.TCP)
    assert not plan.externally_accessible
    assert plan == ServicePlan(key=plan.key, family=V4, cluster_ip="10.96.0.1", port=80)


def test_a_service_without_namespace_is_in_namespace_default() -> None:
    ((plan,), _) = parse(service("web", None))
    assert plan.key.namespace == "default"


def test_the_name_of_a_port_without_name_is_left_out() -> None:
    assert str(only(ports=[{"port": 80}]).key) == "default/web"


# ---------------------------------------------------------------- families


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"clusterIPs": DUAL}, {V4: "10.96.0.1", V6: "fd00:96::1"}, id="dual stack, IPv4 first"),
        pytest.param(
            {"clusterIP": "fd00:96::1", "clusterIPs": DUAL[::-1]},
            {V6: "fd00:96::1", V4: "10.96.0.1"},
            id="dual stack, IPv6 first",
        ),
        pytest.param({"clusterIPs": ["10.96.0.1"]}, {V4: "10.96.0.1"}, id="single stack"),
        pytest.param({"clusterIP": "fd00:96::1"}, {V6: "fd00:96::1"}, id="single stack IPv6, clusterIPs absent"),
        pytest.param({"clusterIPs": None}, {V4: "10.96.0.1"}, id="clusterIPs null"),
        pytest.param({"clusterIPs": []}, {V4: "10.96.0.1"}, id="clusterIPs empty"),
        pytest.param({"clusterIPs": ["10.96.0.1", "10.96.0.2"]}, {V4: "10.96.0.1"}, id="two of a family: the first"),
        pytest.param({"clusterIP": "010.096.0.1"}, {V4: "10.96.0.1"}, id="leading zeros"),
        pytest.param({"clusterIP": "FD00:96:0::1"}, {V6: "fd00:96::1"}, id="IPv6 in capitals"),
    ],
)
def test_cluster_ips(fields: dict[str, Any], expected: dict[Family, str]) -> None:
    found, problems = parse(service(**fields))
    assert problems == []
    assert {plan.family: plan.cluster_ip for plan in found} == expected
    assert [plan.family for plan in found] == list(expected)


# ---------------------------------------------------------------- Services that are not for this proxy


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"clusterIP": "None"}, id="headless"),
        pytest.param({"clusterIP": "None", "clusterIPs": ["None"]}, id="headless, both fields"),
        pytest.param({"clusterIP": ""}, id="no cluster IP yet"),
        pytest.param({"clusterIP": None}, id="cluster IP null"),
        pytest.param({"labels": {"service.kubernetes.io/service-proxy-name": "other"}}, id="another proxy's"),
        pytest.param({"labels": {"service.kubernetes.io/service-proxy-name": None}}, id="another proxy's, null"),
        pytest.param({"type": "ExternalName", "externalName": "example.com"}, id="ExternalName"),
        pytest.param({"type": "ExternalName", "clusterIP": "10.96.0.1"}, id="ExternalName with a cluster IP left"),
        pytest.param({"ports": None}, id="ports null"),
        pytest.param({"ports": []}, id="no ports"),
    ],
)
def test_nothing_to_plan(fields: dict[str, Any]) -> None:
    assert parse(service(**fields)) == ((), [])


def test_a_service_without_spec_has_nothing_to_plan() -> None:
    assert parse(objects.Service(objects.Metadata("web"))) == ((), [])


def test_a_service_without_status_is_planned() -> None:
    bare = service()
    bare.status = None
    found, problems = parse(bare)
    assert (len(found), problems) == (1, [])


# ---------------------------------------------------------------- what leads to it


@pytest.mark.parametrize(
    ("ingress", "expected"),
    [
        pytest.param([{"ip": "203.0.113.1"}], {V4: ("203.0.113.1",), V6: ()}, id="ipMode absent"),
        pytest.param([{"ip": "203.0.113.1", "ipMode": "VIP"}], {V4: ("203.0.113.1",), V6: ()}, id="VIP"),
        pytest.param([{"ip": "203.0.113.1", "ipMode": "Proxy"}], {V4: (), V6: ()}, id="Proxy is left alone"),
        pytest.param([{"hostname": "lb.example.com"}], {V4: (), V6: ()}, id="a hostname has no address"),
        pytest.param([{"ip": "", "hostname": "x"}], {V4: (), V6: ()}, id="empty ip"),
        pytest.param(
            [{"ip": "203.0.113.1"}, {"ip": "2001:db8::1"}, {"ip": "203.0.113.2"}],
            {V4: ("203.0.113.1", "203.0.113.2"), V6: ("2001:db8::1",)},
            id="each family has its own, in order",
        ),
        pytest.param([{"ip": "203.0.113.1"}] * 2, {V4: ("203.0.113.1",), V6: ()}, id="twice the same"),
        pytest.param(
            [{"ip": "203.0.113.1", "ipMode": "Proxy"}, {"ip": "203.0.113.2"}],
            {V4: ("203.0.113.2",), V6: ()},
            id="one Proxy, one VIP",
        ),
        pytest.param(None, {V4: (), V6: ()}, id="null"),
    ],
)
def test_load_balancer_ips(ingress: Any, expected: dict[Family, tuple[str, ...]]) -> None:
    found, problems = parse(service(type="LoadBalancer", clusterIPs=DUAL, ingress=ingress))
    assert problems == []
    assert {plan.family: plan.load_balancer_ips for plan in found} == expected


@pytest.mark.parametrize(
    ("texts", "v4", "v6"),
    [
        (["198.51.100.1"], ("198.51.100.1",), ()),
        (["2001:db8::5", "198.51.100.1"], ("198.51.100.1",), ("2001:db8::5",)),
        (["198.51.100.1", "198.51.100.1", "198.051.100.1"], ("198.51.100.1",), ()),
        (["198.51.100.2", "198.51.100.1"], ("198.51.100.2", "198.51.100.1"), ()),
        (None, (), ()),
    ],
)
def test_external_ips(texts: list[str] | None, v4: tuple[str, ...], v6: tuple[str, ...]) -> None:
    found, problems = parse(service(clusterIPs=DUAL, externalIPs=texts))
    assert problems == []
    assert {plan.family: plan.external_ips for plan in found} == {V4: v4, V6: v6}


def test_an_external_ip_of_a_family_that_the_service_lacks_leads_nowhere() -> None:
    assert only(externalIPs=["2001:db8::5"]).external_ips == ()


@pytest.mark.parametrize(
    ("ranges", "v4", "v6"),
    [
        pytest.param(["10.0.0.0/8"], ("10.0.0.0/8",), (), id="one family only"),
        pytest.param([" 10.0.0.0/8", "2001:db8::/32\t"], ("10.0.0.0/8",), ("2001:db8::/32",), id="blanks around"),
        pytest.param(["::ffff:10.0.0.0/104"], ("10.0.0.0/8",), (), id="IPv4-mapped"),
        pytest.param(["10.1.2.3/8"], ("10.0.0.0/8",), (), id="host bits"),
        pytest.param(["10.0.0.0/8", "10.0.0.0/8"], ("10.0.0.0/8",), (), id="twice"),
        pytest.param(["10.0.0.0/8", "0.0.0.0/0"], (), (), id="everybody, among others"),
        pytest.param(["::/0", "10.0.0.0/8"], ("10.0.0.0/8",), (), id="everybody in the other family"),
        pytest.param(["::/0", "2001:db8::/32"], (), (), id="everybody in IPv6"),
        pytest.param([], (), (), id="empty"),
        pytest.param(None, (), (), id="null"),
    ],
)
def test_source_ranges(ranges: list[str] | None, v4: tuple[str, ...], v6: tuple[str, ...]) -> None:
    found, problems = parse(service(type="LoadBalancer", clusterIPs=DUAL, loadBalancerSourceRanges=ranges))
    assert problems == []
    assert {plan.family: plan.source_ranges for plan in found} == {V4: v4, V6: v6}
    assert not any(plan.admits_nobody for plan in found)


@pytest.mark.parametrize(
    ("ranges", "closed"),
    [
        pytest.param(["10.0.0.0/33"], {V4, V6}, id="none can be read"),
        pytest.param(["", "x"], {V4, V6}, id="none of two can be read"),
        pytest.param(["::ffff:10.0.0.0/95"], {V4, V6}, id="IPv4-mapped and wider than IPv4"),
        pytest.param(["10.0.0.0/8", "x"], {V6}, id="one of IPv4 can be read"),
        pytest.param(["10.0.0.0/33", "fd00::/8"], {V4}, id="one of IPv6 can be read"),
        pytest.param(["10.0.0.0/8", "x", "fd00::/8"], set(), id="one of each can be read"),
        pytest.param(["0.0.0.0/0", "x"], {V6}, id="everybody of IPv4, as far as it can be read"),
    ],
)
def test_a_family_without_a_range_that_can_be_read_admits_nobody(ranges: list[str], closed: set[Family]) -> None:
    found, problems = parse(service(type="LoadBalancer", clusterIPs=DUAL, loadBalancerSourceRanges=ranges))
    assert {plan.family for plan in found if plan.admits_nobody} == closed
    assert all(plan.restricts_sources for plan in found if plan.family in closed)
    told = [str(p) for p in problems if p.field == "spec.loadBalancerSourceRanges"]
    assert len(told) == bool(closed)
    assert all(f"{family} " in told[0] for family in closed)


def test_every_port_has_its_own_plan_in_each_family() -> None:
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053},
        {"name": "dns", "port": 53, "protocol": "TCP"},
        {"name": "sig", "port": 7000, "protocol": "SCTP", "nodePort": 0},
    ]
    found, problems = parse(service(type="NodePort", clusterIPs=DUAL, ports=ports))
    assert problems == []
    assert [(str(p.key), p.protocol.value, p.family.value, p.port, p.node_port) for p in found] == [
        ("default/web:dns", "UDP", "IPv4", 53, 30053),
        ("default/web:dns", "UDP", "IPv6", 53, 30053),
        ("default/web:dns", "TCP", "IPv4", 53, 0),
        ("default/web:dns", "TCP", "IPv6", 53, 0),
        ("default/web:sig", "SCTP", "IPv4", 7000, 0),
        ("default/web:sig", "SCTP", "IPv6", 7000, 0),
    ]


# ---------------------------------------------------------------- policies


@pytest.mark.parametrize(
    ("fields", "internal_local", "external_local"),
    [
        ({}, False, False),
        ({"internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster", "type": "NodePort"}, False, False),
        ({"internalTrafficPolicy": "Local"}, True, False),
        ({"internalTrafficPolicy": None, "externalTrafficPolicy": None, "type": "NodePort"}, False, False),
        ({"externalTrafficPolicy": "Local"}, False, False),
        ({"externalTrafficPolicy": "Local", "type": "NodePort"}, False, True),
        ({"externalTrafficPolicy": "Local", "type": "LoadBalancer"}, False, True),
        ({"externalTrafficPolicy": "Local", "externalIPs": ["198.51.100.1"]}, False, True),
        ({"externalTrafficPolicy": "Local", "type": "NodePort", "internalTrafficPolicy": "Local"}, True, True),
        ({"externalTrafficPolicy": "Sideways", "type": "NodePort", "internalTrafficPolicy": "Sideways"}, False, False),
    ],
)
def test_traffic_policies(fields: dict[str, Any], internal_local: bool, external_local: bool) -> None:
    plan = only(**fields)
    assert (plan.internal_local, plan.external_local) == (internal_local, external_local)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}, 32000),
        ({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster"}, 0),
        ({"type": "LoadBalancer"}, 0),
        ({"type": "NodePort", "externalTrafficPolicy": "Local"}, 0),
        ({"externalIPs": ["198.51.100.1"], "externalTrafficPolicy": "Local"}, 0),
        ({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": None}, 0),
    ],
)
def test_health_check_node_port_is_for_load_balancers_with_policy_local(fields: dict[str, Any], expected: int) -> None:
    assert only(**{"healthCheckNodePort": 32000, **fields}).health_check_node_port == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0),
        ({"sessionAffinity": "None"}, 0),
        ({"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}, 0),
        ({"sessionAffinity": "ClientIP"}, 10800),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": None}, 10800),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": None}}, 10800),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": None}}}, 10800),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}}, 1),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}}, 86400),
    ],
)
def test_affinity(fields: dict[str, Any], expected: int) -> None:
    assert only(**fields).affinity_seconds == expected


# ---------------------------------------------------------------- problems

AFFINITY = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"


@pytest.mark.parametrize(
    ("fields", "expected", "left"),
    [
        pytest.param({"clusterIP": "10.0.0.300"}, ["spec.clusterIP"], 0, id="impossible cluster IP"),
        pytest.param(
            {"clusterIPs": ["10.96.0.1", "fd00::96::1"]}, ["spec.clusterIPs[1]"], 1, id="one bad family of two"
        ),
        pytest.param({"externalIPs": ["x", "198.51.100.1"]}, ["spec.externalIPs[0]"], 1, id="external IP"),
        pytest.param(
            {"type": "LoadBalancer", "ingress": [{"ip": "203.0.113.1"}, {"ip": "1.2.3"}]},
            ["status.loadBalancer.ingress[1].ip"],
            1,
            id="load balancer IP",
        ),
        pytest.param(
            {"loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.0/40", ""]},
            ["spec.loadBalancerSourceRanges[1]", "spec.loadBalancerSourceRanges[2]"],
            1,
            id="source ranges",
        ),
        pytest.param({"ports": [{"port": 70000}, HTTP]}, ["spec.ports[0].port"], 1, id="port 70000"),
        pytest.param({"ports": [{"port": 0}, HTTP]}, ["spec.ports[0].port"], 1, id="port 0"),
        pytest.param({"ports": [{"port": -1}, HTTP]}, ["spec.ports[0].port"], 1, id="negative port"),
        pytest.param({"ports": [{"name": "x"}, HTTP]}, ["spec.ports[0].port"], 1, id="no port number"),
        pytest.param({"ports": [{**HTTP, "nodePort": 65536}]}, ["spec.ports[0].nodePort"], 1, id="node port too high"),
        pytest.param({"ports": [{**HTTP, "nodePort": -1}]}, ["spec.ports[0].nodePort"], 1, id="node port negative"),
        pytest.param({"ports": [HTTP, HTTP]}, ["spec.ports[1]"], 1, id="the same port twice"),
        pytest.param({"ports": [{**HTTP, "protocol": "tcp"}]}, ["spec.ports[0].protocol"], 0, id="protocol in lower"),
        pytest.param({"ports": [{**HTTP, "protocol": "ICMP"}]}, ["spec.ports[0].protocol"], 0, id="protocol unknown"),
        pytest.param({"ports": [{"name": 'a"b', "port": 1}, HTTP]}, ["spec.ports[0].name"], 1, id="port name"),
        pytest.param(
            {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 70000},
            ["spec.healthCheckNodePort"],
            1,
            id="health check node port",
        ),
        *(
            pytest.param(
                {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}},
                [AFFINITY],
                1,
                id=f"affinity of {seconds} seconds",
            )
            for seconds in (0, -1, 86401)
        ),
        pytest.param(
            {"externalIPs": ["x"], "ports": [{"port": 70000}, HTTP, HTTP]},
            ["spec.externalIPs[0]", "spec.ports[0].port", "spec.ports[2]"],
            1,
            id="several at once",
        ),
    ],
)
def test_a_problem_names_object_and_field_and_the_rest_is_planned(
    fields: dict[str, Any], expected: list[str], left: int
) -> None:
    found, problems = parse(service(**fields))
    assert len(found) == left
    assert [p.field for p in problems] == expected
    for problem in problems:
        assert str(problem).startswith(f"Service default/web: {problem.field}: ")
        assert len(str(problem).splitlines()) == 1


def test_what_is_left_of_a_service_with_problems_is_right() -> None:
    ranges = ["10.0.0.0/8", "nonsense"]
    found, problems = parse(
        service(externalIPs=["x", "198.51.100.1"], ports=[{**HTTP, "nodePort": 99999}], loadBalancerSourceRanges=ranges)
    )
    (plan,) = found
    assert len(problems) == 3
    assert (plan.external_ips, plan.node_port, plan.source_ranges) == (("198.51.100.1",), 0, ("10.0.0.0/8",))


def test_an_affinity_out_of_range_falls_back_to_the_default() -> None:
    config = {"clientIP": {"timeoutSeconds": 86401}}
    ((plan,), _) = parse(service(sessionAffinity="ClientIP", sessionAffinityConfig=config))
    assert plan.affinity_seconds == 10800


@pytest.mark.parametrize(
    ("field", "name"),
    [
        *(("metadata.name", name) for name in HOSTILE),
        # An empty namespace is namespace default.
        *(("metadata.namespace", name) for name in HOSTILE if name),
        *(("spec.ports[0].name", name) for name in HOSTILE if name),
    ],
)
def test_a_name_that_could_break_a_rule_is_refused(field: str, name: str) -> None:
    odd = {
        "metadata.name": lambda: service(name),
        "metadata.namespace": lambda: service("web", name),
        "spec.ports[0].name": lambda: service(ports=[{"name": name, "port": 80}]),
    }[field]()
    found, problems = parse(odd)
    assert found == ()
    assert [p.field for p in problems] == [field]
    assert len(str(problems[0]).splitlines()) == 1
    assert str(problems[0]).isprintable()


@pytest.mark.parametrize("name", ["web", "Web.v1", "a_b", "a..b", "7", "x" * 253])
def test_a_name_that_only_looks_odd_is_taken(name: str) -> None:
    found, problems = parse(service(name))
    assert (len(found), problems) == (1, [])


@given(st.text(max_size=40))
def test_no_name_that_is_taken_has_a_character_with_a_meaning_in_rules(name: str) -> None:
    found, problems = parse(service(name))
    assert bool(found) != bool(problems)
    if found:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
