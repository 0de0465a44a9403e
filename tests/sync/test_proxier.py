"""One family's way to the kernel: what a sync looks at, what stays to be done after it, and what failures cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.containment import Containment
from kproxy.errors import KernelError
from kproxy.model.node_info import NodeInfo
from kproxy.model.plan_store import Changes, FamilyPlans
from kproxy.model.plans import Family, PortKey, Protocol, ServicePlan
from kproxy.sync.plan_queue import FamilyChanges
from kproxy.sync.proxier import Proxier, Report
from kproxy.sync.schedule import Schedule
from tests.fakes.clocks import ManualClock
from tests.sync.rigs import HERE, PERIOD, Diary, DictDataplane

V4 = Family.IPV4
A, B, C = (PortKey("default", name, "http", Protocol.TCP) for name in "abc")


def plan(key: PortKey = A, port: int = 80) -> ServicePlan:
    return ServicePlan(key=key, family=V4, cluster_ip="10.96.0.1", port=port)


ONE, TWO, THREE = (plan(port=n) for n in (1, 2, 3))


class Desk:
    """A proxier of its own, whose plans the test puts there. wanted: what the kernel should hold."""

    def __init__(self, dataplane: DictDataplane | None = None, clock: Any = None) -> None:
        self.dataplane, self.diary, self.ready = dataplane or DictDataplane(), Diary(), True
        self.clock = clock or ManualClock()
        self.containment = Containment(self.clock)
        self.wanted: dict[PortKey, ServicePlan] = {}
        self.waiting = FamilyChanges(HERE)
        self.unable: Exception | None = None
        self.schedule = Schedule(0.0, PERIOD)
        self.proxier = Proxier(
            self.dataplane,
            self._configure,
            self.schedule,
            self,
            self.diary,
            self.diary,
            self.clock,
            self.containment,
        )

    def take(self, family: Family) -> FamilyChanges:
        taken, self.waiting = self.waiting, FamilyChanges(HERE)
        return taken

    def _configure(self, node: NodeInfo, plans: FamilyPlans) -> None:
        if self.unable:
            raise self.unable

    def put(self, key: PortKey, new: ServicePlan | None, *triggers: float) -> None:
        """Change a plan, as the plan queue would."""
        first = self.waiting.plans[key][0] if key in self.waiting.plans else self.wanted.get(key)
        self.wanted.pop(key, None)
        if new is not None:
            self.wanted[key] = new
        self.waiting.plans[key] = (first, new)
        self.waiting.triggers += triggers
        self.proxier.changed()

    def sync(self, everything: bool = False, wait: float = 0.0) -> Report:
        """A turn in which a sync is due."""
        self.clock.advance(wait)
        if everything:
            self.schedule.suspicious()
        self.proxier.changed()
        before = len(self.diary.reports)
        self.proxier.turn()
        assert len(self.diary.reports) == before + 1, "no sync was due"
        return self.diary.reports[-1]


@pytest.fixture
def desk() -> Desk:
    """One that has written everything."""
    made = Desk()
    made.sync()
    made.dataplane.applied.clear()
    return made


def test_only_changed_ports_are_looked_at(desk: Desk) -> None:
    desk.put(A, plan(A))
    desk.put(B, plan(B))
    assert set(desk.sync().changes) == {A, B}
    desk.put(B, None)
    desk.sync()
    assert desk.dataplane.applied == [{A, B}, {B}]
    assert desk.dataplane.held == {A: plan(A)}


def test_a_check_looks_at_everything_and_still_reports_what_changed(desk: Desk) -> None:
    desk.put(A, ONE)
    assert desk.sync(everything=True).changes == {A: (None, ONE)}
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
def test_changes_of_a_port_over_failed_syncs_become_one(
    desk: Desk, before: ServicePlan | None, steps: list[ServicePlan | None], expected: tuple[object, object]
) -> None:
    if before:
        desk.put(A, before)
        desk.sync()
    desk.dataplane.fail = KernelError("busy")
    for step in steps:
        desk.put(A, step)
        desk.sync(wait=30)
    desk.dataplane.fail = None
    assert desk.sync(wait=30).changes == {A: expected}


def test_triggers_belong_to_the_sync_that_wrote_them(desk: Desk) -> None:
    desk.put(A, ONE, 1.0, 2.0)
    desk.put(A, TWO, 3.0)
    assert desk.sync().triggers == [1.0, 2.0, 3.0]
    assert desk.sync().triggers == []


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("error", "internal"), [(KernelError("the kernel is busy"), 0), (ZeroDivisionError("a bug"), 1)]
)
def test_a_failure_is_reported_and_nothing_of_it_is_forgotten(desk: Desk, error: Exception, internal: int) -> None:
    desk.put(A, ONE, 1.0)
    desk.dataplane.fail = error
    report = desk.sync()
    assert report.outcome is None
    assert str(error) in str(report.error)
    assert (report.failures, desk.schedule.suspected) == (1, True)
    assert desk.containment.counts()["sync"] == internal
    desk.put(B, plan(B), 2.0)
    desk.dataplane.fail = None
    report = desk.sync(wait=report.retry_in)
    assert (report.error, report.failures) == (None, 1)
    assert report.changes == {A: (None, ONE), B: (None, plan(B))}
    assert report.triggers == [1.0, 2.0]
    assert desk.dataplane.held == desk.wanted
    assert desk.containment.failing() == []


def test_settings_that_cannot_be_made_are_a_failed_sync() -> None:
    desk = Desk()
    desk.unable = KernelError("no sysctl")
    assert str(desk.sync().error) == "no sysctl"
    assert desk.dataplane.applied == []


def broken_observer(desk: Desk) -> None:
    def starting(family: Family) -> None:
        raise ZeroDivisionError

    desk.diary.starting = starting  # type: ignore[method-assign]


def broken_post_sync(desk: Desk) -> None:
    def synced(report: Report, plans: FamilyPlans, node: NodeInfo) -> None:
        raise ZeroDivisionError

    desk.diary.synced = synced  # type: ignore[method-assign]


@pytest.mark.parametrize(("breaks", "stage"), [(broken_observer, "report"), (broken_post_sync, "post-sync")])
def test_what_fails_around_a_sync_does_not_harm_it(desk: Desk, breaks: Callable[[Desk], None], stage: str) -> None:
    breaks(desk)
    desk.put(A, ONE)
    desk.proxier.turn()
    assert desk.dataplane.held == {A: ONE}
    assert desk.containment.counts()[stage] == 1


def test_a_port_that_cannot_be_rendered_is_counted_and_the_sync_is_good(desk: Desk) -> None:
    desk.dataplane.faulty = frozenset({A})
    desk.put(A, ONE)
    desk.put(B, plan(B))
    report = desk.sync()
    assert report.error is None
    assert desk.containment.counts()["render"] == 1
    assert desk.dataplane.held == {B: plan(B)}
    desk.dataplane.faulty = frozenset()
    desk.sync(wait=0.2)
    assert desk.dataplane.held == desk.wanted
    assert desk.containment.failing() == []


# ---------------------------------------------------------------- refused ports


def test_a_refused_port_is_looked_at_again_until_it_is_taken(desk: Desk) -> None:
    desk.put(A, ONE)
    desk.put(B, plan(B))
    desk.dataplane.refuse = frozenset({A})
    report = desk.sync()
    assert report.outcome is not None
    assert set(report.outcome.rejected) == {A}
    assert desk.dataplane.held == {B: plan(B)}
    desk.put(C, plan(C))
    desk.sync()
    assert desk.dataplane.applied[-1] == {A, C}
    desk.dataplane.refuse = frozenset()
    desk.sync()
    assert desk.dataplane.applied[-1] == {A}
    desk.sync()
    assert desk.dataplane.applied[-1] == set()
    assert desk.dataplane.held == desk.wanted


def test_a_refused_port_brings_the_next_check_forward(desk: Desk) -> None:
    desk.put(A, ONE)
    desk.dataplane.refuse = frozenset({A})
    before = desk.schedule.next(0.0)
    desk.sync()
    assert desk.schedule.next(0.0) < before - 3000


def test_refused_ports_survive_a_failure(desk: Desk) -> None:
    desk.put(A, ONE)
    desk.dataplane.refuse = frozenset({A})
    desk.sync()
    desk.dataplane.fail = KernelError("busy")
    desk.sync()
    desk.dataplane.fail = None
    desk.sync(wait=30)
    desk.sync()
    assert desk.dataplane.applied[-1] == {A}


# ---------------------------------------------------------------- drift and housekeeping


def test_drift_is_reported_once_and_ends_with_a_check(desk: Desk) -> None:
    desk.diary.take()
    desk.proxier.turn()
    assert desk.diary.take() == []
    desk.dataplane.drift = True
    desk.proxier.turn()
    assert desk.diary.take()[0] == "drifted IPv4"
    assert desk.dataplane.applied == [None]
    desk.proxier.turn()
    assert desk.diary.take() == []


@pytest.mark.parametrize("error", [KernelError("the socket is gone"), ValueError("garbage")])
def test_drift_that_cannot_be_known_is_checked_with_growing_waits(desk: Desk, error: Exception) -> None:
    desk.dataplane.answer_drift = error
    for _ in range(100):
        desk.clock.advance(1)
        desk.proxier.turn()
    assert 4 <= len(desk.dataplane.applied) <= 12
    desk.dataplane.answer_drift = None
    desk.clock.advance(30)
    desk.proxier.turn()
    assert desk.containment.failing() == []


def test_before_the_first_sync_nobody_asks_for_drift() -> None:
    desk = Desk()
    desk.ready = False
    desk.dataplane.drift = True
    desk.proxier.turn()
    assert desk.dataplane.asked_for_drift == 0


def test_a_mode_gets_its_housekeeping_when_it_asks_for_it() -> None:
    desk = Desk()
    desk.dataplane.care = 60.0
    desk.proxier.turn()
    assert desk.dataplane.housekept == 0, "nothing was written yet"
    for seconds, expected in [(0, 1), (59, 1), (2, 2)]:
        desk.clock.advance(seconds)
        desk.dataplane.care = None if expected == 2 else 60.0
        desk.proxier.turn()
        assert desk.dataplane.housekept == expected
    desk.clock.advance(1000)
    desk.proxier.turn()
    assert desk.dataplane.housekept == 2


@pytest.mark.parametrize("error", [KernelError("not now"), ValueError("garbage")])
def test_housekeeping_that_fails_is_tried_again_with_growing_waits(desk: Desk, error: Exception) -> None:
    desk.dataplane.care = error
    for _ in range(300):
        desk.clock.advance(0.1)
        desk.proxier.turn()
    assert 5 <= desk.dataplane.housekept <= 10
    desk.dataplane.care = None
    desk.clock.advance(30)
    desk.proxier.turn()
    assert desk.containment.failing() == []


# ---------------------------------------------------------------- all together

changes = st.tuples(st.sampled_from([A, B, C]), st.sampled_from([None, 1, 2, 3]))
syncs = st.sampled_from(["well", "badly", "refuse A", "refuse B and C", "check"])


def without(keys: frozenset[PortKey], plans: dict[PortKey, ServicePlan]) -> dict[PortKey, ServicePlan]:
    return {key: plan for key, plan in plans.items() if key not in keys}


@given(st.lists(st.one_of(changes, syncs), max_size=40))
def test_the_kernel_ends_as_wanted_whatever_failed(script: list[tuple[PortKey, int | None] | str]) -> None:
    desk = Desk()
    refusals = {"refuse A": frozenset({A}), "refuse B and C": frozenset({B, C})}
    for action in script:
        if not isinstance(action, str):
            key, port = action
            desk.put(key, None if port is None else plan(key, port))
            continue
        desk.dataplane.fail = KernelError("busy") if action == "badly" else None
        desk.dataplane.refuse = refusals.get(action, frozenset())
        if desk.sync(everything=action == "check", wait=30).outcome is not None:
            refused = desk.dataplane.refuse
            assert without(refused, desk.dataplane.held) == without(refused, desk.wanted)
    desk.dataplane.fail, desk.dataplane.refuse = None, frozenset()
    desk.sync(wait=30)
    assert desk.dataplane.held == desk.wanted


# ---------------------------------------------------------------- the thread


class SystemTime(ManualClock):
    """The host's own monotonic clock."""

    def monotonic(self) -> float:
        return time.monotonic()


class Stuck(DictDataplane):
    """Hangs in apply until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.let_go = threading.Event(), threading.Event()

    def apply(self, wanted: Any, touched: Any) -> Any:
        self.entered.set()
        assert self.let_go.wait(60)
        return super().apply(wanted, touched)


@pytest.fixture
def stuck() -> Iterator[Desk]:
    dataplane = Stuck()
    desk = Desk(dataplane, SystemTime())
    desk.put(A, ONE)
    desk.proxier.start()
    assert dataplane.entered.wait(60)
    yield desk
    dataplane.let_go.set()
    assert desk.proxier.stop(60)


def test_a_proxier_that_hangs_cannot_be_paused_or_stopped_and_takes_changes_all_the_same(stuck: Desk) -> None:
    assert not stuck.proxier.pause(0.1)
    stuck.put(B, plan(B))
    stuck.proxier.resume()
    assert isinstance(stuck.dataplane, Stuck)
    stuck.dataplane.let_go.set()
    for _ in range(1000):
        if stuck.dataplane.held == stuck.wanted:
            break
        time.sleep(0.01)
    assert stuck.dataplane.held == {A: ONE, B: plan(B)}


def test_a_paused_proxier_does_nothing_until_it_goes_on(stuck: Desk) -> None:
    assert isinstance(stuck.dataplane, Stuck)
    stuck.dataplane.let_go.set()
    assert stuck.proxier.pause(60)
    applied = len(stuck.dataplane.applied)
    stuck.put(B, plan(B))
    time.sleep(0.3)
    assert len(stuck.dataplane.applied) == applied
    stuck.proxier.resume()
    for _ in range(1000):
        if B in stuck.dataplane.held:
            break
        time.sleep(0.01)
    assert B in stuck.dataplane.held


def test_a_turn_that_raises_does_not_end_the_thread() -> None:
    desk = Desk(clock=SystemTime())
    tries: list[int] = []

    def take(family: Family) -> FamilyChanges:
        tries.append(1)
        if len(tries) < 3:
            raise ZeroDivisionError
        return FamilyChanges(HERE, Changes({A: (None, ONE)}))

    desk.take = take  # type: ignore[method-assign]
    desk.proxier.start()
    for _ in range(1000):
        if desk.dataplane.held:
            break
        time.sleep(0.01)
    assert desk.proxier.stop(60)
    assert desk.dataplane.held == {A: ONE}
    assert desk.containment.counts()["proxier"] == 2
