"""Which rules single Service ports and the node get."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace as with_fields

from kproxy.model.node_info import NodePortAddresses
from kproxy.model.plans import Endpoint, Family, PortKey, Protocol, ServicePlan
from kproxy.modes.userspace.listeners import Listener, Reach
from kproxy.modes.userspace.render import Portal, Settings, listeners, render_base, render_port, unserved
from kproxy.modes.xtables.rules import GUARD
from tests.plans import build_plan
from tests.userspace.portal_plans import BY_CIDR, BY_INTERFACE, portal

V4, V6 = Family.IPV4, Family.IPV6
PLAIN = Settings(V4, "172.30.0.11")
WEB = "KUBE-EXT-CDGGSHYLG3RE2FKL"
CLUSTER_IP = '-d 10.96.0.119/32 -p tcp -m comment --comment "default/web:http cluster IP" -m tcp --dport 80'
EXTERNAL = '-d 198.51.100.7/32 -p tcp -m comment --comment "default/web:http external IP" -m tcp --dport 80'
BALANCER = '-d 203.0.113.5/32 -p tcp -m comment --comment "default/web:http loadbalancer IP" -m tcp --dport 80'
NODE_PORT = '-p tcp -m comment --comment "default/web:http" -m tcp --dport 30080'
PODS = '-s 10.244.0.0/16 -p tcp -m comment --comment "pod traffic for default/web:http external destinations"'
OTHERS = '-p tcp -m comment --comment "default/web:http external destinations"'
C, L, X = 40000, 40001, WEB  # the proxy port of policy Cluster, that of policy Local, the port's own chain

Rules = dict[str, list[str]]


def nat(plan: ServicePlan, settings: Settings = BY_CIDR) -> Rules:
    """The port's rules in the nat table by chain, those of its own chains with them."""
    fragment = render_port(portal(plan), settings)
    found: Rules = {name: list(rules) for name, rules in fragment.chains}
    for rule in fragment.shared:
        if rule.table == "nat":
            found.setdefault(rule.chain, []).append(rule.rule)
    return found


def filters(shown: Portal, settings: Settings = BY_CIDR) -> Rules:
    found: Rules = {}
    for rule in render_port(shown, settings).shared:
        if rule.table == "filter" and rule.chain != "KUBE-PROXY-PORTS":
            found.setdefault(rule.chain, []).append(rule.rule)
    return found


def container(to: int | str) -> str:
    return f"-j {to}" if to == X else f"-j REDIRECT --to-ports {to}"


def host(to: int) -> str:
    return f"-j DNAT --to-destination 172.30.0.11:{to}"


OUTSIDE = {"external_ips": ("198.51.100.7",), "external_local": True}
RANGES = {"load_balancer_ips": ("203.0.113.5",), "source_ranges": ("192.0.2.0/24", "172.30.0.0/16", "172.30.0.0/24")}
NODE_IN_RANGES = RANGES | {"source_ranges": ("172.30.0.0/16",), "node_in_source_ranges": True}
LOCAL_TOO: dict[str, Any] = {"local": (1,), "external_local": True}


@pytest.mark.parametrize(
    ("fields", "portals", "own"),
    [  # portals: what a packet matches, where those that come in are led, where the node's own are led
        pytest.param({}, [(CLUSTER_IP, C, C)], {}, id="cluster IP"),
        pytest.param(
            {"cluster": (), "local": (1,), "internal_local": True},
            [(CLUSTER_IP, L, L)],
            {},
            id="cluster IP, only local endpoints",
        ),
        pytest.param({"cluster": ()}, [], {}, id="no endpoints"),
        pytest.param({"cluster": (), "internal_local": True, "has_endpoints": True}, [], {}, id="no local endpoints"),
        pytest.param({"node_port": 30080}, [(CLUSTER_IP, C, C), (NODE_PORT, C, C)], {}, id="node port"),
        pytest.param(
            {"node_port": 30080, "internal_local": True, "local": (1,)},
            [(CLUSTER_IP, L, L), (NODE_PORT, C, C)],
            {},
            id="inside Local, outside Cluster",
        ),
        pytest.param(
            OUTSIDE | {"local": (1,)},
            [(CLUSTER_IP, C, C), (EXTERNAL, X, C)],
            {PODS: C, OTHERS: L},
            id="outside Local",
        ),
        pytest.param(
            OUTSIDE,
            [(CLUSTER_IP, C, C), (EXTERNAL, X, C)],
            {PODS: C},
            id="outside Local, no local endpoints: pods and the node still go elsewhere",
        ),
        pytest.param(
            RANGES,
            [(CLUSTER_IP, C, C), *((f"-s {cidr} {BALANCER}", C, C) for cidr in ("172.30.0.0/16", "192.0.2.0/24"))],
            {},
            id="source ranges, without those within others",
        ),
        pytest.param(
            NODE_IN_RANGES | LOCAL_TOO,
            [
                (CLUSTER_IP, C, C),
                (f"-s 172.30.0.0/16 {BALANCER}", X, C),
                (f"-s 203.0.113.5/32 {BALANCER}", None, C),
            ],
            {PODS: C, OTHERS: L},
            id="source ranges that hold the node, outside Local",
        ),
    ],
)
def test_where_a_port_is_led(
    fields: dict[str, Any], portals: list[tuple[str, int | str | None, int]], own: dict[str, int]
) -> None:
    expected: Rules = {WEB: [f"{match} {container(to)}" for match, to in own.items()]} if own else {}
    for match, coming_in, from_node in portals:
        chains = "KUBE-NODEPORT" if match == NODE_PORT else "KUBE-PORTALS"
        if coming_in:
            expected.setdefault(f"{chains}-CONTAINER", []).append(f"{match} {container(coming_in)}")
        expected.setdefault(f"{chains}-HOST", []).append(f"{match} {host(from_node)}")
    assert nat(build_plan(**fields)) == expected


def test_pods_are_told_by_their_interface_too() -> None:
    rules = nat(build_plan(node_port=30080, **LOCAL_TOO), BY_INTERFACE)
    assert rules["KUBE-NODEPORT-CONTAINER"] == [f"{NODE_PORT} -j {WEB}"]
    assert rules[WEB][0].startswith("-i veth+ -p tcp ")


def test_where_pods_cannot_be_told_apart_policy_local_holds_for_all_that_comes_in() -> None:
    rules = nat(build_plan(node_port=30080, **LOCAL_TOO), PLAIN)
    assert rules["KUBE-NODEPORT-CONTAINER"] == [f"{NODE_PORT} {container(L)}"]
    assert WEB not in rules


def test_ipv6_has_its_lengths_and_brackets() -> None:
    pod = (Endpoint("fd00:244::1", 8080),)
    key = PortKey("default", "web", "http", Protocol.UDP)
    plan = ServicePlan(
        key=key, family=V6, cluster_ip="fd00:96::1", port=53, cluster=pod, reachable=pod, has_endpoints=True,
        load_balancer_ips=("2001:db8::1",), source_ranges=("fd00:30::/64",), node_in_source_ranges=True,
    )  # fmt: skip
    hosts = nat(plan, Settings(V6, "fd00:30::11"))["KUBE-PORTALS-HOST"]
    assert [rule.partition(" -p ")[0] for rule in hosts] == [
        "-d fd00:96::1/128",
        "-s fd00:30::/64 -d 2001:db8::1/128",
        "-s 2001:db8::1/128 -d 2001:db8::1/128",
    ]
    assert all(rule.endswith("-j DNAT --to-destination [fd00:30::11]:40000") for rule in hosts)


# ---------------------------------------------------------------- the filter table

REJECTED = '-m comment --comment "default/web:http has no endpoints" -m tcp --dport 80 -j REJECT'
DROPPED = '-m comment --comment "default/web:http has no local endpoints" -m tcp --dport 80 -j DROP'


@pytest.mark.parametrize(
    ("fields", "rules"),
    [
        pytest.param({}, {}, id="served"),
        pytest.param({"cluster": ()}, {"KUBE-SERVICES": [f"-d 10.96.0.119/32 -p tcp {REJECTED}"]}, id="no endpoints"),
        pytest.param(
            {"cluster": (), "internal_local": True, "has_endpoints": True},
            {"KUBE-SERVICES": [f"-d 10.96.0.119/32 -p tcp {DROPPED}"]},
            id="no local endpoints",
        ),
        pytest.param(
            {"node_port": 30080, "external_local": True},
            {
                "KUBE-EXTERNAL-SERVICES": [
                    '-p tcp -m comment --comment "default/web:http has no local endpoints" -m addrtype --dst-type LOCAL'
                    " -m tcp --dport 30080 -j DROP"
                ],
                "KUBE-NODEPORT-NON-LOCAL": [
                    '-p tcp -m comment --comment "default/web:http" -m tcp --dport 40000 -m conntrack --ctstate NEW'
                    " -j ACCEPT"
                ],
            },
            id="node port without local endpoints",
        ),
        pytest.param(
            {
                "load_balancer_ips": ("203.0.113.5",),
                "source_ranges": ("192.0.2.0/24",),
                "health_check_node_port": 32000,
            },
            {
                "KUBE-NODEPORTS": [
                    '-p tcp -m comment --comment "default/web:http health check node port" -m tcp --dport 32000'
                    " -j ACCEPT"
                ],
                "KUBE-PROXY-FIREWALL": [
                    "-d 203.0.113.5/32 -p tcp -m comment --comment "
                    '"default/web:http traffic not accepted by KUBE-FW-CDGGSHYLG3RE2FKL" -m tcp --dport 80 -j DROP'
                ],
            },
            id="source ranges, health check",
        ),
    ],
)
def test_what_does_not_get_through(fields: dict[str, Any], rules: Rules) -> None:
    assert filters(portal(build_plan(**fields))) == rules


def test_node_ports_pass_a_closed_input_chain_at_each_proxy_port_that_they_lead_to() -> None:
    plan = build_plan(node_port=30080, **LOCAL_TOO)
    accepted = {PLAIN: ["40001"], BY_CIDR: ["40000", "40001"]}
    for settings, ports in accepted.items():
        rules = filters(portal(plan), settings)["KUBE-NODEPORT-NON-LOCAL"]
        assert [rule.split("--dport ")[1].split()[0] for rule in rules] == ports


@pytest.mark.parametrize("external_local", [False, True])
def test_every_proxy_port_is_for_what_portals_lead_to_it(external_local: bool) -> None:
    plan = build_plan("dns", Protocol.UDP, node_port=30053, external_local=external_local, local=(1,))
    rules = [rule.rule for rule in render_port(portal(plan), BY_CIDR).shared if rule.chain == "KUBE-PROXY-PORTS"]
    head = '-p udp -m comment --comment "default/dns:http proxy port" -m udp --dport'
    assert rules == [f"{head} 40000 -j REJECT", *([f"{head} 40001 -j REJECT"] if external_local else [])]


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.SCTP])
def test_a_port_without_its_listener_is_refused_like_one_without_endpoints(protocol: Protocol) -> None:
    outside: dict[str, Any] = {
        "node_port": 30080,
        "load_balancer_ips": ("203.0.113.5",),
        "source_ranges": ("10.0.0.0/8",),
    }
    plan = build_plan(protocol=protocol, external_local=True, local=(1,), **outside)
    without = build_plan(protocol=protocol, external_local=True, cluster=(), **outside)
    assert render_port(Portal(plan), BY_CIDR) == render_port(Portal(without), BY_CIDR)


def test_a_port_without_one_of_its_listeners_serves_by_the_other() -> None:
    plan = build_plan(node_port=30080, **LOCAL_TOO)
    no_local = with_fields(plan, local=())
    assert render_port(Portal(plan, cluster=40000), BY_CIDR) == render_port(Portal(no_local, cluster=40000), BY_CIDR)


# ---------------------------------------------------------------- listeners


@pytest.mark.parametrize(
    ("fields", "reaches"),
    [
        ({}, {Reach.CLUSTER}),
        ({"cluster": ()}, set()),
        ({"cluster": (1,), "local": (1,), "internal_local": True}, {Reach.LOCAL}),
        ({"local": (1,), "internal_local": True, "node_port": 30080}, {Reach.CLUSTER, Reach.LOCAL}),
        ({"local": (1,), "external_local": True, "node_port": 30080}, {Reach.CLUSTER, Reach.LOCAL}),
        ({"local": (1,), "external_local": True}, {Reach.CLUSTER}),
        ({"external_local": True, "node_port": 30080}, {Reach.CLUSTER}),
        ({"protocol": Protocol.SCTP}, set()),
    ],
)
def test_which_listeners_a_port_needs(fields: dict[str, Any], reaches: set[Reach]) -> None:
    assert set(listeners(build_plan(**fields))) == reaches


def test_a_listener_has_its_policys_endpoints_and_the_affinity() -> None:
    plan = build_plan(local=(2,), external_local=True, node_port=30080, affinity_seconds=60)
    assert listeners(plan) == {
        Reach.CLUSTER: Listener(V4, plan.cluster, 60),
        Reach.LOCAL: Listener(V4, plan.local, 60),
    }


def test_sctp_is_said_to_be_unserved_where_somebody_would_serve_it() -> None:
    assert "SCTP" in unserved(build_plan(protocol=Protocol.SCTP))
    assert unserved(build_plan(protocol=Protocol.SCTP, cluster=())) == ""
    assert unserved(build_plan()) == ""


# ---------------------------------------------------------------- the node

ONLY = NodePortAddresses(False, ("127.0.0.1", "172.30.0.11"), True)
ONLY_V6 = NodePortAddresses(False, ("::1", "fd00:30::11"), False)
LOCAL = "-m addrtype --dst-type LOCAL"


@pytest.mark.parametrize(
    ("settings", "container", "host"),
    [
        pytest.param({}, [LOCAL], [LOCAL], id="everywhere"),
        pytest.param(
            {"localhost_node_ports": False}, [LOCAL], [f"! -d 127.0.0.0/8 {LOCAL}"], id="everywhere but on localhost"
        ),
        pytest.param(
            {"localhost_node_ports": False, "family": V6},
            [LOCAL],
            [f"! -d ::1/128 {LOCAL}"],
            id="IPv6, not on localhost",
        ),
        pytest.param({"family": V6}, [LOCAL], [LOCAL], id="IPv6, localhost too"),
        pytest.param(
            {"node_port_addresses": ONLY},
            ["-d 172.30.0.11/32"],
            ["-d 127.0.0.1/32", "-d 172.30.0.11/32"],
            id="some addresses",
        ),
        pytest.param(
            {"node_port_addresses": ONLY, "localhost_node_ports": False},
            ["-d 172.30.0.11/32"],
            ["-d 172.30.0.11/32"],
            id="some addresses, not localhost",
        ),
        pytest.param(
            {"node_port_addresses": ONLY_V6, "family": V6},
            ["-d fd00:30::11/128"],
            ["-d ::1/128", "-d fd00:30::11/128"],
            id="some IPv6 addresses",
        ),
        pytest.param({"node_port_addresses": NodePortAddresses(False)}, [], [], id="nowhere"),
    ],
)
def test_where_node_ports_answer(settings: dict[str, Any], container: list[str], host: list[str]) -> None:
    jumps = render_base(Settings(**{"family": V4, "node_ip": "172.30.0.11", **settings})).jumps
    for chain, side, matches in (("PREROUTING", "CONTAINER", container), ("OUTPUT", "HOST", host)):
        portals, *node_ports = jumps["nat", chain]
        assert portals.endswith(f"-j KUBE-PORTALS-{side}")
        assert [rule.partition(" -m comment")[0] for rule in node_ports] == matches
        assert all(rule.endswith(f"-j KUBE-NODEPORT-{side}") for rule in node_ports)


def test_the_input_chain_refuses_what_no_portal_led_and_accepts_node_ports() -> None:
    *_, direct, accepting = render_base(PLAIN).jumps["filter", "INPUT"]
    assert "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT" in direct
    assert direct.endswith("-j KUBE-PROXY-PORTS")
    assert accepting == (
        '-m comment --comment "Ensure that non-local NodePort traffic can flow" -j KUBE-NODEPORT-NON-LOCAL'
    )


def test_localhost_stays_guarded_as_iptables_mode_may_have_opened_it() -> None:
    assert render_base(PLAIN).joint == {("filter", "KUBE-FIREWALL"): (GUARD,)}
    assert render_base(Settings(V6, "fd00::1")).joint == {("filter", "KUBE-FIREWALL"): ()}
