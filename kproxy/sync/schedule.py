"""Decides when a family is synced. Pure: it is told of events and of the time, and says what is due.

The first change is written at once, later ones share a sync at least `min_period` after the last; everything is checked
every `period`; after a failure the next try waits, twice as long each time, and is a check of everything. What somebody
else broke is repaired within a second however long `min_period` is.
"""

from __future__ import annotations

from enum import IntEnum

from kproxy.rate_limit import Backoff

REPAIR_AFTER = 0.5
"""Seconds after the last sync, at most; noticing what somebody else did takes some tenths more."""


class Work(IntEnum):
    """What to do now, the greater including the smaller."""

    NOTHING = 0
    CHANGES = 1
    EVERYTHING = 2


class Schedule:
    """The timing of one family's syncs. All times are seconds of one monotonic clock."""

    def __init__(self, min_period: float, period: float) -> None:
        self._min_period = min_period
        self._period = period
        self._last: float | None = None
        self._check_at: float | None = None
        self._changed = False
        self._suspicious = True
        self._backoff, self._refusal_backoff = Backoff(), Backoff()
        self._retry_after = 0.0

    def change_periods(self, min_period: float, period: float) -> None:
        """Use other periods from now on; everything is checked soon."""
        self._min_period, self._period = min_period, period
        self._suspicious = True

    @property
    def failures(self) -> int:
        """The number of syncs that failed since the last success."""
        return self._backoff.failures

    @property
    def suspected(self) -> bool:
        """Whether the next sync will check everything anyway."""
        return self._suspicious

    def changed(self) -> None:
        """Note that there is something to write."""
        self._changed = True

    def suspicious(self) -> None:
        """Note that others may have changed the kernel: everything is checked without waiting for the period, and what
        is left after that is tried again soon."""
        self._suspicious = True
        self._refusal_backoff.reset()

    def succeeded(self, now: float, work: Work, left: bool = False) -> None:
        """Note that a sync succeeded. left: the kernel refused parts, or parts of it could not be read; they are tried
        again, others need not wait."""
        self._last = now
        self._changed = self._suspicious = False
        self._backoff.reset()
        if work is not Work.EVERYTHING and not left:
            return
        if not left:
            self._refusal_backoff.reset()
        check_at = now + (min(self._period, self._refusal_backoff.next()) if left else self._period)
        if work is not Work.EVERYTHING and self._check_at is not None:
            check_at = min(check_at, self._check_at)  # a stream of changes must not put the check off for ever
        self._check_at = check_at

    def failed(self, now: float) -> None:
        """Note that a sync failed: what the kernel holds is unknown, so the next one checks everything."""
        self._last = now
        self._retry_after = self._backoff.next()
        self._suspicious = True

    def due(self, now: float) -> Work:
        """What is to be done at `now`."""
        if self.next(now) > now:
            return Work.NOTHING
        periodic = self._check_at is None or self._check_at <= now
        return Work.EVERYTHING if self._suspicious or periodic else Work.CHANGES

    def next(self, now: float) -> float:
        """When something will be due, if nothing happens until then."""
        if self._last is None:
            return now
        if self._backoff.failures:
            # A change does not shorten the wait: it would meet the same failure.
            return self._last + self._retry_after
        if self._suspicious:
            return self._last + min(self._min_period, REPAIR_AFTER)
        if self._changed:
            return self._last + self._min_period
        return now if self._check_at is None else self._check_at
