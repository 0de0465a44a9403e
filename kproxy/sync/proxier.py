"""Writes one IP family's plans to the kernel, in a thread of its own: decides what to write, when, and what follows.

A proxier owns all that concerns its family alone: the schedule, the plans that were handed to the dataplane, retries,
housekeeping and the work after a sync. Nothing in here waits for the other family's proxier, so a family whose commands
hang or fail costs the other nothing. What changed comes from the PlanQueue.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from kproxy import logs
from kproxy.clocks import Clock
from kproxy.containment import Containment
from kproxy.errors import KernelError, one_line
from kproxy.model.node_info import NodeInfo
from kproxy.model.plan_store import Changes, FamilyPlans, merge
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.base import Dataplane, Outcome
from kproxy.rate_limit import Backoff
from kproxy.sync.plan_queue import FamilyChanges
from kproxy.sync.schedule import Schedule, Work

_log = logs.get("sync")

POLL_SECONDS = 0.2
"""How often the kernel is asked whether somebody else changed it; the question costs microseconds."""


@dataclass(slots=True)
class Report:
    """How one sync of one family ended. outcome: None when it failed, then `error` says why.

    changes: the plans that this sync replaced and wrote. triggers: when the causes of the written changes happened,
    seconds since the epoch. failures: syncs in a row that have failed with this one, or had before it. retry_in:
    seconds until the next try, after a failure.
    """

    family: Family
    work: Work
    seconds: float
    outcome: Outcome | None = None
    error: KernelError | None = None
    changes: Changes = field(default_factory=dict)
    triggers: list[float] = field(default_factory=list)
    failures: int = 0
    retry_in: float = 0.0


class Plans(Protocol):
    """Where changed plans come from."""

    @property
    def ready(self) -> bool: ...

    def take(self, family: Family) -> FamilyChanges | None: ...


class Observer(Protocol):
    """Is told how syncs go, for metrics, health, logs and Events. Called in the proxier's thread."""

    def drifted(self, family: Family) -> None:
        """Somebody else changed the kernel."""

    def starting(self, family: Family) -> None:
        """A sync begins."""

    def finished(self, report: Report, plans: FamilyPlans) -> None:
        """A sync ended, well or not."""


class PostSync(Protocol):
    """What follows the successful syncs of one family. Called in the proxier's thread."""

    def synced(self, report: Report, plans: FamilyPlans, node: NodeInfo) -> None:
        """A sync ended well."""

    def retry(self, plans: FamilyPlans, node: NodeInfo) -> None:
        """Retry what failed, if its wait is over. Called often."""


class Proxier:
    """Writes the plans of one family. `turn` belongs to one thread, the proxier's own once `start` was called.

    configure: hands the dataplane its settings, before each sync.
    """

    def __init__(
        self,
        dataplane: Dataplane,
        configure: Callable[[NodeInfo, FamilyPlans], None],
        schedule: Schedule,
        plans: Plans,
        post_sync: PostSync,
        observer: Observer,
        clock: Clock,
        containment: Containment,
    ) -> None:
        self.family = family = dataplane.family
        self._dataplane, self._configure, self._schedule = dataplane, configure, schedule
        self._source, self._post_sync, self._observer, self._clock = plans, post_sync, observer, clock
        self._plans = FamilyPlans()
        self._node = NodeInfo()
        self._changes: Changes = {}
        self._triggers: list[float] = []
        self._refused: frozenset[PortKey] = frozenset()
        self._housekeeping_at: float | None = None
        self._drift_at = float("-inf")
        self._drift_backoff, self._housekeeping_backoff = Backoff(), Backoff()
        stage = containment.stage
        self._sync_stage = stage("sync", f"{family} rules stay as they are and all are compared with the kernel next")
        self._render_stage = stage("render", f"a {family} Service port is left out, the others are programmed")
        self._drift_stage = stage("drift", f"all {family} rules are compared with the kernel instead")
        self._housekeeping_stage = stage("housekeeping", f"{family} endpoints that are gone stay a little longer")
        self._report_stage = stage("report", f"a sync of {family} is missing in metrics, status or Events")
        self._post_sync_stage = stage("post-sync", f"stale {family} flows and health checks wait for the next sync")
        self._turn_stage = stage("proxier", f"the {family} proxier goes on with its next turn")
        self._condition = threading.Condition()
        self._changed = self._paused = self._stopping = self._idle = False
        self._periods: tuple[float, float] | None = None
        self._thread: threading.Thread | None = None

    # ---- called by other threads

    def start(self) -> None:
        """Begin to work in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name=f"proxier-{self.family}", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Plans or settings changed: write them as soon as the schedule allows."""
        with self._condition:
            self._changed = True
            self._condition.notify_all()

    def change_periods(self, min_period: float, period: float) -> None:
        """Use other sync periods from now on, in seconds, and check everything soon."""
        with self._condition:
            self._periods = min_period, period
            self._condition.notify_all()

    def pause(self, seconds: float) -> bool:
        """Do nothing more until `resume`; returns whether the turn under way ended within `seconds`."""
        with self._condition:
            self._paused = True
            self._condition.notify_all()
            return self._thread is None or self._condition.wait_for(lambda: self._idle, seconds)

    def resume(self) -> None:
        """Go on after `pause`."""
        with self._condition:
            self._paused = False
            self._condition.notify_all()

    def stop(self, seconds: float) -> bool:
        """End after the turn under way; returns whether that was within `seconds`."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)
            return not self._thread.is_alive()
        return True

    @property
    def programmed(self) -> FamilyPlans:
        """The plans that were handed to the dataplane. Only to be read while the proxier is stopped or paused."""
        return self._plans

    @property
    def node(self) -> NodeInfo:
        """The node that the `programmed` plans are for; read under the same condition."""
        return self._node

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """See Dataplane.names."""
        return self._dataplane.names(plan)

    # ---- the proxier's own thread

    def _run(self) -> None:
        while self._wait():
            if self._turn_stage.ready:
                try:
                    self._turn_stage.attempt(self.turn, None)
                except Exception as error:  # what kproxy raises on purpose has no business here either
                    self._turn_stage.failed(error)
        with self._condition:
            self._idle = True
            self._condition.notify_all()

    def _wait(self) -> bool:
        """Wait until something may be due; returns whether to go on."""
        with self._condition:
            if not (self._changed or self._stopping or self._paused):
                self._condition.wait(self._pause_seconds())
            while self._paused and not self._stopping:
                self._idle = True
                self._condition.notify_all()
                self._condition.wait()
            self._idle = False
            return not self._stopping

    def _pause_seconds(self) -> float:
        if not self._source.ready:  # whatever is due cannot be done before there are plans
            return POLL_SECONDS
        now = self._clock.monotonic()
        return max(0.0, min(POLL_SECONDS, self._schedule.next(now) - now))

    def turn(self) -> None:
        """Do what is due now."""
        with self._condition:
            changed, self._changed = self._changed, False
            periods, self._periods = self._periods, None
        if periods is not None:
            self._schedule.change_periods(*periods)
        if changed:
            self._schedule.changed()
        if not self._source.ready:
            return
        self._look_for_drift()
        self._run_housekeeping()
        if work := self._schedule.due(self._clock.monotonic()):
            self._sync(work)

    def _look_for_drift(self) -> None:
        """Have everything checked if others changed the kernel since the last sync, or if that is unknown."""
        now = self._clock.monotonic()
        if self._schedule.suspected or now < self._drift_at:
            return
        failures = self._drift_stage.failures
        try:
            drifted = self._drift_stage.attempt(self._dataplane.drifted, otherwise=True)
            failed = self._drift_stage.failures > failures
        except KernelError as error:
            drifted = failed = True
            if not self._drift_backoff.failures:
                _log.error(
                    "Cannot tell whether other programs changed the rules; checking all of them",
                    error,
                    family=self.family,
                )
        if failed:
            self._drift_at = now + self._drift_backoff.next()
        else:
            self._drift_backoff.reset()
        if drifted:
            self._schedule.suspicious()
            self._report_stage.attempt(lambda: self._observer.drifted(self.family), None)

    def _run_housekeeping(self) -> None:
        """Let the mode do what is due without any change, and retry what failed after a sync."""
        now = self._clock.monotonic()
        self._post_sync_stage.attempt(lambda: self._post_sync.retry(self._plans, self._node), None)
        if self._housekeeping_at is None or now < self._housekeeping_at:
            return
        failures = self._housekeeping_stage.failures
        pause: float | None = None
        try:
            pause = self._housekeeping_stage.attempt(self._dataplane.housekeeping, None)
            failed = self._housekeeping_stage.failures > failures
        except KernelError as error:
            failed = True
            if not self._housekeeping_backoff.failures:
                _log.error(
                    "Endpoints that are gone and have no connections left could not be deleted; will retry",
                    error,
                    family=self.family,
                )
        if failed:
            pause = self._housekeeping_backoff.next()
        else:
            self._housekeeping_backoff.reset()
        self._housekeeping_at = None if pause is None else now + pause

    def _sync(self, work: Work) -> None:
        taken = self._source.take(self.family)
        if taken is None:
            return
        self._node = taken.node
        self._plans.update(taken.plans)
        merge(self._changes, taken.plans)
        self._triggers += taken.triggers
        self._report_stage.attempt(lambda: self._observer.starting(self.family), None)
        report = self._write(work)
        if report.outcome is not None:
            self._post_sync_stage.attempt(lambda: self._post_sync.synced(report, self._plans, self._node), None)
        self._report_stage.attempt(lambda: self._observer.finished(report, self._plans), None)

    def _write(self, work: Work) -> Report:
        """Write what changed, or check everything. Never raises: a failure is in the report."""
        start = self._clock.monotonic()
        report = Report(self.family, work, 0.0, changes=self._changes, triggers=self._triggers)
        try:
            self._configure(self._node, self._plans)
            report.outcome = self._dataplane.apply(self._plans.plans, self._ports_to_write(work))
            self._sync_stage.succeeded()
        except KernelError as error:
            report.error = error
        except Exception as error:
            self._sync_stage.failed(error)
            report.error = KernelError(f"unexpected {one_line(f'{type(error).__name__}: {error}')}")
        report.seconds = self._clock.monotonic() - start
        self._settle(report)
        return report

    def _ports_to_write(self, work: Work) -> frozenset[PortKey] | None:
        """The ports that the dataplane has to look at, None for all. Refused ports are included: they may work now."""
        return None if work is Work.EVERYTHING else self._refused.union(self._changes)

    def _settle(self, report: Report) -> None:
        now = self._housekeeping_at = self._clock.monotonic()
        report.failures = self._schedule.failures
        if report.outcome is None:
            self._schedule.failed(now)
            report.failures += 1
            report.retry_in = self._schedule.next(now) - now
            return
        for error in list(report.outcome.faults.values())[:1]:
            self._render_stage.failed(error)
        if not report.outcome.faults:
            self._render_stage.succeeded()
        self._refused = frozenset(report.outcome.rejected)
        self._changes, self._triggers = {}, []
        left = bool(self._refused or report.outcome.unreadable)
        self._schedule.succeeded(now, report.work, left)
