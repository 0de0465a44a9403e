"""A stage contains what nobody foresaw, reports it once, counts it, waits longer each time, and then works again."""

from __future__ import annotations

import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.containment import QUIET, Containment, Stage
from kproxy.errors import KernelError
from tests.fakes.clocks import ManualClock


class Rig:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.containment = Containment(self.clock)
        self.stage = self.stage_named("conntrack")

    def stage_named(self, name: str) -> Stage:
        return self.containment.stage(name, "stale flows stay until the next try")


@pytest.fixture
def rig() -> Rig:
    return Rig()


def broken() -> int:
    raise ZeroDivisionError("by\nzero")


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno == level]


def test_a_result_passes_through(rig: Rig) -> None:
    assert rig.stage.attempt(lambda: 5, 0) == 5
    assert rig.containment.failing() == []
    assert rig.containment.counts() == {"conntrack": 0}


def test_an_unforeseen_error_is_contained_and_reported_with_its_traceback(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    assert rig.stage.attempt(broken, -1) == -1
    (line,) = lines(caplog)
    assert "stale flows stay until the next try" in line.getMessage()
    assert line.exc_info is not None
    assert line.exc_info[0] is ZeroDivisionError
    (failing,) = rig.containment.failing()
    assert (failing.stage, failing.failures, failing.error) == ("conntrack", 1, "ZeroDivisionError: by\\nzero")


def test_what_kproxy_raises_on_purpose_passes_through(rig: Rig) -> None:
    def refused() -> None:
        raise KernelError("refused")

    with pytest.raises(KernelError):
        rig.stage.attempt(refused, None)
    assert rig.containment.counts() == {"conntrack": 0}


def test_a_stage_that_fails_for_ever_is_reported_once_and_counted(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100):
        rig.stage.attempt(broken, 0)
        rig.clock.advance(5)
    assert len(lines(caplog)) == 1
    assert rig.containment.counts() == {"conntrack": 100}
    assert rig.containment.failing()[0].failures == 100


def test_a_stage_that_fails_now_and_then_is_not_reported_each_time(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kproxy")
    for _ in range(60):
        rig.stage.attempt(broken, 0)
        rig.stage.attempt(lambda: 0, 0)
        rig.clock.advance(1)
    assert len(lines(caplog)) == 1
    assert len(lines(caplog, logging.INFO)) == 1


def test_another_kind_of_error_is_reported_after_the_quiet_time(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    def otherwise() -> None:
        raise TypeError

    rig.stage.attempt(broken, 0)
    rig.stage.attempt(otherwise, None)
    assert len(lines(caplog)) == 1
    rig.clock.advance(QUIET)
    rig.stage.attempt(otherwise, None)
    assert len(lines(caplog)) == 2


@given(st.integers(1, 40))
def test_waits_grow_and_end_with_the_first_success(failures: int) -> None:
    rig = Rig()
    waits = []
    for _ in range(failures):
        rig.stage.attempt(broken, 0)
        waits.append(rig.stage.retry_in)
        assert not rig.stage.ready
    assert waits == sorted(waits)
    assert (waits[0], waits[-1] <= 30) == (0.2, True)
    rig.stage.attempt(lambda: 0, 0)
    assert rig.stage.ready
    assert rig.containment.failing() == []


def test_stages_of_one_name_are_counted_together_and_wait_apart(rig: Rig) -> None:
    other = rig.stage_named("conntrack")
    rig.stage.attempt(broken, 0)
    other.attempt(broken, 0)
    assert rig.containment.counts() == {"conntrack": 2}
    rig.stage.attempt(lambda: 0, 0)
    assert (rig.stage.ready, other.ready) == (True, False)
    assert [stage.failures for stage in rig.containment.failing()] == [1]


def test_a_supervised_thread_is_started_again_until_it_returns() -> None:
    class Quick(ManualClock):
        """Waits are over at once."""

        def monotonic(self) -> float:
            self.advance(100)
            return super().monotonic()

    containment = Containment(Quick())
    runs: list[int] = []

    def run() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise KernelError("nobody is above this") if len(runs) == 1 else ValueError("garbage")

    containment.stage("events", "…").supervise(run, threading.Event())
    assert len(runs) == 3
    assert containment.counts() == {"events": 2}


def test_a_supervised_thread_ends_when_it_is_asked_to(rig: Rig) -> None:
    stopping = threading.Event()

    def run() -> None:
        stopping.set()
        raise ValueError

    rig.stage.supervise(run, stopping)
    assert rig.containment.counts() == {"conntrack": 1}
