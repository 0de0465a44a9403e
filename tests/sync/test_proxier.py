"""One family's way to the kernel: what a sync is asked to look at, and what stays to be done after it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import KernelError
from kproxy.model.plan_store import FamilyPlans, Touched
from kproxy.model.plans import Family, PortKey, Protocol, ServicePlan
from kproxy.sync.proxier import HOUSEKEEPING_RETRY, Proxier
from kproxy.sync.schedule import Schedule, Work
from tests.sync.rigs import PERIOD, DictDataplane

A, B, C = (PortKey("default", name, "http", Protocol.TCP) for name in "abc")


def plan(key: PortKey = A, port: int = 80) -> ServicePlan:
    return ServicePlan(key=key, family=Family.IPV4, cluster_ip="10.96.0.1", port=port)


ONE, TWO, THREE = (plan(port=n) for n in (1, 2, 3))


class Desk:
    """A worker with its dataplane and its page; `put` changes the page as the book would."""

    def __init__(self) -> None:
        self.dataplane, self.schedule, self.page = DictDataplane(), Schedule(0.0, 3600.0), FamilyPlans()
        self.worker = Proxier(self.dataplane, self.schedule)

    def put(self, key: PortKey, new: ServicePlan | None, *triggers: float) -> None:
        old = self.page.plans.get(key)
        self.page.replace(key, old, new)
        self.worker.touch({key: (old, new)}, triggers)


@pytest.fixture
def desk() -> Desk:
    """One that has written everything."""
    made = Desk()
    made.worker.sync(Work.EVERYTHING, made.page)
    made.dataplane.applied.clear()
    return made


def test_only_touched_ports_are_looked_at(desk: Desk) -> None:
    desk.put(A, plan(A))
    desk.put(B, plan(B))
    report = desk.worker.sync(Work.CHANGES, desk.page)
    assert desk.dataplane.applied == [{A, B}]
    assert set(report.touched) == {A, B}
    desk.put(B, None)
    desk.worker.sync(Work.CHANGES, desk.page)
    assert desk.dataplane.applied[-1] == {B}
    assert desk.dataplane.held == {A: plan(A)}


def test_a_check_looks_at_everything_and_still_reports_what_was_touched(desk: Desk) -> None:
    desk.put(A, ONE)
    assert desk.worker.sync(Work.EVERYTHING, desk.page).touched == {A: (None, ONE)}
    assert desk.dataplane.applied == [None]


@pytest.mark.parametrize(
    ("before", "steps", "expected"),
    [
        pytest.param(None, [ONE, TWO], (None, TWO), id="made, then changed"),
        pytest.param(ONE, [TWO, THREE], (ONE, THREE), id="changed twice"),
        pytest.param(ONE, [TWO, ONE], (ONE, ONE), id="changed and changed back"),
        pytest.param(ONE, [None, TWO], (ONE, TWO), id="deleted and made again"),
        pytest.param(ONE, [TWO, None], (ONE, None), id="changed, then deleted"),
        pytest.param(None, [ONE, None], (None, None), id="made, then deleted"),
    ],
)
def test_several_changes_of_a_port_become_one(
    desk: Desk, before: ServicePlan | None, steps: list[ServicePlan | None], expected: tuple[object, object]
) -> None:
    if before:
        desk.put(A, before)
        desk.worker.sync(Work.CHANGES, desk.page)
    for step in steps:
        desk.put(A, step)
    report = desk.worker.sync(Work.CHANGES, desk.page)
    assert report.touched == {A: expected}


def test_nothing_touched_is_an_empty_look(desk: Desk) -> None:
    desk.worker.sync(Work.CHANGES, desk.page)
    assert desk.dataplane.applied == [set()]


def test_triggers_belong_to_the_sync_that_wrote_them(desk: Desk) -> None:
    desk.put(A, ONE, 1.0, 2.0)
    desk.put(A, TWO, 3.0)
    assert desk.worker.sync(Work.CHANGES, desk.page).triggers == [1.0, 2.0, 3.0]
    assert desk.worker.sync(Work.CHANGES, desk.page).triggers == []


def test_triggers_that_changed_no_plan_of_the_family_are_not_its_own(desk: Desk) -> None:
    nothing: Touched = {}
    desk.worker.touch(nothing, [1.0])
    assert desk.worker.sync(Work.CHANGES, desk.page).triggers == []


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("error", [KernelError("the kernel is busy"), ZeroDivisionError("a bug")])
def test_a_failure_is_reported_and_nothing_of_it_is_forgotten(desk: Desk, error: Exception) -> None:
    desk.put(A, ONE, 1.0)
    desk.dataplane.fail = error
    report = desk.worker.sync(Work.CHANGES, desk.page)
    assert report.outcome is None
    assert str(error) in str(report.error)
    assert desk.worker.failing
    assert desk.schedule.suspected

    desk.put(B, plan(B), 2.0)
    desk.dataplane.fail = None
    report = desk.worker.sync(Work.EVERYTHING, desk.page)
    assert (report.error, desk.worker.failing) == (None, False)
    assert report.touched == {A: (None, ONE), B: (None, plan(B))}
    assert report.triggers == [1.0, 2.0]
    assert desk.dataplane.held == desk.page.plans


def test_settings_that_cannot_be_had_are_a_failure() -> None:
    dataplane = DictDataplane()

    def configure(page: FamilyPlans) -> None:
        raise KernelError("no sysctl")

    report = Proxier(dataplane, Schedule(0.0, 1.0), configure).sync(Work.EVERYTHING, FamilyPlans())
    assert str(report.error) == "no sysctl"
    assert dataplane.applied == []


def test_the_time_a_sync_took_is_not_negative(desk: Desk) -> None:
    assert desk.worker.sync(Work.CHANGES, desk.page).seconds >= 0


# ---------------------------------------------------------------- refused ports


def test_a_refused_port_is_looked_at_again_until_it_is_taken(desk: Desk) -> None:
    desk.put(A, ONE)
    desk.put(B, plan(B))
    desk.dataplane.refuse = frozenset({A})
    report = desk.worker.sync(Work.CHANGES, desk.page)
    assert report.outcome is not None
    assert set(report.outcome.rejected) == {A}
    assert desk.dataplane.held == {B: plan(B)}

    desk.put(C, plan(C))
    desk.worker.sync(Work.CHANGES, desk.page)
    assert desk.dataplane.applied[-1] == {A, C}

    desk.dataplane.refuse = frozenset()
    desk.worker.sync(Work.CHANGES, desk.page)
    assert desk.dataplane.applied[-1] == {A}
    desk.worker.sync(Work.CHANGES, desk.page)
    assert desk.dataplane.applied[-1] == set()
    assert desk.dataplane.held == desk.page.plans


def test_a_refused_port_brings_the_next_check_forward(desk: Desk) -> None:
    desk.put(A, ONE)
    desk.dataplane.refuse = frozenset({A})
    before = desk.schedule.next(0.0)
    desk.worker.sync(Work.CHANGES, desk.page)
    assert desk.schedule.next(0.0) < before - 3000


def test_refused_ports_survive_a_failure(desk: Desk) -> None:
    desk.put(A, ONE)
    desk.dataplane.refuse = frozenset({A})
    desk.worker.sync(Work.CHANGES, desk.page)
    desk.dataplane.fail = KernelError("busy")
    desk.worker.sync(Work.CHANGES, desk.page)
    desk.dataplane.fail = None
    desk.worker.sync(Work.EVERYTHING, desk.page)
    desk.worker.sync(Work.CHANGES, desk.page)
    assert desk.dataplane.applied[-1] == {A}


# ---------------------------------------------------------------- drift


def test_drift_is_told_once_and_ends_with_a_check(desk: Desk) -> None:
    assert desk.worker.drifted() is False
    desk.dataplane.drift = True
    assert [desk.worker.drifted() for _ in range(3)] == [True, False, False]
    assert desk.schedule.due(desk.schedule.next(0.0)) is Work.EVERYTHING
    desk.worker.sync(Work.EVERYTHING, desk.page)
    assert desk.worker.drifted() is False


def test_drift_that_cannot_be_told_counts_as_drift(desk: Desk) -> None:
    desk.dataplane.drift = KernelError("the socket is gone")
    assert desk.worker.drifted() is True


def test_before_the_first_sync_nobody_asks_for_drift() -> None:
    made = Desk()
    made.dataplane.drift = True
    assert made.worker.drifted() is False
    assert made.dataplane.asked_for_drift == 0


# ---------------------------------------------------------------- all together

changes = st.tuples(st.sampled_from([A, B, C]), st.sampled_from([None, 1, 2, 3]))
syncs = st.sampled_from(["well", "badly", "refuse A", "refuse B and C", "check"])


def without(keys: frozenset[PortKey], plans: dict[PortKey, ServicePlan]) -> dict[PortKey, ServicePlan]:
    return {key: plan for key, plan in plans.items() if key not in keys}


@given(st.lists(st.one_of(changes, syncs), max_size=40))
def test_what_is_touched_is_always_enough(script: list[tuple[PortKey, int | None] | str]) -> None:
    """Whatever fails or is refused in between, the kernel ends as wanted although only a failure leads to a check."""
    desk = Desk()
    refusals = {"refuse A": frozenset({A}), "refuse B and C": frozenset({B, C})}
    failed = True
    for action in script:
        if not isinstance(action, str):
            key, port = action
            desk.put(key, None if port is None else plan(key, port))
            continue
        desk.dataplane.fail = KernelError("busy") if action == "badly" else None
        desk.dataplane.refuse = refusals.get(action, frozenset())
        work = Work.EVERYTHING if failed or action == "check" else Work.CHANGES
        failed = desk.worker.sync(work, desk.page).outcome is None
        if not failed:
            refused = desk.dataplane.refuse
            assert without(refused, desk.dataplane.held) == without(refused, desk.page.plans)
    desk.dataplane.fail, desk.dataplane.refuse = None, frozenset()
    desk.worker.sync(Work.EVERYTHING if failed else Work.CHANGES, desk.page)
    assert desk.dataplane.held == desk.page.plans


def test_a_mode_is_looked_after_when_it_asks_for_it() -> None:
    dataplane = DictDataplane()
    worker = Proxier(dataplane, Schedule(0.0, PERIOD))
    worker.housekeeping(time.monotonic())
    assert dataplane.tended == 0, "nothing was written yet"
    dataplane.care = 60.0
    worker.sync(Work.EVERYTHING, FamilyPlans())
    now = time.monotonic()
    worker.housekeeping(now)
    worker.housekeeping(now + 59)
    assert dataplane.tended == 1
    dataplane.care = None
    worker.housekeeping(now + 61)
    worker.housekeeping(now + 10_000)
    assert dataplane.tended == 2


def test_care_that_fails_is_tried_again() -> None:
    dataplane = DictDataplane()
    worker = Proxier(dataplane, Schedule(0.0, PERIOD))
    worker.sync(Work.EVERYTHING, FamilyPlans())
    dataplane.care = KernelError("not now")
    now = time.monotonic()
    worker.housekeeping(now)
    dataplane.care = None
    worker.housekeeping(now + HOUSEKEEPING_RETRY)
    assert dataplane.tended == 2
