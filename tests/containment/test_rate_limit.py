"""A backoff grows to its bound and starts anew after a success; a token bucket keeps to its rate."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from kproxy.rate_limit import Backoff, TokenBucket


def test_waits_double_up_to_the_last() -> None:
    backoff = Backoff(0.2, 1.0)
    assert [backoff.next() for _ in range(5)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.reset()
    assert (backoff.next(), backoff.failures) == (0.2, 1)


@given(st.randoms(use_true_random=False), st.integers(1, 50))
def test_a_drawn_wait_lies_between_the_bounds(random: Random, times: int) -> None:
    backoff = Backoff(0.5, 20.0, random)
    last = 0.5
    for _ in range(times):
        wait = backoff.next()
        assert 0.5 <= wait <= min(20.0, last * 3)
        last = wait
    assert backoff.next(60.0) == 60.0


@given(st.floats(0.1, 100), st.integers(1, 20), st.lists(st.floats(0, 5), max_size=60))
def test_no_more_events_than_burst_and_rate_allow(rate: float, burst: int, pauses: list[float]) -> None:
    now, taken = 0.0, 0
    bucket = TokenBucket(rate, burst, now)
    for pause in pauses:
        now += pause
        taken += bucket.take(now)
        assert taken <= burst + rate * now + 1e-6


@given(st.floats(0.1, 100), st.integers(1, 20), st.integers(1, 60))
def test_reserved_turns_follow_each_other_at_the_rate(rate: float, burst: int, events: int) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    waits = [bucket.reserve(0.0) for _ in range(events)]
    expected = [max(0.0, (number - burst) / rate) for number in range(1, events + 1)]
    assert all(abs(wait - at) < 1e-6 for wait, at in zip(waits, expected, strict=True))
