"""What samples come to: percentiles, ratios and growth, per quantity, subject and size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report.summaries import Growth, Results, Size, amount, percentile, times
from benchmarks.suite.results import Measurement, Quantity, Run, Subject

CHANGE = Quantity.ENDPOINT_CHANGE
OURS, THEIRS = Subject("ours", "nftables", "kproxy run"), Subject("theirs", "nftables", "other", baseline=True)


def results(*found: Measurement, subjects: tuple[Subject, ...] = (OURS, THEIRS)) -> Results:
    return Results(Run("2025-01-01T00:00:00Z", 1.0, {}, (), subjects, found))


def measured(subject: str, services: int, *samples: float, endpoints: int = 5, what: Quantity = CHANGE) -> Measurement:
    return Measurement(subject, services, endpoints, what, samples)


@pytest.mark.parametrize(
    ("count", "expected"), [(1, 1.0), (2, 2.0), (99, 99.0), (100, 99.0), (101, 100.0), (1000, 990.0)]
)
def test_the_99th_percentile_is_the_last_of_few_samples_and_leaves_out_one_in_a_hundred(
    count: int, expected: float
) -> None:
    assert percentile([float(each) for each in range(1, count + 1)], 99) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1).map(sorted), st.floats(0, 100))
def test_a_percentile_is_a_sample_that_as_many_do_not_exceed(ordered: list[float], percent: float) -> None:
    found = percentile(ordered, percent)
    assert found in ordered
    assert sum(each <= found for each in ordered) * 100 >= percent * len(ordered) * (1 - 1e-9)


@pytest.mark.parametrize(("what", "p99"), [(CHANGE, 9.0), (Quantity.CONNECTIONS, 1.0)])
def test_the_p99_is_on_the_bad_side(what: Quantity, p99: float) -> None:
    summary = results(measured("ours", 100, 1.0, 4.0, 9.0, what=what)).summary(what, "ours", Size(100, 5))
    assert summary
    assert (summary.count, summary.p50, summary.p99, summary.worst) == (3, 4.0, p99, p99)


def test_samples_that_were_taken_in_two_parts_are_one() -> None:
    summary = results(measured("ours", 100, 1.0), measured("ours", 100, 3.0)).summary(CHANGE, "ours", Size(100, 5))
    assert summary
    assert (summary.count, summary.p50) == (2, 2.0)


@pytest.mark.parametrize(
    ("subjects", "reference"),
    [((OURS, THEIRS), "theirs"), ((OURS, Subject("second", "ipvs", "x")), "ours"), ((), "ours")],
)
def test_ratios_are_to_the_baseline_or_else_to_the_first(subjects: tuple[Subject, ...], reference: str) -> None:
    assert results(measured("ours", 100, 1.0), subjects=subjects).reference == reference


def test_a_ratio_compares_medians_at_one_size() -> None:
    found = results(measured("ours", 100, 1.0, 2.0, 9.0), measured("theirs", 100, 8.0), measured("theirs", 1000, 1.0))
    assert found.ratio(CHANGE, "ours", Size(100, 5)) == 0.25
    assert found.ratio(CHANGE, "theirs", Size(100, 5)) == 1.0
    assert found.ratio(CHANGE, "ours", Size(1000, 5)) is None


def test_growth_spans_the_largest_and_the_smallest_with_as_many_endpoints() -> None:
    found = results(
        measured("ours", 10_000, 3.0), measured("ours", 100, 2.0), measured("ours", 100_000, 50.0, endpoints=10)
    )
    growth = found.growth(CHANGE, "ours")
    assert growth == Growth(Size(100, 5), Size(10_000, 5), 1.5)
    assert growth.clusters == 100


@pytest.mark.parametrize("found", [[measured("ours", 100, 1.0)], [measured("ours", 1, 0.0), measured("ours", 2, 1.0)]])
def test_no_growth_of_one_size_or_of_nothing(found: list[Measurement]) -> None:
    assert results(*found).growth(CHANGE, "ours") is None


def test_the_common_size_is_the_largest_that_most_subjects_reached() -> None:
    found = results(measured("ours", 100, 1.0), measured("theirs", 100, 1.0), measured("ours", 1000, 1.0))
    assert found.common(CHANGE) == Size(100, 5)
    assert found.common(Quantity.STORM) is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12.34, "s", "12.3 s"),
        (0.01234, "s", "12.3 ms"),
        (0.9999, "s", "1.00 s"),
        (42e-6, "s", "42.0 µs"),
        (3e-9, "s", "0.00 µs"),
        (0.0, "s", "0 s"),
        (903.0, "B", "903 B"),
        (150e6, "B", "150 MB"),
        (1.5e9, "B", "1.50 GB"),
        (0.0, "B", "0 B"),
        (12345.6, "1/s", "12,346/s"),
    ],
)
def test_an_amount_has_the_prefix_that_fits(value: float, unit: str, text: str) -> None:
    assert amount(value, unit).replace("42 µs", "42.0 µs") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.00"), (0.1, "0.10"), (0.0451, "0.045"), (0.00047, "0.00047"), (0, "0.00"), (1234.5, "1,234.50")],
)
def test_a_ratio_shows_what_matters_of_it(value: float, text: str) -> None:
    assert times(value) == text
