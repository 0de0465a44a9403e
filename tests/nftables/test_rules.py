"""The rules of the node and of the chains that ports share, as nft's text has them."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.model.node_info import DetectLocal, DetectLocalBy, NodePortAddresses
from kproxy.model.plans import Family
from kproxy.modes.nftables.chains import balancer_chain
from kproxy.modes.nftables.names import Balancer, Kind
from kproxy.modes.nftables.render import Layout
from kproxy.modes.nftables.text import Writer, table_text
from tests.nftables.plans import NODE_IP, elements, layout_of, settings

FRONTEND = "ip daddr . meta l4proto . th dport"
MARK = "meta mark set meta mark | 0x00004000"
POD, NOT_POD = "ip saddr 10.244.0.0/16", "ip saddr != 10.244.0.0/16"
VETH = DetectLocal(DetectLocalBy.INTERFACE, "veth+")


def slots(count: int, offset: str = "") -> str:
    return f"dnat ip addr . port to {FRONTEND} . numgen random mod {count}{offset} map @endpoints"


def of_node(count: int, offset: str = "") -> str:
    key = "meta l4proto . th dport"
    return f"dnat ip addr . port to {key} . numgen random mod {count}{offset} map @node-port-endpoints"


CHAINS: list[tuple[str, Balancer, dict[str, Any], list[str]]] = [
    ("cluster-3", Balancer(Kind.CLUSTER, 3), {}, [f"{NOT_POD} {MARK}", slots(3)]),
    ("cluster-3", Balancer(Kind.CLUSTER, 3), {"masquerade_all": True}, [MARK, slots(3)]),
    ("cluster-3", Balancer(Kind.CLUSTER, 3), {"detect_local": DetectLocal()}, [slots(3)]),
    ("cluster-3", Balancer(Kind.CLUSTER, 3), {"detect_local": VETH}, [f'iifname != "veth*" {MARK}', slots(3)]),
    ("external-2", Balancer(Kind.EXTERNAL, 2), {}, [f"{MARK} {slots(2)}"]),
    (
        "external-2-firewall",
        Balancer(Kind.EXTERNAL, 2, firewall=True),
        {"masquerade_mark": 1 << 31},
        [f"{FRONTEND} . ip saddr != @sources drop", f"meta mark set meta mark | 0x80000000 {slots(2)}"],
    ),
    (
        "local-3-2",
        Balancer(Kind.LOCAL, 3, 2),
        {},
        [f"{POD} {slots(3)}", f"fib saddr type local {MARK} {slots(3)}", slots(2, " offset 3")],
    ),
    (
        "local-3-0",
        Balancer(Kind.LOCAL, 3),
        {"detect_local": DetectLocal()},
        [f"fib saddr type local {MARK} {slots(3)}", "drop"],
    ),
    ("node-2", Balancer(Kind.NODE_EXTERNAL, 2), {}, [f"{MARK} {of_node(2)}"]),
    (
        "node-local-2-1",
        Balancer(Kind.NODE_LOCAL, 2, 1),
        {"detect_local": DetectLocal(DetectLocalBy.INTERFACE, "cbr0")},
        [f'iifname "cbr0" {of_node(2)}', f"fib saddr type local {MARK} {of_node(2)}", of_node(1, " offset 2")],
    ),
]


@pytest.mark.parametrize(("name", "balancer", "fields", "rules"), CHAINS)
def test_a_chain_that_ports_share(name: str, balancer: Balancer, fields: dict[str, Any], rules: list[str]) -> None:
    chain = balancer_chain(balancer, settings(**fields))
    assert chain.name == name
    assert rules_of(chain.rules) == rules


def rules_of(rules: Any, family: Family = Family.IPV4) -> list[str]:
    writer = Writer(family)
    return [" ".join(writer.statement(s) for s in rule) for rule in rules]


def services(layout: Layout) -> list[str]:
    return rules_of(layout.chains["services"].rules, layout.family)


def test_a_new_connection_is_looked_up_as_an_address_and_then_as_a_node_port() -> None:
    assert services(layout_of()) == [
        f"{FRONTEND} vmap @services",
        "ip daddr @cluster-ips reject",
        "ip daddr != 127.0.0.0/8 fib daddr type local meta l4proto . th dport vmap @node-ports",
    ]


@pytest.mark.parametrize(("ips", "expected"), [(("127.0.0.1", NODE_IP[Family.IPV4]), [NODE_IP[Family.IPV4]]), ((), [])])
def test_node_ports_answer_only_where_they_should_and_never_on_loopback(
    ips: tuple[str, ...], expected: list[str]
) -> None:
    layout = layout_of(node_port_addresses=NodePortAddresses(False, ips))
    assert services(layout)[-1] == "ip daddr @node-port-addresses meta l4proto . th dport vmap @node-ports"
    assert elements(layout, "node-port-addresses") == expected


def test_unused_addresses_of_service_cidrs_are_dropped() -> None:
    layout = layout_of(service_cidrs=("10.96.0.0/16", "10.96.5.0/24"))
    assert services(layout)[2] == "ip daddr @service-cidrs drop"
    assert elements(layout, "service-cidrs") == ["10.96.0.0/16"]


@pytest.mark.parametrize("liberal", [True, False])
def test_invalid_packets_are_dropped_unless_tcp_is_liberal(liberal: bool) -> None:
    chains = layout_of(tcp_be_liberal=liberal).chains
    assert ("filter-forward" in chains) is not liberal


@pytest.mark.parametrize(("fully", "word"), [(True, "masquerade fully-random"), (False, "masquerade")])
def test_marked_packets_and_endpoints_that_reach_themselves_are_masqueraded(fully: bool, word: str) -> None:
    rules = rules_of(layout_of(random_fully=fully).chains["nat-postrouting"].rules)
    assert rules == [
        f"meta mark & 0x00004000 != 0 meta mark set meta mark & 0xffffbfff {word}",
        f"ct status dnat ip saddr . ip daddr @hairpins {word}",
    ]


def test_the_text_replaces_the_table_and_no_other() -> None:
    lines = table_text(layout_of()).splitlines()
    assert lines[:3] == ["add table ip kproxy", "delete table ip kproxy", "table ip kproxy {"]
    assert not [line for line in lines[3:] if "table" in line]


def test_ipv6_writes_ip6() -> None:
    layout = layout_of(family=Family.IPV6)
    assert services(layout)[2] == ("ip6 daddr != ::1/128 fib daddr type local meta l4proto . th dport vmap @node-ports")
    assert "type ipv6_addr . inet_proto . inet_service : verdict" in table_text(layout)
