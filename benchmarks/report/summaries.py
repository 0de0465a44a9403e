"""What a run's samples come to: percentiles, ratios between subjects, growth with the cluster. Pure.

Samples are kept apart by quantity, subject and size. A size is a number of Services together with the endpoints of
each, so that 10,000 Services of 5 endpoints and of 10 are never taken for one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.figures import number
from benchmarks.suite.results import Problem, Quantity, Run, Subject

_STEPS = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "1/s": ((1.0, "/s"),),
}


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """Of a cluster. services: how many; endpoints: of each."""

    services: int
    endpoints: int

    def __str__(self) -> str:
        return f"{self.services:,} × {self.endpoints:,}"


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one subject's samples at one size, in the quantity's unit. p99: 99 % of them are no worse; worst: none is."""

    count: int
    p50: float
    p99: float
    worst: float


@dataclass(frozen=True, slots=True)
class Growth:
    """The p50 at the largest size over that at the smallest, both with the same number of endpoints a Service."""

    smallest: Size
    largest: Size
    ratio: float

    @property
    def clusters(self) -> float:
        """How many times larger the cluster became."""
        return self.largest.services / self.smallest.services


@dataclass(frozen=True, slots=True)
class Pair:
    """A subject and the first baseline in the same mode."""

    subject: str
    baseline: str


class Results:
    """A run, by quantity, subject and size. Subjects stay in the run's order; the first baseline, or else the first
    subject, is the reference of all ratios."""

    def __init__(self, run: Run) -> None:
        self._samples: dict[tuple[Quantity, str, Size], list[float]] = {}
        self._notes: dict[tuple[Quantity, str, Size], list[str]] = {}
        for found in run.measurements:
            key = (found.quantity, found.subject, Size(found.services, found.endpoints))
            if found.samples:
                self._samples.setdefault(key, []).extend(found.samples)
            if found.note:
                self._notes.setdefault(key, []).append(found.note)
        self.problems: tuple[Problem, ...] = run.problems
        self.subjects = tuple(subject.name for subject in run.subjects)
        self.subjects += tuple(sorted({subject for _, subject, _ in self._samples} - set(self.subjects)))
        self.quantities = [each for each in Quantity if any(each is quantity for quantity, _, _ in self._samples)]
        self.reference = _reference(run.subjects, self.subjects)
        self.pairs = _pairs(run.subjects)

    def measured(self, quantity: Quantity) -> list[str]:
        """The subjects that have samples of it."""
        having = {subject for each, subject, _ in self._samples if each is quantity}
        return [subject for subject in self.subjects if subject in having]

    def sizes(self, quantity: Quantity | None = None, subject: str | None = None) -> list[Size]:
        """From small to large; of one quantity or all, of one subject or all."""
        return sorted(
            {
                size
                for each, name, size in self._samples
                if quantity in (None, each) and (subject is None or subject == name)
            }
        )

    def samples(self, quantity: Quantity, subject: str, size: Size) -> Sequence[float]:
        """In the order in which they were taken; none where it was not measured."""
        return self._samples.get((quantity, subject, size), [])

    def notes(self, quantity: Quantity, subject: str, size: Size) -> Sequence[str]:
        return self._notes.get((quantity, subject, size), [])

    def summary(self, quantity: Quantity, subject: str, size: Size) -> Summary | None:
        samples = sorted(self.samples(quantity, subject, size), reverse=quantity.more_is_better)
        if not samples:
            return None
        return Summary(len(samples), median(samples), percentile(samples, 99), samples[-1])

    def ratio(self, quantity: Quantity, subject: str, size: Size) -> float | None:
        """The subject's p50 over the reference's at that size; None where one is missing or the reference's is 0."""
        mine, other = self.summary(quantity, subject, size), self.summary(quantity, self.reference, size)
        return mine.p50 / other.p50 if mine and other and other.p50 else None

    def against_baseline(self, quantity: Quantity, pair: Pair) -> float | None:
        """The subject's p50 over its baseline's, at the largest size that both have; None where there is none."""
        sizes = {*self.sizes(quantity, pair.subject)} & {*self.sizes(quantity, pair.baseline)}
        mine, other = (
            self.summary(quantity, name, max(sizes)) if sizes else None for name in (pair.subject, pair.baseline)
        )
        return mine.p50 / other.p50 if mine and other and other.p50 else None

    def growth(self, quantity: Quantity, subject: str) -> Growth | None:
        """Over the widest span of Services that was measured with one number of endpoints; None with one size only."""
        spans: dict[int, list[Size]] = {}
        for size in self.sizes(quantity, subject):
            spans.setdefault(size.endpoints, []).append(size)
        sizes = max(spans.values(), key=lambda span: span[-1].services / max(span[0].services, 1), default=[])
        if len(sizes) < 2:
            return None
        first, last = (self.summary(quantity, subject, size) for size in (sizes[0], sizes[-1]))
        if first is None or last is None or not first.p50:
            return None
        return Growth(sizes[0], sizes[-1], last.p50 / first.p50)

    def common(self, quantity: Quantity) -> Size | None:
        """The largest of the sizes that most subjects were measured at."""
        sizes = self.sizes(quantity)
        if not sizes:
            return None
        return max(sizes, key=lambda s: (sum(bool(self.samples(quantity, name, s)) for name in self.subjects), s))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """By nearest rank: a value that was measured. Of fewer than 100 samples, the 99th percentile is the last."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def amount(value: float, unit: str) -> str:
    """For people, in the prefix that fits: 0.0123 s is "12.3 ms". unit: as `Quantity.unit`; MB are 1,000,000 bytes."""
    steps = _STEPS[unit]
    scale, name = next((step for step in steps if abs(value) >= step[0] * 0.9995), steps[-1])
    if not value:
        scale, name = 1.0, dict(steps)[1.0]
    return f"{number(value / scale)} {name}".replace(" /s", "/s")


def times(value: float) -> str:
    """A ratio: two decimals, and below a tenth two digits that matter."""
    if not value or value >= 0.1:
        return f"{value:,.2f}"
    return f"{value:.{1 - math.floor(math.log10(value))}f}"


def _pairs(subjects: Sequence[Subject]) -> tuple[Pair, ...]:
    baselines = {subject.mode: subject.name for subject in reversed(subjects) if subject.baseline}
    return tuple(
        Pair(subject.name, baselines[subject.mode])
        for subject in subjects
        if not subject.baseline and subject.mode in baselines
    )


def _reference(subjects: Sequence[Subject], names: Sequence[str]) -> str:
    return next((each.name for each in subjects if each.baseline), names[0] if names else "")
