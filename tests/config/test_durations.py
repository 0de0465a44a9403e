"""Durations read and written as Go does."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.config.durations import HOUR, LARGEST, MILLISECOND, MINUTE, SECOND, Duration, parse

KNOWN = [
    ("0", 0, "0s"),
    ("0s", 0, "0s"),
    ("-0", 0, "0s"),
    ("+5s", 5 * SECOND, "5s"),
    ("30s", 30 * SECOND, "30s"),
    ("90s", 90 * SECOND, "1m30s"),
    ("1h", HOUR, "1h0m0s"),
    ("24h0m0s", 24 * HOUR, "24h0m0s"),
    ("2h22m", 2 * HOUR + 22 * MINUTE, "2h22m0s"),
    ("1.5h", HOUR + 30 * MINUTE, "1h30m0s"),
    ("250ms", 250 * MILLISECOND, "250ms"),
    ("1500ms", 1500 * MILLISECOND, "1.5s"),
    (".5s", 500 * MILLISECOND, "500ms"),
    ("5.s", 5 * SECOND, "5s"),
    ("1us", 1000, "1µs"),
    ("1µs", 1000, "1µs"),
    ("1μs", 1000, "1µs"),
    ("1500us", 1500000, "1.5ms"),
    ("1ns", 1, "1ns"),
    ("0.3ns", 0, "0s"),
    ("-1m30s", -90 * SECOND, "-1m30s"),
    ("3s1h", HOUR + 3 * SECOND, "1h0m3s"),
    ("9223372036854775807ns", LARGEST, "2562047h47m16.854775807s"),
    ("-9223372036854775808ns", -LARGEST - 1, "-2562047h47m16.854775808s"),
]

REFUSED = [
    ("", "must be a duration"),
    ("-", "must be a duration"),
    ("30", "needs a unit"),
    ("1h30", "needs a unit"),
    ("1.5", "needs a unit"),
    (".", "needs a unit"),
    ("s", "must be a duration"),
    (".s", "must be a duration"),
    ("5x", "unknown unit 'x'"),
    ("5 s", "unknown unit ' s'"),
    ("5S", "unknown unit 'S'"),
    ("--5s", "unknown unit|must be a duration"),
    ("1d", "unknown unit 'd'"),
    ("9223372036854775808ns", "292 years"),
    ("99999999h", "292 years"),
]


@pytest.mark.parametrize(("text", "nanoseconds", "written"), KNOWN)
def test_a_known_duration_is_read_and_written(text: str, nanoseconds: int, written: str) -> None:
    assert parse(text) == nanoseconds
    assert str(parse(text)) == written


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_anything_else_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)


@given(st.integers(-LARGEST - 1, LARGEST))
def test_what_is_written_reads_back_to_the_nanosecond(nanoseconds: int) -> None:
    assert parse(str(Duration(nanoseconds))) == nanoseconds


@given(st.text())
def test_no_text_raises_anything_but_value_error(text: str) -> None:
    value: int | None = None
    with suppress(ValueError):
        value = parse(text)
    assert value is None or parse(str(value)) == value


@given(
    st.lists(
        st.tuples(st.integers(0, 10**5), st.sampled_from(["h", "m", "s", "ms", "us", "ns"])), min_size=1, max_size=6
    )
)
def test_parts_add_up(parts: list[tuple[int, str]]) -> None:
    assert parse("".join(f"{n}{unit}" for n, unit in parts)) == sum(parse(f"{n}{unit}") for n, unit in parts)


def test_seconds_are_a_float_for_timers() -> None:
    assert Duration(1500 * MILLISECOND).seconds == 1.5
