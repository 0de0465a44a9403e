"""Rules for single Service ports and for the node, where the kube-proxy cases have no example."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.model.node_info import DetectLocal, DetectLocalBy, NodePortAddresses
from kproxy.model.plans import Endpoint, Family, PortKey, Protocol, ServicePlan
from kproxy.modes.iptables.render import Settings, render_base, render_port, text
from kproxy.modes.xtables import names
from tests.parity import compare

V4, V6 = Family.IPV4, Family.IPV6
PODS = DetectLocal(DetectLocalBy.CIDR, "10.244.0.0/16")
CHAINS_OF_WEB = "CDGGSHYLG3RE2FKL"

Plan = Callable[..., ServicePlan]


def shared(plan: ServicePlan, name: str, **settings: Any) -> list[str]:
    return [r.rule for r in render_port(plan, Settings(plan.family, **settings)).shared if r.chain == name]


def base(table: str, name: str, **settings: Any) -> list[str]:
    rules = render_base(Settings(**{"family": V4, **settings}))
    return [rule for part in (rules.owned, rules.shared, rules.joint) for rule in part.get((table, name), ())]


# ---------------------------------------------------------------- counters of the kernel


@pytest.mark.parametrize(
    ("settings", "counted"),
    [
        pytest.param({"nfacct": True}, True, id="counted"),
        pytest.param({"nfacct": False}, False, id="no nfacct in the kernel"),
        pytest.param({"nfacct": True, "localhost_node_ports": False}, False, id="no node ports on localhost"),
        pytest.param(
            {"nfacct": True, "node_port_addresses": NodePortAddresses(False, ("172.18.0.2",), False)},
            False,
            id="node ports on other addresses only",
        ),
    ],
)
def test_node_ports_on_localhost_are_counted(plan: Plan, settings: dict[str, Any], counted: bool) -> None:
    rules = shared(plan(node_port=30080), names.NODE_PORTS, **settings)
    plain = '-p tcp -m comment --comment "default/web:http" -m tcp --dport 30080'
    jump = f"-j KUBE-EXT-{CHAINS_OF_WEB}"
    counter = f"-d 127.0.0.0/8 {plain} -m nfacct --nfacct-name localhost_nps_accepted_pkts {jump}"
    assert rules == [*([counter] if counted else []), f"{plain} {jump}"]


def test_ipv6_has_no_node_ports_on_localhost_to_count(plan: Plan) -> None:
    assert len(shared(plan(family=V6, cluster_ip="fd00::1", node_port=30080), names.NODE_PORTS, nfacct=True)) == 1


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, ["-m conntrack --ctstate INVALID -j DROP"]),
        (
            {"nfacct": True},
            ["-m conntrack --ctstate INVALID -m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j DROP"],
        ),
        ({"tcp_be_liberal": True}, []),
        ({"tcp_be_liberal": True, "nfacct": True}, []),
    ],
)
def test_invalid_packets_are_dropped_unless_conntrack_is_liberal(settings: dict[str, Any], rule: list[str]) -> None:
    assert base("filter", names.FORWARD, **settings)[:-2] == rule


# ---------------------------------------------------------------- the node's own rules


@pytest.mark.parametrize(("random_fully", "end"), [(True, "-j MASQUERADE --random-fully"), (False, "-j MASQUERADE")])
def test_masquerading(random_fully: bool, end: str) -> None:
    rules = base("nat", names.POSTROUTING, random_fully=random_fully, masquerade_mark=0x80000000)
    assert rules[0] == "-m mark ! --mark 0x80000000/0x80000000 -j RETURN"
    assert rules[1] == "-j MARK --set-xmark 0x80000000/0x0"
    assert rules[2].endswith(end)
    assert base("nat", names.MARK_MASQ, masquerade_mark=1) == ["-j MARK --set-xmark 0x1/0x1"]


@pytest.mark.parametrize(
    ("settings", "matches"),
    [
        pytest.param(
            {"family": V6, "node_port_addresses": NodePortAddresses(False, ("::1", "fd00::2"), False)},
            ["-d fd00::2/128 "],
            id="IPv6 addresses",
        ),
        pytest.param({"node_port_addresses": NodePortAddresses(False, (), False)}, [], id="nowhere"),
    ],
)
def test_where_node_ports_answer(settings: dict[str, Any], matches: list[str]) -> None:
    rules = base("nat", names.SERVICES, **settings)
    assert [rule.partition("-m comment")[0] for rule in rules] == matches
    assert all(rule.endswith("-j KUBE-NODEPORTS") for rule in rules)


# ---------------------------------------------------------------- comments


def test_a_large_cluster_has_no_comments_in_a_ports_own_chains(plan: Plan) -> None:
    web = plan(node_port=30080, affinity_seconds=60, external_local=True, local=(1,))
    loud, quiet = (render_port(web, Settings(V4, detect_local=PODS, comments=c)) for c in (True, False))
    assert loud.shared == quiet.shared
    assert [name for name, _ in loud.chains] == [name for name, _ in quiet.chains]

    def without_comments(rules: tuple[str, ...]) -> list[str]:
        return [re.sub(r'-m comment --comment "(?!default/web:http cluster IP)[^"]*" ', "", rule) for rule in rules]

    for (_, with_comments), (_, rules) in zip(loud.chains, quiet.chains, strict=True):
        assert list(rules) == without_comments(with_comments)
    assert loud != quiet


# ---------------------------------------------------------------- whole tables


@given(st.data(), st.booleans())
def test_every_jump_has_an_existing_target(
    clusters: st.SearchStrategy[dict[PortKey, ServicePlan]], data: st.DataObject, pods: bool
) -> None:
    settings = Settings(V4, detect_local=PODS if pods else DetectLocal())
    plans = data.draw(clusters)
    whole = compare.canonical(text(render_base(settings), ((k, render_port(p, settings)) for k, p in plans.items())))
    for table, chains in whole.items():
        jumps = set(re.findall(r"'-j', \('(KUBE-[^']+)'", str(chains)))
        assert jumps, table
        assert jumps <= set(chains)


def test_the_text_does_not_depend_on_the_order_of_the_ports(plan: Plan) -> None:
    settings = Settings(V4)
    fragments = [
        (p.key, render_port(p, settings)) for p in (plan("a"), plan("b", node_port=30080), plan("c", cluster=()))
    ]
    assert text(render_base(settings), fragments) == text(render_base(settings), fragments[::-1])


# ---------------------------------------------------------------- names

LONGEST = 28  # XT_EXTENSION_MAXNAMELEN of linux/netfilter/x_tables.h, with its final zero byte
label = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", max_size=63)
keys = st.builds(PortKey, label, label, label, st.sampled_from(Protocol))


@given(keys, keys)
def test_names_fit_and_differ(one: PortKey, other: PortKey) -> None:
    def all_of(key: PortKey) -> set[str]:
        chains = names.PortChains(key)
        endpoint = names.endpoint_chain(key, Endpoint("fd00::1", 65535))
        return {chains.cluster, chains.local, chains.external, chains.firewall, endpoint}

    assert len(all_of(one)) == 5
    assert all(len(name) < LONGEST for name in all_of(one))
    # What a chain is named after is the text of the key, as in kube-proxy, and the protocol.
    same = str(one) == str(other) and one.protocol == other.protocol
    assert same is bool(all_of(one) & all_of(other))
