"""A large cluster is written in small portions, and adopted without listing what takes too long to list."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from kproxy.model.plans import Endpoint, Family, ServicePlan
from kproxy.modes.nftables.names import TABLE
from kproxy.modes.nftables.render import render_base
from kproxy.netfilter.objects import Element
from kproxy.netfilter.operations import (
    ELEMENTS_AT_ONCE,
    AddChain,
    AddElements,
    AddSet,
    AddTable,
    DeleteElements,
    DeleteTable,
    FillSet,
    Operation,
)
from tests.netfilter.values import emptied
from tests.nftables.plans import build_plan, settings
from tests.nftables_mode.rigs import Rig

SETS = {found.name: found for found in render_base(settings()).sets}
LARGE = ("endpoints", "hairpins", "cluster-ips")


def service(number: int, endpoints: int, first: int = 0) -> ServicePlan:
    ends = tuple(
        Endpoint(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 80)
        for n in range((number << 8) + first, (number << 8) + first + endpoints)
    )
    ip = f"10.97.{number >> 8}.{number & 255}"
    plan = build_plan(f"service-{number}", cluster_ip=ip, cluster=(), reachable=ends, has_endpoints=True)
    return msgspec.structs.replace(plan, cluster=ends)


def rig_of(*plans: ServicePlan, heir_of: Rig | None = None, list_at_most: int = 3) -> Rig:
    rig = Rig(heir_of.kernel if heir_of else None)
    rig.kernel.list_at_most = list_at_most
    rig.plans = {plan.key: plan for plan in plans}
    return rig


def elements_in(operations: Sequence[Operation]) -> int:
    return sum(len(op.elements) for op in operations if isinstance(op, AddElements | DeleteElements))


def filled(operations: Sequence[Sequence[Operation]]) -> dict[str, int]:
    return {op.set.name: op.number for some in operations for op in some if isinstance(op, FillSet)}


def test_a_cold_start_is_written_in_portions_and_takes_packets_with_the_last() -> None:
    rig = rig_of(*(service(n, 20) for n in range(600)))
    rig.kernel.edit(Family.IPV4, AddTable("kube-proxy"))
    outcome = rig.check()
    assert rig.held() == rig.wanted()
    pieces = rig.kernel.applied
    assert len(pieces) == outcome.transactions > 3
    assert max(map(elements_in, pieces)) <= ELEMENTS_AT_ONCE
    hooked = [any(isinstance(op, AddChain) and op.base for op in piece) for piece in pieces]
    assert hooked == [*[False] * (len(pieces) - 1), True]
    assert pieces[-1][-1] == DeleteTable("kube-proxy")
    assert outcome.rules_written == outcome.rules_total


def test_a_cold_start_that_is_disturbed_begins_anew() -> None:
    rig = rig_of(*(service(n, 20) for n in range(600)))
    flushes = [3]

    def disturb(family: Family) -> None:
        if flushes and rig.kernel.applies == flushes[0]:
            flushes.pop()
            rig.kernel.flush()

    rig.kernel.meanwhile = disturb
    assert not rig.check().rejected
    assert rig.held() == rig.wanted()


def test_a_table_of_another_form_is_replaced_and_changed_afterwards() -> None:
    rig = rig_of(*(service(n, 20) for n in range(600)))
    other = msgspec.structs.replace(SETS["services"], key=SETS["services"].key[:1])
    rig.kernel.edit(Family.IPV4, AddTable(TABLE), AddSet(TABLE, other))
    assert not rig.check().rejected
    assert rig.want(service(599, 10), gone=[service(598, 20)]).transactions == 1
    assert rig.held() == rig.wanted()


def test_large_sets_are_filled_anew_at_a_restart_each_in_one_transaction() -> None:
    before = rig_of(service(1, 3), service(2, 2), service(3, 1))
    before.check()
    before.kernel.applied.clear()
    heir = rig_of(service(1, 3, first=5), service(3, 2), heir_of=before)
    outcome = heir.check()
    assert heir.held() == heir.wanted()
    assert not outcome.repaired
    assert filled(heir.kernel.applied) == {"endpoints": 5, "hairpins": 5}
    kinds = {(op.set.name, type(op)) for piece in heir.kernel.applied for op in piece if isinstance(op, AddElements)}
    assert not {name for name, _ in kinds} & {"endpoints", "hairpins"}
    assert outcome.rules_total == heir.read().rules_total


def test_a_set_that_became_small_is_emptied() -> None:
    before = rig_of(service(1, 9))
    before.check()
    heir = rig_of(heir_of=before)
    heir.check()
    assert heir.held() == heir.wanted()


def test_a_large_set_that_nobody_touched_is_not_written_again() -> None:
    rig = rig_of(service(1, 3), service(2, 2))
    rig.check()
    assert rig.read().transactions == 0


@pytest.mark.parametrize("name", LARGE)
def test_a_large_set_that_others_may_have_touched_is_filled_anew(name: str) -> None:
    rig = rig_of(service(1, 3), service(2, 2), list_at_most=1)
    rig.check()
    rig.kernel.edit(Family.IPV4, emptied(SETS[name]))
    rig.kernel.events.append(None)
    rig.check()
    assert name in filled(rig.kernel.applied)
    assert rig.held() == rig.wanted()


def test_an_invalid_endpoint_among_many_is_refused() -> None:
    before = rig_of(service(1, 3), service(2, 2))
    before.check()
    bad = build_plan("bad", cluster=(), has_endpoints=True)
    bad = msgspec.structs.replace(bad, cluster=(Endpoint("no address", 80),))
    heir = rig_of(service(1, 4), service(2, 2), bad, heir_of=before)
    assert list(heir.check().rejected) == [bad.key]
    assert heir.held() == heir.wanted(without=[bad.key])


def test_others_elements_in_a_large_set_are_deleted_at_the_next_restart() -> None:
    before = rig_of(service(1, 3), service(2, 2))
    before.check()
    stray = Element("hairpins", ("10.9.9.9", "10.9.9.9"))
    before.kernel.edit(Family.IPV4, AddElements(TABLE, SETS["hairpins"], [stray]))
    heir = rig_of(*before.plans.values(), heir_of=before)
    heir.check()
    assert heir.held() == heir.wanted()
