"""What one Service port needs in IPVS mode, by type of Service and policy."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.model.plans import Family, Protocol
from kproxy.modes.ipvs.fragments import Fragment
from kproxy.modes.ipvs.render import render_port
from tests.ipvs_rules.plans import node_settings, port

UDP, SCTP, V6 = Protocol.UDP, Protocol.SCTP, Family.IPV6


def servers(fragment: Fragment) -> list[str]:
    """ "TCP 10.96.0.1:80 -> 1 2", with the scheduler, persistence and flags where they are not the plainest."""
    found = []
    for server, reals in fragment.served:
        more = "" if server.scheduler == "rr" else f" {server.scheduler}"
        more += f" for {server.timeout} s" if server.timeout else ""
        more += f" flags {server.flags}" if server.flags else ""
        pods = "".join(f" {r.key.address.rpartition(':' if ':' in r.key.address else '.')[2]}" for r in reals)
        found.append(f"{server.key}{more} ->{pods}")
        assert all((real.key.port, real.weight) == (8080, 1) for real in reals)
    return found


def entries(fragment: Fragment) -> list[str]:
    """ "CLUSTER-IP 10.96.0.1,tcp:80"; those of the addresses are left out."""
    found = [f"{entry.set.removeprefix('KUBE-')} {entry.entry}" for entry in fragment.entries]
    return [line for line in found if "IPVS-IPS" not in line]


OWN = "CLUSTER-IP 10.96.0.1,tcp:80"

# fields of the plan, settings; virtual servers, set entries
PORTS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str], list[str]]] = {
    "a cluster IP": ({"cluster": (1, 2)}, {}, ["TCP 10.96.0.1:80 -> 1 2"], [OWN]),
    "no endpoints: served by nobody": ({}, {}, ["TCP 10.96.0.1:80 ->"], [OWN]),
    "endpoints on this node reach themselves, ready or not": (
        {"cluster": (1,), "all_local": (1, 3)},
        {},
        ["TCP 10.96.0.1:80 -> 1"],
        ["LOOP-BACK 10.244.1.1,tcp:8080,10.244.1.1", "LOOP-BACK 10.244.1.3,tcp:8080,10.244.1.3", OWN],
    ),
    "internal policy Local": (
        {"cluster": (1, 2), "local": (1,), "internal_local": True},
        {},
        ["TCP 10.96.0.1:80 -> 1"],
        [OWN],
    ),
    "internal policy Local, none here": ({"internal_local": True}, {}, ["TCP 10.96.0.1:80 ->"], [OWN]),
    "internal policy Local, none here, but some for others": (
        {"cluster": (2,), "internal_local": True, "external_ips": ("198.51.100.7",)},
        {},
        ["TCP 10.96.0.1:80 -> 2", "TCP 198.51.100.7:80 -> 2"],
        [OWN, "EXTERNAL-IP 198.51.100.7,tcp:80"],
    ),
    "an external IP": (
        {"cluster": (1, 2), "external_ips": ("198.51.100.7",)},
        {},
        ["TCP 10.96.0.1:80 -> 1 2", "TCP 198.51.100.7:80 -> 1 2"],
        [OWN, "EXTERNAL-IP 198.51.100.7,tcp:80"],
    ),
    "an external IP, policy Local": (
        {"cluster": (1, 2), "local": (1,), "external_local": True, "external_ips": ("198.51.100.7",)},
        {},
        ["TCP 10.96.0.1:80 -> 1 2", "TCP 198.51.100.7:80 -> 1"],
        [OWN, "EXTERNAL-IP-LOCAL 198.51.100.7,tcp:80"],
    ),
    "a load balancer's IP": (
        {"cluster": (1, 2), "load_balancer_ips": ("203.0.113.5",)},
        {},
        ["TCP 10.96.0.1:80 -> 1 2", "TCP 203.0.113.5:80 -> 1 2"],
        [OWN, "LOAD-BALANCER 203.0.113.5,tcp:80"],
    ),
    "a load balancer's IP, policy Local": (
        {
            "cluster": (1, 2),
            "local": (1,),
            "external_local": True,
            "load_balancer_ips": ("203.0.113.5",),
            "health_check_node_port": 32000,
        },
        {},
        ["TCP 10.96.0.1:80 -> 1 2", "TCP 203.0.113.5:80 -> 1"],
        [
            OWN,
            "LOAD-BALANCER 203.0.113.5,tcp:80",
            "LOAD-BALANCER-LOCAL 203.0.113.5,tcp:80",
            "HEALTH-CHECK-NODE-PORT 32000",
        ],
    ),
    "a load balancer's IP, policy Local, none here: pods of this node still get through": (
        {"cluster": (2,), "external_local": True, "load_balancer_ips": ("203.0.113.5",)},
        {},
        ["TCP 10.96.0.1:80 -> 2", "TCP 203.0.113.5:80 -> 2"],
        [OWN, "LOAD-BALANCER 203.0.113.5,tcp:80", "LOAD-BALANCER-LOCAL 203.0.113.5,tcp:80"],
    ),
    "source ranges": (
        {"cluster": (1,), "load_balancer_ips": ("203.0.113.5",), "source_ranges": ("10.0.0.0/8", "10.1.2.3/32")},
        {},
        ["TCP 10.96.0.1:80 -> 1", "TCP 203.0.113.5:80 -> 1"],
        [
            OWN,
            "LOAD-BALANCER 203.0.113.5,tcp:80",
            "LOAD-BALANCER-FW 203.0.113.5,tcp:80",
            "LOAD-BALANCER-SOURCE-CIDR 203.0.113.5,tcp:80,10.0.0.0/8",
            "LOAD-BALANCER-SOURCE-CIDR 203.0.113.5,tcp:80,10.1.2.3",
        ],
    ),
    "source ranges that hold the node": (
        {
            "cluster": (1,),
            "load_balancer_ips": ("203.0.113.5",),
            "source_ranges": ("172.18.0.0/16",),
            "node_in_source_ranges": True,
        },
        {},
        ["TCP 10.96.0.1:80 -> 1", "TCP 203.0.113.5:80 -> 1"],
        [
            OWN,
            "LOAD-BALANCER 203.0.113.5,tcp:80",
            "LOAD-BALANCER-FW 203.0.113.5,tcp:80",
            "LOAD-BALANCER-SOURCE-CIDR 203.0.113.5,tcp:80,172.18.0.0/16",
            "LOAD-BALANCER-SOURCE-IP 203.0.113.5,tcp:80,203.0.113.5",
        ],
    ),
    "a node port": (
        {"cluster": (1, 2), "node_port": 30080},
        {},
        ["TCP 10.96.0.1:80 -> 1 2", "TCP 172.18.0.2:30080 -> 1 2", "TCP 192.168.9.7:30080 -> 1 2"],
        [OWN, "NODE-PORT-TCP 30080"],
    ),
    "a node port, policy Local": (
        {"cluster": (1, 2), "local": (2,), "external_local": True, "node_port": 30080},
        {"node_port_ips": ("172.18.0.2",)},
        ["TCP 10.96.0.1:80 -> 1 2", "TCP 172.18.0.2:30080 -> 2"],
        [OWN, "NODE-PORT-TCP 30080", "NODE-PORT-LOCAL-TCP 30080"],
    ),
    "a UDP node port": (
        {"protocol": UDP, "cluster": (1,), "local": (1,), "external_local": True, "node_port": 30080},
        {"node_port_ips": ("172.18.0.2",)},
        ["UDP 10.96.0.1:80 -> 1", "UDP 172.18.0.2:30080 -> 1"],
        ["CLUSTER-IP 10.96.0.1,udp:80", "NODE-PORT-UDP 30080", "NODE-PORT-LOCAL-UDP 30080"],
    ),
    "an SCTP node port: a set of its own kind": (
        {"protocol": SCTP, "cluster": (1,), "local": (1,), "external_local": True, "node_port": 30080},
        {},
        ["SCTP 10.96.0.1:80 -> 1", "SCTP 172.18.0.2:30080 -> 1", "SCTP 192.168.9.7:30080 -> 1"],
        [
            "CLUSTER-IP 10.96.0.1,sctp:80",
            "NODE-PORT-SCTP-HASH 172.18.0.2,sctp:30080",
            "NODE-PORT-SCTP-HASH 192.168.9.7,sctp:30080",
            "NODE-PORT-LOCAL-SCTP-HASH 172.18.0.2,sctp:30080",
            "NODE-PORT-LOCAL-SCTP-HASH 192.168.9.7,sctp:30080",
        ],
    ),
    "a node port where no address of the node takes any": (
        {"cluster": (1,), "node_port": 30080, "health_check_node_port": 32000},
        {"node_port_ips": ()},
        ["TCP 10.96.0.1:80 -> 1"],
        [OWN, "HEALTH-CHECK-NODE-PORT 32000"],
    ),
    "affinity holds on every address": (
        {"cluster": (1,), "node_port": 30080, "external_ips": ("198.51.100.7",), "affinity_seconds": 60},
        {"node_port_ips": ("172.18.0.2",)},
        [
            "TCP 10.96.0.1:80 for 60 s flags 1 -> 1",
            "TCP 198.51.100.7:80 for 60 s flags 1 -> 1",
            "TCP 172.18.0.2:30080 for 60 s flags 1 -> 1",
        ],
        [OWN, "EXTERNAL-IP 198.51.100.7,tcp:80", "NODE-PORT-TCP 30080"],
    ),
    "mh hashes the source port as well": ({}, {"scheduler": "mh"}, ["TCP 10.96.0.1:80 mh flags 16 ->"], [OWN]),
    "mh with affinity": (
        {"affinity_seconds": 60},
        {"scheduler": "mh"},
        ["TCP 10.96.0.1:80 mh for 60 s flags 17 ->"],
        [OWN],
    ),
    "sh does not": ({}, {"scheduler": "sh"}, ["TCP 10.96.0.1:80 sh ->"], [OWN]),
    "one address as external IP and as load balancer's": (
        {"cluster": (1,), "external_ips": ("203.0.113.5",), "load_balancer_ips": ("203.0.113.5",)},
        {},
        ["TCP 10.96.0.1:80 -> 1", "TCP 203.0.113.5:80 -> 1"],
        [OWN, "EXTERNAL-IP 203.0.113.5,tcp:80", "LOAD-BALANCER 203.0.113.5,tcp:80"],
    ),
    "IPv6": (
        {"family": V6, "cluster": (1,), "all_local": (1,), "node_port": 30080},
        {"node_port_ips": ("fd00:18::2",)},
        ["TCP [fd00:96::1]:80 -> 1", "TCP [fd00:18::2]:30080 -> 1"],
        [
            "6-LOOP-BACK fd00:244:1::1,tcp:8080,fd00:244:1::1",
            "6-CLUSTER-IP fd00:96::1,tcp:80",
            "6-NODE-PORT-TCP 30080",
        ],
    ),
}


@pytest.mark.parametrize(("fields", "chosen", "expected_servers", "expected_entries"), PORTS.values(), ids=PORTS)
def test_a_port_needs(
    fields: dict[str, Any],
    chosen: dict[str, Any],
    expected_servers: list[str],
    expected_entries: list[str],
) -> None:
    made = port(**fields)
    fragment = render_port(made, node_settings(made.family, **chosen))
    assert servers(fragment) == expected_servers
    assert entries(fragment) == expected_entries


@pytest.mark.parametrize(
    ("fields", "addresses"),
    [
        pytest.param({}, ("10.96.0.1",), id="a cluster IP"),
        pytest.param({"node_port": 30080}, ("10.96.0.1",), id="node ports need none"),
        pytest.param(
            {"external_ips": ("198.51.100.7",), "load_balancer_ips": ("198.51.100.7", "203.0.113.5")},
            ("10.96.0.1", "198.51.100.7", "203.0.113.5"),
            id="each once",
        ),
        pytest.param({"external_ips": ("172.18.0.2",)}, ("10.96.0.1",), id="not what is the node's own"),
        pytest.param({"family": V6}, ("fd00:96::1",), id="IPv6"),
    ],
)
def test_addresses_are_bound_and_known_to_the_access_filter(fields: dict[str, Any], addresses: tuple[str, ...]) -> None:
    made = port(**fields)
    fragment = render_port(made, node_settings(made.family))
    assert fragment.addresses == addresses
    assert tuple(e.entry for e in fragment.entries if e.set.endswith("IPVS-IPS")) == addresses


def test_an_external_ip_that_is_the_nodes_own_is_served() -> None:
    fragment = render_port(port(cluster=(1,), external_ips=("172.18.0.2",)), node_settings())
    assert servers(fragment) == ["TCP 10.96.0.1:80 -> 1", "TCP 172.18.0.2:80 -> 1"]
    assert "EXTERNAL-IP 172.18.0.2,tcp:80" in entries(fragment)


BALANCED = {"cluster": (1,), "load_balancer_ips": ("203.0.113.5",)}
DROP = "-m ipvs --vproto tcp --vaddr 203.0.113.5 --vport 80 -j DROP"
RULES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "none without source ranges": (BALANCED, []),
    "a node outside them is kept out": (
        BALANCED | {"source_ranges": ("10.0.0.0/8",)},
        [f"-s 203.0.113.5/32 {DROP}"],
    ),
    "a node inside them is not": (
        BALANCED | {"source_ranges": ("172.18.0.0/16",), "node_in_source_ranges": True},
        [],
    ),
    "no load balancer, nothing to keep out of": ({"cluster": (1,), "source_ranges": ("10.0.0.0/8",)}, []),
    "IPv6": (
        {"family": V6, "protocol": SCTP, "load_balancer_ips": ("2001:db8::5",), "source_ranges": ("fd00::/16",)},
        ["-s 2001:db8::5/128 -m ipvs --vproto sctp --vaddr 2001:db8::5 --vport 80 -j DROP"],
    ),
}


@pytest.mark.parametrize(("fields", "expected"), RULES.values(), ids=RULES)
def test_rules_against_the_node_itself(fields: dict[str, Any], expected: list[str]) -> None:
    made = port(**fields)
    rules = render_port(made, node_settings(made.family)).rules
    assert [rule.rule for rule in rules] == expected
    assert {(rule.table, rule.chain) for rule in rules} <= {("filter", "KUBE-IPVS-OUT-FILTER")}
