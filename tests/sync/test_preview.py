"""What a node would program for a cluster of given objects."""

from __future__ import annotations

from kproxy.config.fields import KubeProxyConfiguration
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Kind, Object
from kproxy.model.plans import Family
from kproxy.modes.preview import Preview, load
from tests.model.builders import DUAL, NODE, cidr, endpoint, node, service, slice_

HOST = NodeInfo(ips=("172.18.0.2",), addresses=("172.18.0.2",))


def preview(objects: dict[Kind, list[Object]]) -> Preview:
    state, problems = load(NODE, objects)
    assert problems == []
    return Preview(state, KubeProxyConfiguration(), HOST)


def test_an_empty_cluster_has_the_nodes_own_rules() -> None:
    shown = preview({})
    for family in Family:
        assert "-A KUBE-POSTROUTING " in shown.iptables(family)
        assert shown.families[family].plans == {}


def test_a_state_is_complete_whatever_kinds_were_given() -> None:
    state, _ = load(NODE, {Kind.SERVICE: [service()]})
    assert state.ready
    assert all(state.listed(kind) for kind in Kind)


def test_problems_of_all_kinds_are_reported_and_the_rest_is_shown() -> None:
    objects: dict[Kind, list[Object]] = {
        Kind.SERVICE: [service('a"'), service(clusterIPs=DUAL)],
        Kind.ENDPOINT_SLICE: [slice_("web-1", [endpoint("10.244.0.1")]), slice_("x", [], None)],
        Kind.SERVICE_CIDR: [cidr("a", "10.96.0.0/16")],
    }
    state, problems = load(NODE, objects)
    assert [p.kind for p in problems] == ["Service", "EndpointSlice"]
    shown = Preview(state, KubeProxyConfiguration(), HOST)
    assert "--to-destination 10.244.0.1:8080" in shown.iptables(Family.IPV4)
    assert "default/web:http has no endpoints" in shown.iptables(Family.IPV6)


def test_the_node_decides_about_hints_and_what_is_local() -> None:
    endpoints = [endpoint("10.244.0.1", zones=["zone-a"]), endpoint("10.244.0.2", zones=["zone-b"])]
    objects: dict[Kind, list[Object]] = {
        Kind.NODE: [node("node2", "zone-a"), node(NODE, "zone-b")],
        Kind.SERVICE: [service()],
        Kind.ENDPOINT_SLICE: [slice_("web-1", endpoints)],
    }
    text = preview(objects).iptables(Family.IPV4)
    assert "10.244.0.2:8080" in text
    assert "10.244.0.1:8080" not in text
