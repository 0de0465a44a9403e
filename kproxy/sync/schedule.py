"""When to sync. Pure: told what happened and the time, says what is due.

Rules: the first change is written at once, later ones share a sync at least `min_period` after the last; everything is
checked every `period`; after a failure the next try waits, twice as long each time, and is a check of everything.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Schedule", "Work"]

FIRST_RETRY = 0.2
LAST_RETRY = 30.0


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
        self._checked: float | None = None
        self._changed = False
        self._full_wanted = True
        self._failures = 0

    @property
    def failures(self) -> int:
        """Tries in a row that failed."""
        return self._failures

    def changed(self) -> None:
        """There is something to write."""
        self._changed = True

    def suspicious(self) -> None:
        """Somebody else touched the kernel: check everything, without waiting for the period."""
        self._full_wanted = True

    def succeeded(self, now: float, work: Work, left: bool = False) -> None:
        """A sync ended well. left: parts of it were refused and are to be tried again."""
        self._last = now
        self._changed = self._full_wanted = False
        if work is Work.EVERYTHING:
            self._checked = now
        if left:
            self._failed()
        else:
            self._failures = 0

    def failed(self, now: float) -> None:
        """A sync ended badly; what the kernel holds is unknown."""
        self._last = now
        self._failed()

    def _failed(self) -> None:
        self._failures += 1
        self._full_wanted = True

    def due(self, now: float) -> Work:
        """What is to be done at `now`."""
        if self.next(now) > now:
            return Work.NOTHING
        return Work.EVERYTHING if self._full_wanted or self._check_at(now) <= now else Work.CHANGES

    def next(self, now: float) -> float:
        """When something will be due, if nothing happens until then."""
        if self._failures:
            # A change does not shorten the wait: it would meet the same failure.
            return self._since(min(LAST_RETRY, FIRST_RETRY * 2 ** min(self._failures - 1, 30)), now)
        if self._changed or self._full_wanted:
            return self._since(self._min_period, now)
        return self._check_at(now)

    def _since(self, wait: float, now: float) -> float:
        return now if self._last is None else self._last + wait

    def _check_at(self, now: float) -> float:
        return now if self._checked is None else self._checked + self._period
