"""What the Node object and the host contribute: zone, addresses, eligibility, and where node ports answer."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.model.node_info import NodeInfo, NodePortAddresses, merged, node_port_addresses, parse, problems
from kproxy.model.plans import Family
from tests.model.builders import node

V4, V6 = Family.IPV4, Family.IPV6
ALL = NodePortAddresses()


def addresses(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"addresses": [{"type": kind, "address": text} for kind, text in pairs]}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (None, ()),
        ({"addresses": None}, ()),
        (addresses(("InternalIP", "172.18.0.2"), ("InternalIP", "fd00:18::2")), ("172.18.0.2", "fd00:18::2")),
        (addresses(("ExternalIP", "203.0.113.1"), ("InternalIP", "172.18.0.2")), ("172.18.0.2",)),
        (addresses(("ExternalIP", "203.0.113.1")), ("203.0.113.1",)),
        (addresses(("InternalIP", "172.18.0.2"), ("ExternalIP", "2001:db8::1")), ("172.18.0.2", "2001:db8::1")),
        (addresses(("Hostname", "172.18.0.9"), ("InternalDNS", "node1.local")), ()),
        (addresses(("InternalIP", "nonsense"), ("InternalIP", "172.18.0.2")), ("172.18.0.2",)),
        (addresses(("InternalIP", "172.18.0.2"), ("InternalIP", "172.18.0.3")), ("172.18.0.2",)),
    ],
)
def test_a_nodes_own_addresses(status: dict[str, Any] | None, expected: tuple[str, ...]) -> None:
    assert parse(node(status=status)).ips == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, ()),
        ({"podCIDR": "10.244.1.0/24"}, ("10.244.1.0/24",)),
        ({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "FD00:1::/64"]}, ("10.244.1.0/24", "fd00:1::/64")),
        ({"podCIDRs": ["nonsense", "10.244.1.7/24"]}, ("10.244.1.0/24",)),
    ],
)
def test_a_nodes_pod_cidrs(spec: dict[str, Any] | None, expected: tuple[str, ...]) -> None:
    assert parse(node(spec=spec)).pod_cidrs == expected


@pytest.mark.parametrize(
    ("fields", "eligible"),
    [
        ({}, True),
        ({"spec": {"taints": [{"key": "other", "effect": "NoSchedule"}]}}, True),
        ({"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}}, False),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, False),
    ],
)
def test_whether_a_node_should_take_new_connections(fields: dict[str, Any], eligible: bool) -> None:
    assert parse(node(**fields)).eligible is eligible


def test_zone() -> None:
    assert parse(node(zone="zone-b")).zone == "zone-b"
    assert parse(node(zone=None)).zone == ""


def test_a_nodes_address_in_a_family() -> None:
    found = NodeInfo("node1", ips=("172.18.0.2",))
    assert (found.ip(V4), found.ip(V6)) == ("172.18.0.2", "")


HOST_SHOWS = NodeInfo(ips=("172.18.0.2",), addresses=("127.0.0.1", "172.18.0.2"))


@pytest.mark.parametrize(
    ("of_object", "expected"),
    [
        (None, NodeInfo("node1", "", HOST_SHOWS.ips, addresses=HOST_SHOWS.addresses, service_cidrs=("10.96.0.0/16",))),
        (
            NodeInfo("node1", "zone-a", ("203.0.113.1",), ("10.244.1.0/24",), False),
            NodeInfo(
                "node1",
                "zone-a",
                HOST_SHOWS.ips,
                ("10.244.1.0/24",),
                False,
                HOST_SHOWS.addresses,
                ("10.96.0.0/16",),
            ),
        ),
    ],
)
def test_the_node_object_gives_zone_and_pods_and_the_host_its_addresses(
    of_object: NodeInfo | None, expected: NodeInfo
) -> None:
    assert merged("node1", of_object, HOST_SHOWS, ("10.96.0.0/16",)) == expected


# ---------------------------------------------------------------- where node ports answer

HOST = ["127.0.0.1", "172.18.0.10", "172.18.0.9", "192.168.9.7", "::1", "fd00:18::2", "fe80::1"]
NODE_IPS = ["172.18.0.9", "fd00:18::2"]


@pytest.mark.parametrize(
    ("cidrs", "family", "expected"),
    [
        ([], V4, ALL),
        ([], V6, ALL),
        (["fd00:18::/64"], V4, ALL),
        (["0.0.0.0/0"], V4, ALL),
        (["172.18.0.0/16", "0.0.0.0/0"], V4, ALL),
        (["0.0.0.0/0"], V6, ALL),
        (["::/0"], V6, ALL),
        (["172.18.0.0/16"], V4, NodePortAddresses(False, ("172.18.0.9", "172.18.0.10"), False)),
        (["172.18.0.7/16"], V4, NodePortAddresses(False, ("172.18.0.9", "172.18.0.10"), False)),
        (["127.0.0.0/8"], V4, NodePortAddresses(False, ("127.0.0.1",), True)),
        (["127.0.0.1/32"], V4, NodePortAddresses(False, ("127.0.0.1",), True)),
        (["127.0.0.2/32"], V4, NodePortAddresses(False, (), True)),
        (["126.0.0.0/7"], V4, NodePortAddresses(False, ("127.0.0.1",), True)),
        (["10.0.0.0/8"], V4, NodePortAddresses(False, (), False)),
        (["172.18.0.9/32", "192.168.0.0/16"], V4, NodePortAddresses(False, ("172.18.0.9", "192.168.9.7"), False)),
        (["fd00::/8"], V6, NodePortAddresses(False, ("fd00:18::2",), False)),
        (["::1/128"], V6, NodePortAddresses(False, ("::1",), False)),
        (["primary"], V4, NodePortAddresses(False, ("172.18.0.9",), False)),
        (["primary"], V6, NodePortAddresses(False, ("fd00:18::2",), False)),
        (["localhost"], V4, NodePortAddresses(False, ("127.0.0.1",), True)),
        (["localhost"], V6, NodePortAddresses(False, ("::1",), False)),
        (["all"], V4, ALL),
        (["all"], V6, ALL),
        (["primary", "all"], V6, ALL),
        (["localhost", "primary"], V4, NodePortAddresses(False, ("127.0.0.1", "172.18.0.9"), True)),
        (["localhost", "primary"], V6, NodePortAddresses(False, ("::1", "fd00:18::2"), False)),
        (["primary", "192.168.0.0/16"], V4, NodePortAddresses(False, ("172.18.0.9", "192.168.9.7"), False)),
        (["primary", "192.168.0.0/16"], V6, NodePortAddresses(False, ("fd00:18::2",), False)),
        (["primary", "localhost", "::/0"], V6, ALL),
        (["primary", "localhost", "::/0"], V4, NodePortAddresses(False, ("127.0.0.1", "172.18.0.9"), True)),
    ],
)
def test_node_port_addresses(cidrs: list[str], family: Family, expected: NodePortAddresses) -> None:
    assert node_port_addresses(family, cidrs, NODE_IPS, HOST) == expected


@pytest.mark.parametrize("asked", [["primary"], ["primary", "192.168.0.0/16"]])
def test_primary_is_nothing_in_a_family_of_which_the_node_has_no_ip(asked: list[str]) -> None:
    assert node_port_addresses(V6, asked, NODE_IPS[:1], HOST) == NodePortAddresses(False, (), False)


def test_an_address_on_two_interfaces_counts_once() -> None:
    assert node_port_addresses(V4, ["172.18.0.0/16"], [], ["172.18.0.9"] * 2).ips == ("172.18.0.9",)


def test_what_cannot_be_read_of_a_node_is_said() -> None:
    wrong = node(
        spec={"podCIDR": "x", "podCIDRs": ["::ffff:10.244.1.0/120", "10.244.1.0/33"]},
        status=addresses(("Hostname", "node1"), ("InternalIP", "1.2.3"), ("ExternalIP", " 203.0.113.01 ")),
    )
    assert [p.field for p in problems(wrong)] == ["spec.podCIDRs[1]", "status.addresses[1].address"]
    assert (parse(wrong).pod_cidrs, parse(wrong).ips) == (("10.244.1.0/24",), ("203.0.113.1",))
    assert [p.field for p in problems(node(spec={"podCIDR": "x"}))] == ["spec.podCIDR"]
