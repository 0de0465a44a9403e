"""One family's way to the kernel: what is still to be written, when, and how the last try ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kproxy import logs
from kproxy.errors import KernelError
from kproxy.model.plan_store import FamilyPlans, Touched
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.base import Dataplane, Outcome
from kproxy.sync.schedule import Schedule, Work

_log = logs.get("sync")

HOUSEKEEPING_RETRY = 5.0
"""Seconds after which care that failed is tried again."""


@dataclass(slots=True)
class Report:
    """How one sync of one family ended. outcome: None when it failed, then `error` says why.

    before, after: the plans that this sync replaced and wrote, by port, for what follows a sync (stale flows).
    triggers: when the causes of the written changes happened, seconds since the epoch. failures: how many syncs in a
    row have failed with this one, or had before it. retry_in: seconds until the next try, after a failure.
    """

    family: Family
    work: Work
    seconds: float
    outcome: Outcome | None = None
    error: KernelError | None = None
    touched: Touched = field(default_factory=dict)
    triggers: list[float] = field(default_factory=list)
    failures: int = 0
    retry_in: float = 0.0


class Proxier:
    """Collects changes of one family and applies them. Used by the sync thread only, but for `sync`, which may run in
    another thread while the sync thread waits for it.

    configure: called before each sync with the family's page; hands the mode its settings, which may have changed.
    """

    def __init__(
        self, dataplane: Dataplane, schedule: Schedule, configure: Callable[[FamilyPlans], None] | None = None
    ) -> None:
        self.family = dataplane.family
        self.schedule = schedule
        self._dataplane = dataplane
        self._configure = configure
        self._touched: Touched = {}
        self._triggers: list[float] = []
        self._refused: frozenset[PortKey] = frozenset()
        self._housekeeping_at: float | None = None

    @property
    def failing(self) -> bool:
        return self.schedule.failures > 0

    def touch(self, touched: Touched, triggers: Iterable[float]) -> None:
        """Note plans that changed; several changes of one port become one."""
        for key, (old, new) in touched.items():
            first = self._touched[key][0] if key in self._touched else old
            self._touched[key] = (first, new)
        if touched:
            self._triggers.extend(triggers)

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """As Dataplane.names."""
        return self._dataplane.names(plan)

    def drifted(self) -> bool:
        """Whether it is news that somebody else changed the kernel since the last sync; all is checked soon then."""
        if self.schedule.suspected:
            return False
        try:
            if not self._dataplane.drifted():
                return False
        except KernelError as error:
            _log.error("Cannot tell whether others changed the rules; checking all", error, family=self.family)
        self.schedule.suspicious()
        return True

    def housekeeping(self, now: float) -> None:
        """Let the mode do what is due without any change. A failure is logged and tried again."""
        if self._housekeeping_at is None or now < self._housekeeping_at:
            return
        try:
            pause = self._dataplane.housekeeping()
        except KernelError as error:
            _log.error(
                "Endpoints that left could not be let go; tried again",
                error,
                family=self.family,
                retry_in=HOUSEKEEPING_RETRY,
            )
            pause = HOUSEKEEPING_RETRY
        self._housekeeping_at = None if pause is None else now + pause

    def sync(self, work: Work, page: FamilyPlans) -> Report:
        """Write what changed, or check everything. Never raises KernelError: a failure is in the report."""
        start = time.monotonic()
        report = Report(self.family, work, 0.0, touched=self._touched, triggers=self._triggers)
        try:
            if self._configure:
                self._configure(page)
            report.outcome = self._dataplane.apply(page.plans, self._keys(work))
        except KernelError as error:
            report.error = error
        except Exception as error:  # a bug must not end what still works: it is a failed sync like any other
            _log.error(
                "Unexpected error in a sync, which is a bug; all is compared with the kernel next",
                error,
                family=self.family,
            )
            report.error = KernelError(f"unexpected {type(error).__name__}: {error}")
        report.seconds = time.monotonic() - start
        self._settle(report)
        return report

    def _keys(self, work: Work) -> frozenset[PortKey] | None:
        """The ports to look at. Ports that were refused stay in: their plan may have become acceptable."""
        return None if work is Work.EVERYTHING else self._refused.union(self._touched)

    def _settle(self, report: Report) -> None:
        now = self._housekeeping_at = time.monotonic()
        report.failures = self.schedule.failures
        if report.outcome is None:
            self.schedule.failed(now)
            report.failures += 1
            report.retry_in = self.schedule.next(now) - now
            return
        self._refused = frozenset(report.outcome.rejected)
        self._touched, self._triggers = {}, []
        self.schedule.succeeded(now, report.work, left=bool(self._refused))
