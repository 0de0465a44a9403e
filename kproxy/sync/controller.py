"""The sync thread: takes in what happened, plans what is dirty, has the families write it, and says how it went.

It decides when, not what: Service semantics are the model's, rules are the modes', times are the schedules'.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from kproxy.errors import InvalidObject
from kproxy.model.events import Event
from kproxy.model.node_info import NodeView
from kproxy.model.plan_store import PlanStore
from kproxy.model.planner import Place
from kproxy.model.plans import Family, ServicePlan
from kproxy.model.state import ClusterState
from kproxy.sync.event_queue import EventQueue
from kproxy.sync.proxier import Proxier, Report
from kproxy.sync.schedule import Work

POLL_SECONDS = 0.2
"""How often the kernel is asked whether somebody else changed it; the question costs microseconds."""


class Observer(Protocol):
    """Told what happens: metrics, health, logs, Events."""

    def problems(self, found: Collection[InvalidObject]) -> None:
        """Objects of the cluster that cannot be used."""

    def queued(self, families: Collection[Family], service_changes: int, endpoint_changes: int) -> None:
        """Changes came in and wait; the numbers are all that wait."""

    def planned(self, service_changes: int, endpoint_changes: int) -> None:
        """That many changes were planned and are no longer pending."""

    def drifted(self, family: Family) -> None:
        """Somebody else changed the kernel."""

    def starting(self, family: Family) -> None:
        """A sync begins."""

    def finished(self, report: Report, book: PlanStore) -> None:
        """A sync ended, well or not."""

    def node(self, node: NodeView | None) -> None:
        """The Node object changed."""


class PostSync(Protocol):
    """What follows a successful sync of one family (stale flows, health checks)."""

    def __call__(self, report: Report, book: PlanStore) -> None: ...


class Surroundings(Protocol):
    """The node and host that the rules are for, which may change."""

    def place(self, state: ClusterState) -> Place | None:
        """Where plans are for; None while that is not known well enough to program anything."""

    def changed(self) -> bool:
        """Whether something that settings depend on changed since the last call."""


class Controller:
    """Runs until the inbox is stopped."""

    def __init__(
        self,
        state: ClusterState,
        inbox: EventQueue,
        workers: Collection[Proxier],
        surroundings: Surroundings,
        observer: Observer,
        afterwork: PostSync,
    ) -> None:
        self._state = state
        self._inbox = inbox
        self._workers: Mapping[Family, Proxier] = {worker.family: worker for worker in workers}
        self._surroundings = surroundings
        self._place: Place | None = None
        self._waiting = True
        self._observer = observer
        self._afterwork = afterwork
        self._book = PlanStore()
        self._planning = threading.Lock()
        self._node: NodeView | None = None

    @property
    def book(self) -> PlanStore:
        """The plans as they were last handed to the modes."""
        return self._book

    def plans(self) -> list[ServicePlan]:
        """A copy of the plans of all families, for other threads."""
        with self._planning:
            return [plan for family in self._workers for plan in self._book.pages[family].plans.values()]

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """By which names a plan is found in the kernel. From any thread."""
        return self._workers[plan.family].names(plan)

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Work until `inbox.stop` was called or UNTIL holds; what is then in the kernel stays. May be called again.

        until: asked between syncs; `inbox.wake` lets it be asked soon.
        """
        with ThreadPoolExecutor(len(self._workers), thread_name_prefix="sync") as pool:
            while not self._inbox.stopped and not until():
                self.step(pool, self._timeout())

    def step(self, pool: ThreadPoolExecutor, timeout: float) -> None:
        """One turn: wait at most `timeout` for news, then do what is due."""
        self._absorb(self._inbox.take(timeout))
        place = self._surroundings.place(self._state) if self._state.ready else None
        self._waiting = place is None
        if place is None:
            return
        changed = self._surroundings.changed() or place != self._place
        for worker in self._workers.values():
            if worker.drifted():
                self._observer.drifted(worker.family)
            if changed:
                worker.schedule.changed()
        now = time.monotonic()
        for worker in self._workers.values():
            worker.housekeeping(now)
        due = {worker: work for worker in self._workers.values() if (work := worker.schedule.due(now))}
        if due:
            self._plan(place)
            self._sync(pool, due)

    def _timeout(self) -> float:
        if self._waiting:  # whatever is due cannot be done before there is news
            return POLL_SECONDS
        now = time.monotonic()
        soonest = min((worker.schedule.next(now) for worker in self._workers.values()), default=now + POLL_SECONDS)
        return max(0.0, min(POLL_SECONDS, soonest - now))

    def _absorb(self, events: Collection[Event]) -> None:
        before = (self._state.pending, self._state.all_dirty)
        problems = [problem for event in events for problem in self._state.apply(event)]
        if problems:
            self._observer.problems(problems)
        if self._state.node != self._node:
            self._node = self._state.node
            self._observer.node(self._node)
        if (self._state.pending, self._state.all_dirty) != before:
            for worker in self._workers.values():
                worker.schedule.changed()
            if self._state.ready:
                self._observer.queued(self._workers.keys(), *self._state.pending)

    def _plan(self, place: Place) -> None:
        dirty = self._state.take_dirty()
        if place != self._place:
            self._place = place
            dirty = dirty._replace(all=True)
        with self._planning:
            touched = self._book.update(self._state, dirty, place)
        triggers = [when for times in dirty.triggers.values() for when in times]
        for family, worker in self._workers.items():
            worker.touch(touched[family], triggers)
        self._observer.planned(dirty.service_changes, dirty.endpoint_changes)

    def _sync(self, pool: ThreadPoolExecutor, due: Mapping[Proxier, Work]) -> None:
        running = []
        for worker, work in due.items():
            self._observer.starting(worker.family)
            running.append(pool.submit(worker.sync, work, self._book.pages[worker.family]))
        for task in running:
            report = task.result()
            if report.outcome is not None:
                self._afterwork(report, self._book)
            self._observer.finished(report, self._book)
