"""The cost of a change depends on the change, and not on the number of Services."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kproxy.model.plans import PortKey, ServicePlan
from tests.ipvs_mode.rigs import Rig
from tests.plans import Plans, build_plan, by_key

NEW = build_plan("new", node_port=30080, load_balancer_ips=("203.0.113.5",), source_ranges=("10.0.0.0/8",))


def services(count: int) -> Plans:
    plans = (
        build_plan(f"s{n}", cluster_ip=f"10.97.{n // 250}.{1 + n % 250}", node_port=31000 + n) for n in range(count)
    )
    return by_key(*plans, build_plan("first", cluster_ip="10.98.0.1"))


def first(**fields: Any) -> ServicePlan:
    return build_plan("first", cluster_ip="10.98.0.1", **fields)


CHANGES: dict[str, Callable[[Plans], tuple[Plans, PortKey]]] = {
    "a Service comes": lambda plans: (plans | by_key(NEW), NEW.key),
    "a Service goes": lambda plans: ({k: p for k, p in plans.items() if k != first().key}, first().key),
    "an endpoint comes": lambda plans: (plans | by_key(first(cluster=(1, 2, 3))), first().key),
    "an endpoint goes": lambda plans: (plans | by_key(first(cluster=(1,))), first().key),
    "affinity": lambda plans: (plans | by_key(first(affinity_seconds=10)), first().key),
}


def cost(count: int, change: Callable[[Plans], tuple[Plans, PortKey]]) -> tuple[int, ...]:
    rig = Rig()
    plans = services(count)
    rig.apply(plans)
    kernels = rig.ipvs, rig.sets, rig.addresses
    before = (rig.asked(), *rig.written(), *(each.lists for each in kernels), rig.ipvs.reads)
    wanted, key = change(plans)
    outcome = rig.apply(wanted, [key])
    rig.dataplane.housekeeping()
    after = (rig.asked(), *rig.written(), *(each.lists for each in kernels), rig.ipvs.reads)
    assert outcome.transactions > 0
    return tuple(new - old for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_cost_does_not_depend_on_the_number_of_services(change: Callable[[Plans], tuple[Plans, PortKey]]) -> None:
    few, many = cost(2, change), cost(60, change)
    assert few == many


def test_an_endpoint_is_one_operation() -> None:
    wanted: Plans = by_key(build_plan())
    rig = Rig()
    rig.apply(wanted)
    asked = rig.asked()
    more = build_plan(cluster=(1, 2, 3))
    outcome = rig.apply(by_key(more), [more.key])
    assert (rig.asked() - asked, outcome.transactions) == (1, 1)


def test_a_port_that_shares_its_address_takes_only_its_own_along() -> None:
    web, tls = build_plan("web", port=80), build_plan("web", port=443)
    rig = Rig()
    rig.apply(by_key(web, tls))
    rig.apply(by_key(web), [tls.key])
    rig.assert_holds(by_key(web))
    assert rig.addresses.removed == []


def test_touched_ports_that_are_the_same_cost_nothing() -> None:
    rig = Rig()
    plans = services(5)
    rig.apply(plans)
    written = rig.written()
    outcome = rig.apply(plans, plans.keys())
    assert rig.written() == written
    assert outcome.transactions == 0
    assert outcome.rules_total == rig.apply(plans).rules_total


def test_the_first_entry_of_a_set_brings_its_rules_and_the_last_takes_them_along() -> None:
    rig = Rig()
    rig.apply(services(2))
    assert "--match-set KUBE-LOAD-BALANCER-FW" not in rig.tables.save()
    rig.apply(services(2) | by_key(NEW), [NEW.key])
    assert "--match-set KUBE-LOAD-BALANCER-FW" in rig.tables.save()
    rig.apply(services(2), [NEW.key])
    rig.assert_holds(services(2))


def test_a_ports_own_rules_change_without_a_look_at_the_others() -> None:
    fields: dict[str, Any] = {"load_balancer_ips": ("203.0.113.5",), "source_ranges": ("172.30.0.0/24",)}
    first, second = build_plan("a", **fields), build_plan("b", port=53, **fields)
    rig = Rig()
    rig.apply(by_key(first, second))
    for wanted in (by_key(build_plan("a"), second), by_key(first, second)):
        saves = rig.tables.saves
        assert rig.apply(wanted, [first.key]).transactions > 0
        assert rig.tables.saves == saves
        rig.assert_holds(wanted)
