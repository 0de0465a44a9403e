"""What `kproxy lint` finds: a row for each check, with what makes it and what must not."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.config.fields import ProxyMode
from kproxy.lint.checks import lint
from kproxy.lint.cluster import Cluster
from kproxy.lint.findings import CHECKS, IGNORE, Finding, Severity
from kproxy.model.objects import TYPES, Kind

Values = dict[str, Any]


def service(name: str = "web", spec: Values | None = None, ingress: tuple[str, ...] = (), **meta: Any) -> Values:
    port = {"name": "http", "port": 80, "protocol": "TCP"}
    return {
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", **meta},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1", "ports": [port], **(spec or {})},
        "status": {"loadBalancer": {"ingress": [{"ip": ip} for ip in ingress]}},
    }


def endpoint(ip: str = "10.244.1.5", hint: str = "", **more: Any) -> Values:
    hints = {"hints": {"forZones": [{"name": hint}]}} if hint else {}
    return {"addresses": [ip], "nodeName": "node1", **hints, **more}


def piece(*endpoints: Values, name: str = "web-1", of: str = "web", port: Values | None = None) -> Values:
    ips = [e["addresses"][0] for e in endpoints]
    return {
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": of} if of else {}},
        "addressType": "IPv6" if any(":" in ip and "." not in ip for ip in ips) else "IPv4",
        "ports": [port or {"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": list(endpoints),
    }


def node(name: str, zone: str = "", ip: str = "") -> Values:
    labels = {"topology.kubernetes.io/zone": zone} if zone else {}
    addresses = [{"type": "InternalIP", "address": ip}] if ip else []
    return {"kind": "Node", "metadata": {"name": name, "labels": labels}, "status": {"addresses": addresses}}


def found(items: list[Values], mode: ProxyMode = ProxyMode.IPTABLES) -> list[Finding]:
    objects = {kind: [msgspec.convert(item, TYPES[kind]) for item in items if item["kind"] == kind] for kind in Kind}
    return lint(Cluster(objects, (), mode))


LOCAL: Values = {"externalTrafficPolicy": "Local"}
BALANCER: Values = {"type": "LoadBalancer"}
DUAL: Values = {"clusterIPs": ["10.96.0.1", "fd00:96::1"]}
READY = piece(endpoint())
WEB = "Service shop/web"


class Row(NamedTuple):
    """Objects, and what is found in them beside nothing else: (id, object, field), and a part of the message."""

    name: str
    objects: list[Values]
    expected: set[tuple[str, str, str]]
    says: str = ""
    mode: ProxyMode = ProxyMode.IPTABLES


def row(name: str, id: str, at: str, field: str, *objects: Values, says: str = "", mode: str = "iptables") -> Row:
    return Row(name, list(objects), {(id, at, field)}, says, ProxyMode(mode))


TABLE = [
    row("a port out of range", "unusable", WEB, "spec.ports[0].port", READY,
        service(spec={"ports": [{"port": 70000}, {"name": "http", "port": 80}]}), says="70000 is not between"),
    Row("one cluster IP of two Services",
        [service(), service("api"), READY, piece(endpoint(), name="api-1", of="api")],
        {("cluster-ip-conflict", WEB, "spec.clusterIP"), ("cluster-ip-conflict", "Service shop/api", "spec.clusterIP")},
        "10.96.0.1:80/TCP is also asked for by shop/"),
    Row("one load balancer address of two Services",
        [service(spec=BALANCER, ingress=("203.0.113.1",)), READY, piece(endpoint(), name="api-1", of="api"),
         service("api", {**BALANCER, "clusterIP": "10.96.0.2"}, ("203.0.113.1",))],
        {("address-conflict", WEB, ""), ("address-conflict", "Service shop/api", "")}, "203.0.113.1:80/TCP"),
    Row("one node port of two Services",
        [service(name, {"type": "NodePort", "clusterIP": ip, "ports": [{"port": 80, "nodePort": 30080}]})
         for name, ip in (("web", "10.96.0.1"), ("api", "10.96.0.2"))]
        + [piece(endpoint(), of=n, name=n, port={"name": "", "port": 80, "protocol": "TCP"}) for n in ("web", "api")],
        {("node-port-conflict", WEB, "spec.ports"), ("node-port-conflict", "Service shop/api", "spec.ports")},
        "node port 30080/TCP"),
    Row("one health check node port of two Services",
        [service(name, {**BALANCER, **LOCAL, "clusterIP": ip, "healthCheckNodePort": 32100})
         for name, ip in (("web", "10.96.0.1"), ("api", "10.96.0.2"))]
        + [piece(endpoint(), of=name, name=name) for name in ("web", "api")],
        {("health-check-port-conflict", at, "spec.healthCheckNodePort") for at in (WEB, "Service shop/api")}, "32100"),
    row("no slice", "no-endpoints", WEB, "", service()),
    row("a slice without endpoints", "no-endpoints", WEB, "", service(), piece()),
    row("no endpoint is ready", "no-ready-endpoints", WEB, "spec.ports[http]", service(),
        piece(endpoint(conditions={"ready": False}), endpoint("10.244.1.6", conditions={"ready": False})),
        says="2 IPv4"),
    row("another name", "port-mismatch", WEB, "spec.ports[http]", service(),
        piece(endpoint(), port={"name": "web", "port": 8080, "protocol": "TCP"}), says="they have web/TCP"),
    row("another protocol", "port-mismatch", WEB, "spec.ports[http]", service(),
        piece(endpoint(), port={"name": "http", "port": 53, "protocol": "UDP"}), says="http/TCP; they have http/UDP"),
    row("IPv4 endpoints alone", "family-without-endpoints", WEB, "", service(spec=DUAL), READY, says="no IPv6"),
    row("internal policy Local, a node without", "local-policy-empty-nodes", WEB, "spec.internalTrafficPolicy",
        service(spec={"internalTrafficPolicy": "Local"}), READY, node("node1"), node("node2"),
        says="1 of 2 nodes (node2)"),
    row("external policy Local of a NodePort", "local-policy-empty-nodes", WEB, "spec.externalTrafficPolicy", READY,
        service(spec={**LOCAL, "type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
        node("node1"), node("node2"), says="that arrive there are dropped"),
    row("a zone of one", "one-endpoint-for-zone", WEB, "spec.ports[http]", service(),
        piece(endpoint(hint="a"), endpoint("10.244.1.6", hint="b"), endpoint("10.244.1.7", hint="b")),
        says="in zone a all connections go to 10.244.1.5:8080, one of 3"),
    row("a hint is missing", "hints-ignored", WEB, "spec.ports[http]", service(),
        piece(endpoint(hint="a"), endpoint("10.244.1.6")), says="1 of 2 ready"),
    row("ranges that nobody can read", "load-balancer-closed", WEB, "spec.loadBalancerSourceRanges",
        service(spec={**BALANCER, "loadBalancerSourceRanges": ["10.0.0.0-10.0.0.9"]}, annotations={
            IGNORE: "source-range-ignored"}), READY, says="admit nobody"),
    row("a range that nobody can read", "source-range-ignored", WEB, "spec.loadBalancerSourceRanges[1]",
        service(spec={**BALANCER, "loadBalancerSourceRanges": ["10.0.0.0/8", "x"]}), READY, says="'x'"),
    row("ranges of IPv4 alone", "source-ranges-leave-family-open", WEB, "spec.loadBalancerSourceRanges", READY,
        service(spec={**BALANCER, **DUAL, "loadBalancerSourceRanges": ["10.0.0.0/8"]},
                ingress=("203.0.113.1", "2001:db8::1")),
        piece(endpoint("fd00:244::5"), name="web-2"), says="IPv6 addresses"),
    row("source ranges without a load balancer", "unused-field", WEB, "spec.loadBalancerSourceRanges",
        service(spec={"loadBalancerSourceRanges": ["10.0.0.0/8"]}), READY),
    row("external policy of a ClusterIP", "unused-field", WEB, "spec.externalTrafficPolicy", READY,
        service(spec=LOCAL)),
    row("health check port with policy Cluster", "unused-field", WEB, "spec.healthCheckNodePort",
        service(spec={**BALANCER, "healthCheckNodePort": 32100}), READY),
    row("a timeout without affinity", "unused-field", WEB, "spec.sessionAffinityConfig",
        service(spec={"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}), READY),
    row("affinity of a headless Service", "unused-field", WEB, "spec.sessionAffinity",
        service(spec={"clusterIP": "None", "sessionAffinity": "ClientIP"}), READY),
    row("external IPs of a headless Service", "unused-field", WEB, "spec.externalIPs",
        service(spec={"clusterIP": "None", "externalIPs": ["203.0.113.1"]}), READY),
    row("a slice without a label", "slice-without-service", "EndpointSlice shop/lone", "metadata.labels",
        piece(endpoint(), of="", name="lone")),
    row("a slice of nobody", "slice-without-service", "EndpointSlice shop/web-1", "metadata.labels", READY,
        says="no Service shop/web"),
    row("two minds about an endpoint", "contradicting-copies", WEB, "spec.ports[http]", service(), READY,
        piece(endpoint(conditions={"ready": False, "serving": True, "terminating": True}), name="web-2"),
        says="10.244.1.5:8080"),
    row("leading zeros", "legacy-address", WEB, "spec.clusterIP", service(spec={"clusterIP": "010.96.0.1"}), READY,
        says="read as 10.96.0.1"),
    row("an IPv4-mapped endpoint", "legacy-address", "EndpointSlice shop/web-1", "endpoints[0].addresses[0]", service(),
        piece(endpoint("::ffff:10.244.1.5"))),
    row("bits beyond the prefix", "legacy-address", WEB, "spec.loadBalancerSourceRanges[0]", READY,
        service(spec={**BALANCER, "loadBalancerSourceRanges": ["10.0.0.1/8"]}), says="read as 10.0.0.0/8"),
    row("external IPs", "external-ips", WEB, "spec.externalIPs", READY,
        service(spec={"externalIPs": ["203.0.113.1"]})),
    row("a node's address", "node-address-as-external-ip", WEB, "status.loadBalancer.ingress", READY,
        service(spec=BALANCER, ingress=("172.18.0.3",)), node("node2", ip="172.18.0.3"),
        says="connections to this port"),
    row("a node's address in IPVS mode", "ipvs-node-address", WEB, "status.loadBalancer.ingress", READY,
        service(spec=BALANCER, ingress=("172.18.0.3",)), node("node2", ip="172.18.0.3"), mode="ipvs",
        says="cannot reach node2"),
    row("a check that does not exist", "unknown-check", WEB, f"metadata.annotations[{IGNORE}]", READY,
        service(annotations={IGNORE: "no-endpoint"}), says="'no-endpoint'"),
    # ---- nothing is wrong
    Row("a Service with an endpoint", [service(), READY, node("node1"), node("node2")], set()),
    Row("a headless Service and its slice", [service(spec={"clusterIP": "None"}), READY], set()),
    Row("a Service of another proxy",
        [service(labels={"service.kubernetes.io/service-proxy-name": "x"}), READY], set()),
    Row("the last endpoint drains", [service(), piece(endpoint(conditions={
        "ready": False, "serving": True, "terminating": True}))], set()),
    Row("two load balancers leave nodes out by health checks",
        [service(spec={**BALANCER, **LOCAL, "healthCheckNodePort": 32100}, ingress=("203.0.113.1",)), READY,
         node("node1"), node("node2")], set()),
    Row("ranges that leave nobody out", [service(spec={**BALANCER, "loadBalancerSourceRanges": ["0.0.0.0/0"]},
                                                 ingress=("203.0.113.1",)), READY], set()),
    Row("silenced by name", [service(annotations={IGNORE: "port-mismatch, no-endpoints"})], set()),
    Row("silenced altogether", [service(annotations={IGNORE: "all"})], set()),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_cluster_has_these_findings_and_no_others(row: Row) -> None:
    findings = found(row.objects, row.mode)
    assert {(each.id, each.object, each.field) for each in findings} == row.expected
    assert all(row.says in each.message for each in findings)
    assert all(each.severity is CHECKS[each.id].severity and each.fix for each in findings)


def test_every_check_has_a_row() -> None:
    assert {id for row in TABLE for id, _, _ in row.expected} == CHECKS.keys()


@given(st.lists(st.sampled_from([item for row in TABLE for item in row.objects]), max_size=12))
def test_findings_are_sorted_unique_and_about_the_objects(items: list[Values]) -> None:
    findings = found(items)
    assert len(set(findings)) == len(findings)
    assert [each.severity.rank for each in findings] == sorted(each.severity.rank for each in findings)
    named = {f"{i['kind']} {i['metadata'].get('namespace', '')}/{i['metadata']['name']}" for i in items}
    assert {each.object for each in findings} <= named
    assert {each.severity for each in findings} <= set(Severity)
