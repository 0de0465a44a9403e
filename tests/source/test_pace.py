"""Requests to the API server come no faster than qps and burst allow."""

from __future__ import annotations

import pytest

from kproxy.source.pace import Pace


class Time:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


def test_a_burst_is_free_and_then_they_wait_their_turn(time: Time) -> None:
    pace = Pace(5, 3, time.clock, time.sleep)
    for _ in range(5):
        pace.wait()
    assert time.slept == [0.2, 0.2]


def test_what_was_not_used_is_saved_up_to_the_burst(time: Time) -> None:
    pace = Pace(5, 3, time.clock, time.sleep)
    for _ in range(3):
        pace.wait()
    time.now += 1000
    for _ in range(4):
        pace.wait()
    assert time.slept == [0.2]


@pytest.mark.parametrize("qps", [0, -1])
def test_no_limit(qps: float, time: Time) -> None:
    pace = Pace(qps, 1, time.clock, time.sleep)
    for _ in range(100):
        pace.wait()
    assert time.slept == []
