"""A refusal costs the ports that need what was refused; after a failure the table is read again."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import pytest

from kproxy.errors import KernelError
from kproxy.model.plans import Family, ServicePlan
from kproxy.modes.nftables.names import TABLE
from kproxy.netfilter.objects import Element
from kproxy.netfilter.operations import AddChain, AddElements, AddSet, AddTable, Operation
from tests.fakes.nftables import accept
from tests.nftables.plans import build_plan, settings
from tests.nftables_mode.rigs import Rig

Refuse = Callable[[Operation, Element | None], int]
WEB, DNS, SHOP = (build_plan(name, cluster=(n, n + 1)) for n, name in ((1, "web"), (3, "dns"), (5, "shop")))
STICKY = build_plan("sticky", affinity_seconds=60)
LATE = build_plan("zz-late", cluster=(8,))


def elements_of(plan: ServicePlan) -> Refuse:
    def refuse(operation: Operation, element: Element | None) -> int:
        return errno.ENOSPC if isinstance(operation, AddElements) and element and plan.cluster_ip in element.key else 0

    return refuse


def own_sets(operation: Operation, element: Element | None) -> int:
    return errno.ENOMEM if isinstance(operation, AddSet) and operation.set.timeout else 0


def own_chains(operation: Operation, element: Element | None) -> int:
    return errno.EMLINK if isinstance(operation, AddChain) and operation.chain.startswith("affinity") else 0


REFUSALS = [
    pytest.param(WEB, elements_of(WEB), id="elements"),
    pytest.param(STICKY, own_sets, id="a set"),
    pytest.param(STICKY, own_chains, id="a chain"),
]


@pytest.mark.parametrize(("bad", "refuse"), REFUSALS)
@pytest.mark.parametrize("at_start", [True, False])
def test_the_others_are_served(bad: ServicePlan, refuse: Refuse, at_start: bool) -> None:
    rig = Rig()
    if not at_start:
        rig.check()
    rig.kernel.refuse = refuse
    rig.plans = {plan.key: plan for plan in (bad, DNS, SHOP)}
    outcome = rig.check() if at_start else rig.want(bad, DNS, SHOP)
    assert list(outcome.rejected) == [bad.key]
    assert "\n" not in outcome.rejected[bad.key]
    assert len(outcome.refusals) == 1
    assert rig.held() == rig.wanted(without=[bad.key])
    assert list(rig.want(build_plan("new", cluster=(9,))).rejected) == [bad.key]  # it stays so until it is tried again
    rig.kernel.refuse = accept
    outcome = rig.check()
    assert (outcome.rejected, outcome.repaired) == ({}, False)
    assert rig.held() == rig.wanted()


def without_a_name(*bad: ServicePlan) -> Callable[[Sequence[Operation]], int]:
    """Refuses transactions that add the verdict of any of BAD, and does not say because of what."""

    def refuse(operations: Sequence[Operation]) -> int:
        added = (e for op in operations if isinstance(op, AddElements) for e in op.elements)
        ips = {plan.cluster_ip for plan in bad}
        return errno.E2BIG if any(e.set == "services" and e.key[0] in ips for e in added) else 0

    return refuse


@pytest.mark.parametrize("bad", [(WEB,), (WEB, SHOP), (STICKY,)], ids=["one", "two", "affinity"])
@pytest.mark.parametrize("held", [None, [], [LATE, build_plan("web", cluster=(7,))]], ids=["start", "empty", "changed"])
@pytest.mark.parametrize("full", [True, False])
def test_an_unattributed_refusal_is_found_by_halves(
    bad: tuple[ServicePlan, ...], held: list[ServicePlan] | None, full: bool
) -> None:
    rig = Rig()
    rig.kernel.edit(Family.IPV4, AddTable("kube-proxy"))
    if held is not None:
        rig.plans = {plan.key: plan for plan in held}
        rig.check()
    rig.kernel.refuse_all = without_a_name(*bad)
    rig.plans |= {plan.key: plan for plan in (WEB, DNS, SHOP, STICKY)}
    if full:
        rig.dataplane.configure(settings(masquerade_all=True))
        rig.settings = settings(masquerade_all=True)
    outcome = rig.want(WEB, DNS, SHOP, STICKY)
    assert set(outcome.rejected) == {plan.key for plan in bad}
    assert all("too long" in why for why in outcome.rejected.values())
    assert rig.held() == rig.wanted(without=outcome.rejected)
    assert rig.kernel.tables() == {(Family.IPV4, TABLE)}
    rig.kernel.refuse_all = lambda operations: 0
    assert rig.check().rejected == {}
    assert rig.held() == rig.wanted()


def test_a_table_that_is_refused_as_a_whole_is_no_ports_fault() -> None:
    rig = Rig()
    rig.plans = {plan.key: plan for plan in (WEB, DNS)}
    rig.kernel.refuse_all = lambda operations: errno.ENOMEM
    with pytest.raises(KernelError, match="Cannot allocate memory") as failure:
        rig.check()
    assert failure.value.refusals
    rig.kernel.refuse_all = lambda operations: 0
    assert rig.check().rejected == {}
    assert rig.held() == rig.wanted()


def test_a_refused_port_is_tried_again_when_its_plan_changes() -> None:
    rig = Rig()
    rig.check()
    rig.kernel.refuse = elements_of(WEB)
    assert rig.want(WEB).rejected
    rig.kernel.refuse = accept
    assert not rig.want(build_plan("web", cluster=(7,))).rejected
    assert rig.held() == rig.wanted()


def test_a_refused_change_takes_the_port_away() -> None:
    """Its former endpoints may be somebody else's by now."""
    rig = Rig()
    rig.check()
    rig.want(WEB, DNS)
    rig.kernel.refuse = elements_of(WEB)
    assert rig.want(build_plan("web", cluster=(7,))).rejected
    assert rig.held() == rig.wanted(without=[WEB.key])


def test_the_next_port_by_name_gets_the_frontend_of_a_refused_one() -> None:
    rig = Rig()
    rig.check()
    first, second = (build_plan(name, cluster=(n,), external_ips=("203.0.113.9",)) for n, name in ((1, "a"), (2, "b")))
    rig.want(second)
    rig.kernel.refuse = elements_of(first)
    assert list(rig.want(first).rejected) == [first.key]
    assert rig.held() == rig.wanted(without=[first.key])


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_after_a_failure_nothing_is_believed(fails_at: int) -> None:
    rig = Rig()
    rig.plans = {plan.key: plan for plan in (WEB, DNS)}
    rig.kernel.fail_at = {fails_at}
    for plan in (SHOP, STICKY, build_plan("web", cluster=(8,))):
        listings = rig.kernel.listings
        try:
            rig.want(plan)
        except KernelError:
            rig.want(plan)
            assert rig.kernel.listings > listings
    assert rig.held() == rig.wanted()


def test_a_plan_that_changed_meanwhile_is_no_repair() -> None:
    rig = Rig()
    rig.check()
    rig.want(WEB, DNS)
    rig.plans[WEB.key] = build_plan("web", cluster=(4, 5, 6), node_port=30000)
    del rig.plans[DNS.key]
    assert not rig.check().repaired
    assert rig.held() == rig.wanted()
