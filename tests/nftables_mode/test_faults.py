"""A port whose rendering raises what nobody foresaw is left out and reported; all others are programmed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from kproxy.model.plans import ServicePlan
from kproxy.modes.base import Outcome
from tests.nftables.plans import build_plan, settings
from tests.nftables_mode.rigs import Rig

DNS, SHOP, NEW = (build_plan(name, cluster=(n, n + 1)) for n, name in ((3, "dns"), (5, "shop"), (7, "zoo")))
CHANGED = build_plan("dns", cluster=(8,))


class Ranges(tuple[str, ...]):
    """Source ranges that cannot be read while `broken`; as a bug might cause it."""

    broken = False

    def __iter__(self) -> Iterator[str]:
        if Ranges.broken:
            raise ZeroDivisionError("a fault of ours")
        return super().__iter__()


BAD = build_plan("bad", load_balancer_ips=("203.0.113.9",), source_ranges=Ranges(("10.0.0.0/8",)))
CHANGED_BAD = replace(BAD, port=81)


@pytest.fixture(autouse=True)
def whole() -> Iterator[None]:
    Ranges.broken = False
    yield
    Ranges.broken = False


def start(rig: Rig) -> Outcome:
    rig.plans = {plan.key: plan for plan in (BAD, DNS, SHOP)}
    return rig.check()


def settings_change(rig: Rig) -> Outcome:
    rig.settings = settings(masquerade_all=True)
    rig.dataplane.configure(rig.settings)
    return rig.check()


OPERATIONS: dict[str, tuple[list[ServicePlan], Callable[[Rig], Outcome]]] = {
    "a first sync": ([], start),
    "a new port": ([DNS, SHOP], lambda rig: rig.want(BAD, NEW)),
    "a changed port": ([BAD, DNS], lambda rig: rig.want(CHANGED_BAD, NEW)),
    "a changed port beside a changed one": ([BAD, DNS], lambda rig: rig.want(CHANGED_BAD, CHANGED)),
    "a deleted port": ([BAD, DNS], lambda rig: rig.want(NEW, gone=[BAD])),
    "a full check that reads": ([BAD, DNS], Rig.read),
    "other settings": ([BAD, DNS], settings_change),
}
ALONE = {"a full check that reads", "other settings"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_others_are_programmed(name: str) -> None:
    before, operation = OPERATIONS[name]
    rig = Rig()
    if before:
        rig.plans = {plan.key: plan for plan in before}
        rig.check()
    Ranges.broken = True
    outcome = operation(rig)
    assert [type(error) for error in outcome.faults.values()] == [ZeroDivisionError]
    left_out = [BAD.key] if BAD.key in rig.plans else []
    assert outcome.rejected == dict.fromkeys(left_out, "unexpected ZeroDivisionError: a fault of ours")
    Ranges.broken = False  # what is wanted can be rendered again
    assert rig.held() == rig.wanted(without=left_out)
    Ranges.broken = True
    again = rig.want(CHANGED)
    assert set(again.rejected) == set(again.faults) == set(left_out)
    if left_out:  # the proxier passes refused ports again, see Proxier
        assert set(rig.want(rig.plans[BAD.key]).faults) == {BAD.key}
    Ranges.broken = False
    assert rig.want(*(rig.plans[key] for key in left_out), NEW).faults == {}
    assert rig.held() == rig.wanted()
    assert rig.check().rejected == {}


def test_two_ports_that_claim_one_frontend_are_no_more_than_two_ports() -> None:
    """The first by name cannot be rendered; the next one serves the frontend, and gives it back."""
    rig = Rig()
    other = build_plan("other", cluster=(9,), load_balancer_ips=("203.0.113.9",))
    rig.plans = {plan.key: plan for plan in (BAD, other)}
    rig.check()
    Ranges.broken = True
    outcome = rig.want(replace(other, port=82), DNS)  # it loses the frontend, whose first port has to be rendered
    assert set(outcome.faults) == {BAD.key}
    assert rig.want(other).faults == outcome.faults
    Ranges.broken = False
    assert rig.held() == rig.wanted(without=[BAD.key])
    rig.check()
    assert rig.held() == rig.wanted()
