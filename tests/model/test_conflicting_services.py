"""Services that ask for one node port or one external address: noticed whatever the order in which they come and go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kproxy.model.conflicts import Conflicts
from kproxy.model.plans import Family, PortKey, Protocol, ServicePlan


def plan(
    name: str,
    port: str = "",
    protocol: Protocol = Protocol.TCP,
    node_port: int = 0,
    external: tuple[str, ...] = (),
    balancer: tuple[str, ...] = (),
    check: int = 0,
    at: int = 80,
) -> ServicePlan:
    return ServicePlan(
        key=PortKey("shop", name, port, protocol),
        family=Family.IPV4,
        cluster_ip="10.96.0.1",
        port=at,
        node_port=node_port,
        external_ips=external,
        load_balancer_ips=balancer,
        health_check_node_port=check,
    )


def after(*plans: ServicePlan) -> list[tuple[str, tuple[str, ...]]]:
    conflicts = Conflicts()
    for each in plans:
        conflicts.update({each.key: (None, each)})
    return sorted((c.where, c.claimants) for c in conflicts.found)


@pytest.mark.parametrize(
    ("plans", "found"),
    [
        ([plan("a"), plan("b")], []),  # one cluster IP is not for this part to judge
        ([plan("a", node_port=30080), plan("b", node_port=30081)], []),
        ([plan("a", node_port=30080), plan("b", node_port=30080)], [("node port 30080/TCP", ("shop/a", "shop/b"))]),
        ([plan("a", node_port=30080), plan("b", protocol=Protocol.UDP, node_port=30080)], []),
        (
            [plan("a", "x", node_port=30080), plan("a", "y", node_port=30080)],
            [("node port 30080/TCP", ("shop/a:x", "shop/a:y"))],
        ),
        (
            [plan("b", external=("203.0.113.1",)), plan("a", balancer=("203.0.113.1",))],
            [("203.0.113.1:80/TCP", ("shop/a", "shop/b"))],
        ),
        ([plan("a", external=("203.0.113.1",)), plan("b", external=("203.0.113.1",), at=81)], []),
        ([plan("a", external=("203.0.113.1",), balancer=("203.0.113.1",))], []),
        ([plan("a", "x", check=31000), plan("a", "y", check=31000)], []),  # one Service, one health check
        (
            [plan("a", check=31000), plan("b", check=31000)],
            [("node port 31000/TCP", ("shop/a (health checks)", "shop/b (health checks)"))],
        ),
        (
            [plan("a", check=31000), plan("a", "x", node_port=31000)],
            [("node port 31000/TCP", ("shop/a (health checks)", "shop/a:x"))],
        ),
        (
            [plan("a", external=("2001:db8::1",)), plan("b", external=("2001:db8::1",))],
            [("[2001:db8::1]:80/TCP", ("shop/a", "shop/b"))],
        ),
    ],
)
def test_what_counts_as_a_conflict(plans: list[ServicePlan], found: list[tuple[str, tuple[str, ...]]]) -> None:
    assert after(*plans) == found
    assert after(*reversed(plans)) == found


def test_a_conflict_is_told_once_and_again_when_another_joins() -> None:
    conflicts = Conflicts()
    a, b, c = (plan(name, node_port=30080) for name in "abc")
    assert conflicts.update({a.key: (None, a)}) == []
    assert [x.claimants for x in conflicts.update({b.key: (None, b)})] == [("shop/a", "shop/b")]
    moved = replace(b, cluster_ip="10.96.0.9")
    assert conflicts.update({b.key: (b, moved)}) == []
    assert [x.claimants for x in conflicts.update({c.key: (None, c)})] == [("shop/a", "shop/b", "shop/c")]
    assert [x.claimants for x in conflicts.update({a.key: (a, None)})] == [("shop/b", "shop/c")]
    assert conflicts.update({b.key: (moved, replace(moved, node_port=30081))}) == []
    assert conflicts.found == ()


def test_a_service_may_hand_its_port_to_another_in_one_change() -> None:
    conflicts = Conflicts()
    a, b = plan("a", node_port=30080), plan("b", node_port=30080)
    conflicts.update({a.key: (None, a)})
    assert conflicts.update({b.key: (None, b), a.key: (a, None)}) == []


PLANS = st.builds(
    plan,
    st.sampled_from("abc"),
    st.sampled_from(["", "x"]),
    node_port=st.sampled_from([0, 1, 2]),
    external=st.sampled_from([(), ("203.0.113.1",), ("203.0.113.1", "203.0.113.2")]),
    balancer=st.sampled_from([(), ("203.0.113.2",)]),
    check=st.sampled_from([0, 1]),
)


@given(st.lists(st.lists(st.tuples(PLANS, st.booleans()), max_size=4), max_size=8))
def test_any_history_ends_where_its_last_state_begins(batches: list[list[tuple[ServicePlan, bool]]]) -> None:
    conflicts, held = Conflicts(), dict[PortKey, ServicePlan]()
    for batch in batches:
        touched: dict[PortKey, tuple[ServicePlan | None, ServicePlan | None]] = {}
        for each, gone in batch:
            touched[each.key] = (held.get(each.key), None if gone else each)
        conflicts.update(touched)
        for key, (_, new) in touched.items():
            held.pop(key, None)
            if new:
                held[key] = new
    assert sorted((c.where, c.claimants) for c in conflicts.found) == after(*held.values())
