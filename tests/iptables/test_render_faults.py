"""An unforeseen exception in the rendering of one port costs that port alone, in iptables and in IPVS mode."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import pytest

from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings, render_port
from kproxy.modes.ipvs.render import render_port as render_ipvs
from tests.fakes.iptables import FakeTables
from tests.ipvs_mode.rigs import Rig
from tests.plans import Plans, build_plan, by_key, changed

Shape = Callable[[str], object]

A, B, C = (build_plan(name, cluster_ip=f"10.96.0.{n}", node_port=30000 + n) for n, name in enumerate("abc", 1))
OTHER_B = build_plan("b", cluster_ip="10.96.0.2", node_port=30009, cluster=(1, 2, 3))


class Saboteur:
    """Rendering raises for these plans."""

    def __init__(self) -> None:
        self.faulty: list[ServicePlan] = []

    def wrap(self, render: Callable[..., Any]) -> Callable[..., Any]:
        def rendered(plan: ServicePlan, settings: Any) -> Any:
            if plan in self.faulty:
                return 1 // 0
            return render(plan, settings)

        return rendered


class Node(NamedTuple):
    """A dataplane over kernels in memory. assert_holds: for just these plans, while nothing is sabotaged."""

    saboteur: Saboteur
    apply: Callable[[Plans, Collection[PortKey] | None], Outcome]
    assert_holds: Callable[[Plans], None]


@pytest.fixture(params=["iptables", "ipvs"])
def node(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, shape: Shape) -> Node:
    saboteur = Saboteur()
    monkeypatch.setattr("kproxy.modes.ipvs.apply.render_port", saboteur.wrap(render_ipvs))
    monkeypatch.setattr("kproxy.modes.iptables.apply.render_port", saboteur.wrap(render_port))
    if request.param == "ipvs":
        rig = Rig()
        return Node(saboteur, rig.apply, rig.assert_holds)
    tables, settings = FakeTables(), Settings(Family.IPV4)

    def assert_holds(plans: Plans) -> None:
        fresh = FakeTables()
        IptablesDataplane(settings, fresh).apply(plans, None)
        assert shape(tables.save()) == shape(fresh.save())

    return Node(saboteur, IptablesDataplane(settings, tables).apply, assert_holds)


class Case(NamedTuple):
    """Plans that are programmed, plans that cannot be rendered afterwards, the wanted plans; what is programmed then
    (None: that depends on whether the old plan had to be rendered), and which port is rejected."""

    before: Plans
    faulty: list[ServicePlan]
    wanted: Plans
    after: Plans | None
    rejected: ServicePlan | None = None


CASES = {
    "a new port": Case(by_key(A, C), [B], by_key(A, B, C), by_key(A, C), B),
    "a changed port": Case(by_key(A, B, C), [OTHER_B], by_key(A, OTHER_B, C), by_key(A, B, C), B),
    "a changed port and a new one": Case(by_key(A, B), [OTHER_B], by_key(A, OTHER_B, C), by_key(A, B, C), B),
    "the old plan of a changed port": Case(by_key(A, B), [B], by_key(A, OTHER_B), by_key(A, OTHER_B)),
    "the old plan of a deleted port": Case(by_key(A, B, C), [B], by_key(A, C), by_key(A, C)),
    "both plans of a changed port": Case(by_key(A, B, C), [B, OTHER_B], by_key(A, OTHER_B, C), None, B),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("full", [False, True], ids=["change", "full check"])
def test_the_port_is_rejected_and_the_others_are_programmed(node: Node, case: Case, full: bool) -> None:
    node.apply(case.before, None)
    node.saboteur.faulty = case.faulty
    outcome = node.apply(case.wanted, None if full else changed(case.before, case.wanted))
    assert list(outcome.rejected) == list(outcome.faults) == ([case.rejected.key] if case.rejected else [])
    for key, why in outcome.rejected.items():
        assert why.startswith("unexpected ZeroDivisionError: ")
        assert isinstance(outcome.faults[key], ZeroDivisionError)
    node.saboteur.faulty = []
    if case.after is not None:
        node.assert_holds(case.after)
    outcome = node.apply(case.wanted, outcome.rejected.keys())
    assert (outcome.rejected, outcome.faults) == ({}, {})
    node.assert_holds(case.wanted)


def test_a_port_that_cannot_be_rendered_at_a_start_is_added_later(node: Node) -> None:
    node.saboteur.faulty = [B]
    assert list(node.apply(by_key(A, B, C), None).rejected) == [B.key]
    assert list(node.apply(by_key(A, B, C), [A.key]).faults) == [B.key], "reported as long as it lasts"
    assert list(node.apply(by_key(A, B, C), None).faults) == [B.key]
    assert node.apply(by_key(A, C), [B.key]).rejected == {}
    node.saboteur.faulty = []
    assert node.apply(by_key(A, B, C), [B.key]).rejected == {}
    node.assert_holds(by_key(A, B, C))
