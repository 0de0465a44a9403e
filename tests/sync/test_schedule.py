"""When a sync is due: single situations as tables, and what holds however events and time fall."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from kproxy.sync.schedule import Schedule, Work

MIN, PERIOD = 1.0, 30.0
NOTHING, CHANGES, EVERYTHING = Work

Do = Callable[[Schedule], None]


def changed() -> Do:
    return Schedule.changed


def suspicious() -> Do:
    return Schedule.suspicious


def succeeded(now: float, work: Work = EVERYTHING, left: bool = False) -> Do:
    return lambda schedule: schedule.succeeded(now, work, left)


def failed(now: float) -> Do:
    return lambda schedule: schedule.failed(now)


def other_periods(min_period: float, period: float) -> Do:
    return lambda schedule: schedule.change_periods(min_period, period)


def after(*events: Do) -> Schedule:
    schedule = Schedule(MIN, PERIOD)
    for event in events:
        event(schedule)
    return schedule


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([], [(0, EVERYTHING)], id="at the start everything is checked at once"),
        pytest.param([changed()], [(0, EVERYTHING)], id="changes before the first sync are in it"),
        pytest.param([succeeded(100)], [(100, NOTHING), (129, NOTHING), (130, EVERYTHING)], id="the period"),
        pytest.param(
            [succeeded(100), changed()], [(100.5, NOTHING), (101, CHANGES), (150, EVERYTHING)], id="minimum period"
        ),
        pytest.param([succeeded(100), changed(), changed()], [(101, CHANGES)], id="changes share a sync"),
        pytest.param(
            [succeeded(100), changed(), succeeded(110, CHANGES)],
            [(111, NOTHING), (129, NOTHING), (130, EVERYTHING)],
            id="a sync of changes does not put the check off",
        ),
        pytest.param(
            [succeeded(100), suspicious()],
            [(100.4, NOTHING), (100.5, EVERYTHING)],
            id="somebody else touched the kernel",
        ),
        pytest.param([succeeded(100), changed(), suspicious()], [(100.5, EVERYTHING)], id="changed and touched"),
        pytest.param([failed(100)], [(100.1, NOTHING), (100.2, EVERYTHING)], id="first failure"),
        pytest.param([succeeded(90), failed(100)], [(100.2, EVERYTHING)], id="a failure after a success"),
        pytest.param([failed(99), failed(100)], [(100.3, NOTHING), (100.4, EVERYTHING)], id="second failure"),
        pytest.param([failed(100), changed()], [(100.1, NOTHING), (100.2, EVERYTHING)], id="no shortcut by a change"),
        pytest.param([failed(100)] * 50, [(129.9, NOTHING), (130, EVERYTHING)], id="the wait has an end"),
        pytest.param(
            [failed(90), succeeded(91), failed(100)], [(100.2, EVERYTHING)], id="a success forgets earlier failures"
        ),
        pytest.param(
            [succeeded(100, left=True)], [(100.1, NOTHING), (100.2, EVERYTHING)], id="refused parts are tried again"
        ),
        pytest.param(
            [succeeded(99, left=True), succeeded(100, left=True)],
            [(100.3, NOTHING), (100.4, EVERYTHING)],
            id="refused again: twice as long",
        ),
        pytest.param(
            [succeeded(100, left=True)] * 50, [(129, NOTHING), (130, EVERYTHING)], id="refused forever: every period"
        ),
        pytest.param(
            [*[succeeded(99, left=True)] * 50, succeeded(100), succeeded(101, CHANGES, left=True)],
            [(101.1, NOTHING), (101.2, EVERYTHING)],
            id="refused anew after all was well",
        ),
        pytest.param(
            [*[succeeded(70, left=True)] * 50, *(succeeded(70.0 + i, CHANGES, left=True) for i in range(1, 30))],
            [(99.5, NOTHING), (100, EVERYTHING)],
            id="syncs of changes do not put the check off while parts are refused",
        ),
        pytest.param(
            [succeeded(100), other_periods(0.1, 5), succeeded(101), changed()],
            [(101.05, NOTHING), (101.1, CHANGES), (106, EVERYTHING)],
            id="other periods",
        ),
        pytest.param(
            [succeeded(100), other_periods(10, 60)], [(100.4, NOTHING), (100.5, EVERYTHING)], id="and a check of all"
        ),
    ],
)
def test_due(events: list[Do], expected: list[tuple[float, Work]]) -> None:
    assert [(now, after(*events).due(now)) for now, _ in expected] == expected


def test_the_number_of_failures_in_a_row() -> None:
    schedule = Schedule(MIN, PERIOD)
    counts = []
    for event in (failed(1), failed(2), succeeded(3, CHANGES), failed(4)):
        event(schedule)
        counts.append(schedule.failures)
    assert counts == [1, 2, 0, 1]


@given(st.lists(st.sampled_from([changed(), suspicious(), succeeded(5), failed(5)]), max_size=6), st.floats(5, 100))
def test_next_is_when_something_becomes_due(events: list[Do], now: float) -> None:
    schedule = after(*events)
    when = schedule.next(now)
    assert (schedule.due(now) is NOTHING) == (when > now)
    assert schedule.due(max(when, now)) is not NOTHING


outcome_lists = st.lists(st.sampled_from(["well", "left", "badly"]), min_size=1, max_size=5)


class Running(RuleBasedStateMachine):
    """A caller that asks often, and syncs whenever something is due; a sync succeeds, leaves something, or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule(MIN, PERIOD)
        self.now = 1000.0
        self.last_success: float | None = None
        self.last_check: float | None = None
        self.failing = False
        self.waits: list[float] = []
        self.unwritten_since: float | None = None

    @rule()
    def change(self) -> None:
        self.schedule.changed()
        if self.unwritten_since is None:
            self.unwritten_since = self.now

    @rule()
    def touch(self) -> None:
        self.schedule.suspicious()

    @rule(steps=st.integers(1, 400), outcomes=outcome_lists, busy=st.booleans())
    def let_time_pass(self, steps: int, outcomes: list[str], busy: bool) -> None:
        """busy: something changes all the time."""
        for i in range(steps):
            self.now += 0.1
            if busy:
                self.change()
            work = self.schedule.due(self.now)
            if work is not NOTHING:
                self.sync(work, outcomes[i % len(outcomes)])
            self.check()

    def sync(self, work: Work, outcome: str) -> None:
        if self.failing:
            assert work is EVERYTHING
        if work is CHANGES:
            assert self.last_success is not None
            assert self.now - self.last_success >= MIN - 1e-6
            assert self.unwritten_since is not None
        if outcome == "badly":
            self.schedule.failed(self.now)
            self.failing = True
            return
        self.schedule.succeeded(self.now, work, outcome == "left")
        self.failing, self.last_success, self.unwritten_since = False, self.now, None
        if work is EVERYTHING:
            self.last_check = self.now

    def check(self) -> None:
        if self.failing:
            return
        if self.unwritten_since is not None:
            # No change is forgotten, and it waits for no longer than the minimum period (and what failures added).
            assert self.now - max(self.unwritten_since, self.last_success or 0.0) <= MIN + 0.2
        if self.last_check is not None:
            assert self.now - self.last_check <= PERIOD + MIN + 0.2


TestRunning = Running.TestCase
TestRunning.settings = settings(max_examples=40, stateful_step_count=12)


@pytest.mark.parametrize(("minimum", "wait"), [(0.05, 0.05), (1, 0.5), (60, 0.5)])
def test_what_others_broke_does_not_wait_for_a_long_minimum(minimum: float, wait: float) -> None:
    schedule = Schedule(minimum, PERIOD)
    schedule.succeeded(100, EVERYTHING)
    schedule.suspicious()
    assert schedule.next(100) == 100 + wait
