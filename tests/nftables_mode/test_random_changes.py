"""After any changes, edits, refusals and failures the table is as rendered."""

from __future__ import annotations

import errno
from typing import Any

import hypothesis.strategies as st
import msgspec
from hypothesis import settings as tuned
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kproxy.errors import KernelError, NetlinkError
from kproxy.model.plans import Family, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.nftables.names import TABLE
from kproxy.netfilter.objects import Drop, Element, Set, SetKind, Type
from kproxy.netfilter.operations import (
    AddChain,
    AddElements,
    AddRules,
    AddSet,
    DeleteElements,
    DeleteTable,
    FlushChain,
    Operation,
)
from tests.fakes.nftables import accept
from tests.nftables.plans import any_plan, any_settings
from tests.nftables_mode.rigs import Rig

NAMES = st.sampled_from("abcde")
PLANS = NAMES.flatmap(lambda name: any_plan(name, Family.IPV4))
OURS = ("services", "endpoints", "hairpins", "cluster-ips")


class Changes(RuleBasedStateMachine):
    """Plans come and go, others edit the table, the kernel refuses and fails."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.total = self.rig.check().rules_total
        self.sound = True
        self.rejected: set[Any] = set()

    @rule(plans=st.lists(PLANS, max_size=3, unique_by=lambda plan: plan.key))
    def some_come_or_change(self, plans: list[ServicePlan]) -> None:
        expected = self.sound and not self.rejected
        outcome = self.rig.want(*plans)
        assert outcome.refusals == [] or not expected
        self._noted(outcome)

    @rule(name=NAMES)
    def some_go(self, name: str) -> None:
        expected = self.sound and not self.rejected
        outcome = self.rig.want(gone=[p for p in self.rig.plans.values() if p.key.name == name])
        assert outcome.refusals == [] or not expected
        self._noted(outcome)

    @rule()
    def everything_is_checked(self) -> None:
        self._noted(self.rig.check())

    @rule(chosen=any_settings(Family.IPV4))
    def settings_change(self, chosen: Any) -> None:
        self.rig.settings = chosen
        self.rig.dataplane.configure(chosen)
        self._noted(self.rig.check())

    @rule(plan=PLANS)
    def the_kernel_cannot_be_talked_to(self, plan: ServicePlan) -> None:
        self.rig.kernel.fail_at = {self.rig.kernel.applies + 1}
        try:
            self._noted(self.rig.want(plan))
        except KernelError:
            self.sound = False
        self.rig.kernel.fail_at = set()

    @rule(plan=PLANS)
    def a_port_is_refused(self, plan: ServicePlan) -> None:
        def refuse(operation: Operation, element: Element | None) -> int:
            adds = isinstance(operation, AddElements) and element is not None and operation.set.name == "services"
            return errno.ENOSPC if adds and element is not None and element.comment == str(plan.key) else 0

        self.rig.kernel.refuse = refuse
        self._noted(self.rig.want(plan))
        self.rig.kernel.refuse = accept

    @rule(name=st.sampled_from(OURS), at=st.integers(0, 3))
    def others_delete_an_element(self, name: str, at: int) -> None:
        sets, _, elements = self.rig.held()
        if found := sorted(elements.get(name, ()), key=str):
            self._others(DeleteElements(TABLE, sets[name], [found[at % len(found)]]))

    @rule(chain=st.sampled_from(["services", "refuse", "nat-postrouting"]), adds=st.booleans())
    def others_edit_rules(self, chain: str, adds: bool) -> None:
        self._others(AddRules(TABLE, chain, ((Drop(),),)) if adds else FlushChain(TABLE, chain))

    @rule()
    def others_add_things(self) -> None:
        extra = Set("extra", (Type.IPV4,), SetKind.SET)
        self._others(AddSet(TABLE, extra), AddElements(TABLE, extra, [Element("extra", ("10.0.0.1",))]))
        self._others(AddChain(TABLE, "extra"), AddRules(TABLE, "extra", ((Drop(),),)))

    @rule(whole=st.booleans())
    def others_delete_the_table(self, whole: bool) -> None:
        if whole:
            self.rig.kernel.flush()
            self.sound = False
        else:
            self._others(DeleteTable(TABLE))

    def _others(self, *operations: Operation) -> None:
        try:
            self.rig.kernel.edit(Family.IPV4, *operations)
        except NetlinkError:
            return  # already done
        self.sound = False

    def _noted(self, outcome: Outcome) -> None:
        self.rejected, self.sound = set(outcome.rejected), True
        self.total = outcome.rules_total

    @invariant()
    def the_table_is_as_wanted(self) -> None:
        if self.sound:
            assert self.rig.held() == self.rig.wanted(self.rejected)
            written = len(self.rig.kernel.applied)
            assert not self.rig.dataplane.drifted()
            if not self.rejected:
                rules = sum(len(chain.rules) for chain in self.rig.held()[1].values())
                assert self.total == {TABLE: sum(map(len, self.rig.held()[2].values())) + rules}
                outcome = self.rig.read()
                assert not outcome.repaired
                assert outcome.rules_total == {TABLE: sum(map(len, self.rig.held()[2].values())) + rules}
                assert len(self.rig.kernel.applied) == written  # nothing is written twice
        else:
            # a full check heals it, or any change that comes first
            plans = list(self.rig.plans.values()) if len(self.rig.kernel.applied) % 2 else []
            if plans:
                changed = msgspec.structs.replace(plans[0], port=161 - plans[0].port)
                self._noted(self.rig.want(changed))
            else:
                self._noted(self.rig.check())
            assert self.rig.held() == self.rig.wanted(self.rejected)


TestChanges = Changes.TestCase
TestChanges.settings = tuned(max_examples=40)
