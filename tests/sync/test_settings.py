"""From configuration, Node and host to what plans and rules depend on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kproxy.config.fields import KubeProxyConfiguration
from kproxy.config.files import from_text
from kproxy.model.node_info import DetectLocal, DetectLocalBy, NodeInfo, NodePortAddresses
from kproxy.model.objects import Kind
from kproxy.model.plans import Family
from kproxy.modes.iptables.render import Settings
from kproxy.modes.ipvs.fragments import Settings as IpvsSettings
from kproxy.modes.preview import Preview, load
from kproxy.modes.settings import (
    LARGE_CLUSTER_ENDPOINTS,
    Features,
    addresses_for_node_ports,
    detect_local,
    excluded_networks,
    health_check_ips,
    iptables_settings,
    ipvs_settings,
    nftables_settings,
    node_ips,
    node_port_ips,
    userspace_settings,
    waits_for_pod_cidr,
)
from tests.model.builders import NODE, endpoint, service, slice_

V4, V6 = Family.IPV4, Family.IPV6
NOTHING = DetectLocal()


def config(**fields: Any) -> KubeProxyConfiguration:
    raw = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", **fields}
    return from_text(json.dumps(raw))


def by_cidr(text: str) -> DetectLocal:
    return DetectLocal(DetectLocalBy.CIDR, text)


def by_interface(text: str) -> DetectLocal:
    return DetectLocal(DetectLocalBy.INTERFACE, text)


# ---------------------------------------------------------------- what counts as local

PODS = NodeInfo(NODE, pod_cidrs=("10.244.1.0/24", "fd00:244:1::/64"))


@pytest.mark.parametrize(
    ("fields", "node", "v4", "v6"),
    [
        pytest.param({}, PODS, NOTHING, NOTHING, id="cluster CIDR not given"),
        pytest.param(
            {"clusterCIDR": "10.244.0.0/16"}, NodeInfo(), by_cidr("10.244.0.0/16"), NOTHING, id="cluster CIDR, IPv4"
        ),
        pytest.param(
            {"clusterCIDR": "fd00:244::/32,10.244.0.0/16"},
            NodeInfo(),
            by_cidr("10.244.0.0/16"),
            by_cidr("fd00:244::/32"),
            id="cluster CIDR, both",
        ),
        pytest.param(
            {"detectLocalMode": "NodeCIDR", "clusterCIDR": "10.0.0.0/8"},
            PODS,
            by_cidr("10.244.1.0/24"),
            by_cidr("fd00:244:1::/64"),
            id="node CIDR",
        ),
        pytest.param({"detectLocalMode": "NodeCIDR"}, NodeInfo(), NOTHING, NOTHING, id="node CIDR, no Node"),
        pytest.param(
            {"detectLocalMode": "NodeCIDR"},
            NodeInfo(NODE, pod_cidrs=("fd00:244:1::/64",)),
            NOTHING,
            by_cidr("fd00:244:1::/64"),
            id="node CIDR of one family",
        ),
        pytest.param(
            {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cbr0"}},
            PODS,
            by_interface("cbr0"),
            by_interface("cbr0"),
            id="bridge",
        ),
        pytest.param(
            {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "veth"}},
            PODS,
            by_interface("veth+"),
            by_interface("veth+"),
            id="interface prefix",
        ),
    ],
)
def test_detect_local(fields: dict[str, Any], node: NodeInfo, v4: DetectLocal, v6: DetectLocal) -> None:
    found = config(**fields)
    assert [detect_local(found, family, node) for family in (V4, V6)] == [v4, v6]


@pytest.mark.parametrize(
    ("mode", "node", "waits"),
    [
        ("NodeCIDR", None, True),
        ("NodeCIDR", NodeInfo(NODE), True),
        ("NodeCIDR", PODS, False),
        ("ClusterCIDR", None, False),
    ],
)
def test_only_mode_node_cidr_waits_for_the_pod_cidr(mode: str, node: NodeInfo | None, waits: bool) -> None:
    assert waits_for_pod_cidr(config(detectLocalMode=mode), node) is waits


# ---------------------------------------------------------------- the node's own addresses


@pytest.mark.parametrize(
    ("bind", "node", "found", "expected"),
    [
        pytest.param("0.0.0.0", (), ["172.18.0.2", "fd00::2"], {"172.18.0.2", "fd00::2"}, id="the host's"),
        pytest.param("0.0.0.0", ("172.18.0.3",), ["172.18.0.2"], {"172.18.0.3"}, id="the Node's come first"),
        pytest.param("::", ("172.18.0.3",), ["172.18.0.2", "fd00::2"], {"172.18.0.3"}, id="the Node's alone"),
        pytest.param("172.18.0.4", ("172.18.0.3", "fd00::3"), [], {"172.18.0.4", "fd00::3"}, id="bind address first"),
        pytest.param("FD00::4", ("172.18.0.3",), ["fd00::2"], {"172.18.0.3", "fd00::4"}, id="IPv6 bind address"),
        pytest.param("0.0.0.0", (), [], set(), id="nothing known"),
    ],
)
def test_node_ips(bind: str, node: tuple[str, ...], found: list[str], expected: set[str]) -> None:
    ips = node_ips(config(bindAddress=bind), NodeInfo(NODE, ips=node), found)
    assert set(ips) == expected
    assert len(ips) == len(expected)


def test_node_ips_without_a_node() -> None:
    assert node_ips(config(), None, ["172.18.0.2"]) == ("172.18.0.2",)


# ---------------------------------------------------------------- node ports

HOST = NodeInfo(
    ips=("172.18.0.2", "fd00:18::2"), addresses=("127.0.0.1", "172.18.0.2", "192.168.9.7", "fd00:18::2", "::1")
)


@pytest.mark.parametrize(
    ("cidrs", "v4", "v6"),
    [
        ([], NodePortAddresses(), NodePortAddresses()),
        (
            ["primary"],
            NodePortAddresses(False, ("172.18.0.2",), False),
            NodePortAddresses(False, ("fd00:18::2",), False),
        ),
        (["192.168.0.0/16"], NodePortAddresses(False, ("192.168.9.7",), False), NodePortAddresses()),
        (
            ["127.0.0.0/8", "::1/128"],
            NodePortAddresses(False, ("127.0.0.1",), True),
            NodePortAddresses(False, ("::1",), False),
        ),
    ],
)
def test_addresses_for_node_ports(cidrs: list[str], v4: NodePortAddresses, v6: NodePortAddresses) -> None:
    found = config(nodePortAddresses=cidrs)
    assert [addresses_for_node_ports(found, family, HOST) for family in (V4, V6)] == [v4, v6]


EVERYWHERE = ("127.0.0.1", "172.18.0.2", "192.168.9.7", "fd00:18::2", "::1")


@pytest.mark.parametrize(
    ("cidrs", "node_ports", "checks"),
    [
        pytest.param([], EVERYWHERE, ([""], [""], [""]), id="everywhere"),
        pytest.param(["all"], EVERYWHERE, ([""], [""], [""]), id="all"),
        pytest.param(["primary"], HOST.ips, ([HOST.ips[0]], [HOST.ips[1]], [*HOST.ips]), id="the node's own addresses"),
        pytest.param(
            ["192.168.0.0/16"],
            ("192.168.9.7", "fd00:18::2", "::1"),
            (["192.168.9.7"], ["::"], ["192.168.9.7", "::"]),
            id="one family restricted",
        ),
        pytest.param(
            ["fd00::/8"],
            (*EVERYWHERE[:3], "fd00:18::2"),
            (["0.0.0.0"], ["fd00:18::2"], ["0.0.0.0", "fd00:18::2"]),
            id="the other",
        ),
        pytest.param(
            ["192.168.0.0/16", "fd01::/16"], ("192.168.9.7",), (["192.168.9.7"], [], ["192.168.9.7"]), id="none in one"
        ),
    ],
)
def test_addresses_of_node_ports_and_of_health_check_node_ports(
    cidrs: list[str], node_ports: tuple[str, ...], checks: tuple[list[str], ...]
) -> None:
    """checks: of a Service of IPv4, of IPv6, of both."""
    found = config(nodePortAddresses=cidrs)
    assert tuple(ip for family in (V4, V6) for ip in node_port_ips(found, family, HOST)) == node_ports
    assert [health_check_ips(found, HOST, families) for families in ([V4], [V6], [V4, V6])] == [*map(set, checks)]


# ---------------------------------------------------------------- iptables


def settings(endpoints: int = 0, **fields: Any) -> Settings:
    return iptables_settings(config(**fields), V4, HOST, endpoints)


def test_settings_of_a_plain_configuration() -> None:
    assert settings() == Settings(V4)


@pytest.mark.parametrize(
    ("fields", "field", "expected"),
    [
        ({"iptables": {"masqueradeBit": 0}}, "masquerade_mark", 1),
        ({"iptables": {"masqueradeBit": 31}}, "masquerade_mark", 0x80000000),
        ({"iptables": {"masqueradeAll": True}}, "masquerade_all", True),
        ({"iptables": {"localhostNodePorts": False}}, "localhost_node_ports", False),
        ({"conntrack": {"tcpBeLiberal": True}}, "tcp_be_liberal", True),
        ({"clusterCIDR": "10.244.0.0/16"}, "detect_local", by_cidr("10.244.0.0/16")),
        ({"nftables": {"masqueradeAll": True}}, "masquerade_all", False),
    ],
)
def test_settings_follow_the_configuration(fields: dict[str, Any], field: str, expected: object) -> None:
    assert getattr(settings(**fields), field) == expected


def test_settings_follow_the_host() -> None:
    able = iptables_settings(config(), V4, HOST, 0, Features(nfacct=True, random_fully=False))
    assert (able.nfacct, able.random_fully) == (True, False)


# ---------------------------------------------------------------- ipvs

MANY = NodeInfo(ips=HOST.ips, addresses=(*HOST.addresses, "127.0.0.53", "fe80::1", "fd00:19::7"))


def ipvs(family: Family = V4, **fields: Any) -> IpvsSettings:
    return ipvs_settings(config(mode="ipvs", **fields), family, MANY)


def test_ipvs_settings_of_a_plain_configuration() -> None:
    v4, v6 = ("172.18.0.2", "192.168.9.7"), ("fd00:18::2", "fd00:19::7")
    assert ipvs() == IpvsSettings(V4, node_addresses=frozenset(v4), node_port_ips=v4)
    assert ipvs(V6) == IpvsSettings(V6, node_addresses=frozenset((*v6, "fe80::1")), node_port_ips=v6)


@pytest.mark.parametrize(
    ("fields", "field", "expected"),
    [
        ({"ipvs": {"scheduler": "lc"}}, "scheduler", "lc"),
        ({"iptables": {"masqueradeBit": 3}}, "masquerade_mark", 8),
        ({"iptables": {"masqueradeAll": True}}, "masquerade_all", True),
        ({"nftables": {"masqueradeAll": True}}, "masquerade_all", False),
        ({"clusterCIDR": "10.244.0.0/16"}, "detect_local", by_cidr("10.244.0.0/16")),
        ({"nodePortAddresses": ["192.168.9.0/24"]}, "node_port_ips", ("192.168.9.7",)),
        ({"nodePortAddresses": ["127.0.0.0/8", "192.168.9.0/24"]}, "node_port_ips", ("192.168.9.7",)),
        ({"nodePortAddresses": ["127.0.0.0/8"]}, "node_port_ips", ()),
        ({"nodePortAddresses": ["0.0.0.0/0"]}, "node_port_ips", ("172.18.0.2", "192.168.9.7")),
    ],
)
def test_ipvs_settings_follow_the_configuration(fields: dict[str, Any], field: str, expected: object) -> None:
    assert getattr(ipvs(**fields), field) == expected


def test_excluded_networks_lose_their_host_bits_as_everything_is_looked_up_in_them() -> None:
    given = config(ipvs={"excludeCIDRs": ["10.0.0.5/8", "fd00::1/64"]})
    assert excluded_networks(given) == ("10.0.0.0/8", "fd00::/64")


def test_ipvs_settings_follow_the_host() -> None:
    assert ipvs_settings(config(mode="ipvs"), V4, MANY, Features(random_fully=False)).random_fully is False


# ---------------------------------------------------------------- nftables and userspace


def test_nftables_settings_take_the_service_cidrs_of_their_family() -> None:
    node = NodeInfo(service_cidrs=("10.96.0.5/16", "fd00:96::/112", "nonsense"))
    found = [nftables_settings(config(mode="nftables"), family, node).service_cidrs for family in (V4, V6)]
    assert found == [("10.96.0.0/16",), ("fd00:96::/112",)]


@pytest.mark.parametrize(
    ("ips", "expected"),
    [
        (("172.18.0.2", "fd00:18::2"), ["172.18.0.2", "fd00:18::2"]),
        (("203.0.113.1",), ["127.0.0.1", "::1"]),  # one-to-one NAT: not an address of this host
    ],
)
def test_userspace_mode_redirects_to_an_address_that_is_on_the_node(ips: tuple[str, ...], expected: list[str]) -> None:
    node = NodeInfo(ips=ips, addresses=HOST.addresses)
    assert [userspace_settings(config(), family, node).node_ip for family in (V4, V6)] == expected


# ---------------------------------------------------------------- large clusters


@pytest.mark.parametrize(("endpoints", "comments"), [(0, True), (1000, True), (1001, False)])
def test_comments_end_where_a_large_cluster_begins(endpoints: int, comments: bool) -> None:
    assert LARGE_CLUSTER_ENDPOINTS == 1000
    assert settings(endpoints).comments is comments


@pytest.mark.parametrize("count", [1000, 1001])
def test_a_large_cluster_is_rendered_without_comments_in_the_services_own_chains(count: int) -> None:
    """All endpoints count, in all slices and usable or not; the chains that all Services share keep their comments."""
    many = [endpoint(f"10.244.{i // 250}.{i % 250}", conditions="dead") for i in range(999)]
    rest = [endpoint(f"10.245.0.{i}") for i in range(count - 999)]
    slices = [slice_("web-1", many), slice_("web-2", rest)]
    state, problems = load(NODE, {Kind.SERVICE: [service()], Kind.ENDPOINT_SLICE: slices})
    assert problems == []
    text = Preview(state, config(), HOST).iptables(V4)
    own = [line for line in text.splitlines() if line.startswith("-A KUBE-SEP-") or " -> " in line]
    assert len(own) == (count - 999) * (3 if count == 1000 else 2)
    assert all(("--comment" in line) is (count == 1000) for line in own)
    assert 'comment "default/web:http cluster IP"' in text
