"""Passes the cluster's plans from the thread that follows the cluster to the proxiers that write them.

The controller adds events and says what node the plans are for. A proxier takes the plans of its family that changed
when it is about to write: only then are dirty Services planned, so that many events of one Service between two syncs
are planned once. What was planned for the other family waits for its proxier.

Everything is guarded by one lock, which is held while plans are made and never while the kernel is spoken to: a family
that hangs keeps the other from nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from kproxy.containment import Containment
from kproxy.errors import InvalidObject
from kproxy.model.events import Changed, Deleted, Event, Listed
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Kind
from kproxy.model.plan_store import Changes, PlanStore, merge
from kproxy.model.plans import Family, ServicePlan
from kproxy.model.state import ClusterState, ServiceName


@dataclass(slots=True)
class FamilyChanges:
    """What changed for one family since its proxier last asked.

    triggers: when the causes of the changes happened, seconds since the epoch.
    """

    node: NodeInfo
    plans: Changes = field(default_factory=dict)
    triggers: list[float] = field(default_factory=list)


class Observer(Protocol):
    """Learns of changes that wait and of changes that were planned."""

    def queued(self, service_changes: int, endpoint_changes: int) -> None:
        """Changes wait; the numbers are all that wait."""

    def planned(self) -> None:
        """No changes wait any more."""


class PlanQueue:
    """Owns the ClusterState and the PlanStore. Every method may be called from any thread."""

    def __init__(
        self, state: ClusterState, families: Collection[Family], observer: Observer, containment: Containment
    ) -> None:
        self._lock = threading.Lock()
        self._state, self._observer = state, observer
        self._store = PlanStore()
        self._node: NodeInfo | None = None
        self._external_ips = True
        self._replan_all = False
        self._waiting: dict[Family, FamilyChanges | None] = dict.fromkeys(families)
        self._apply_stage = containment.stage(
            "cluster-state", "the object stays as it was last known, and is read again after a while"
        )
        self._plan_stage = containment.stage("plan", "the Service's rules stay as they are until it can be planned")
        self._report_stage = containment.stage("report", "a change is missing in metrics, status or Events")
        self._unapplied: dict[tuple[Kind, str, str], Event] = {}
        self._unplanned: set[ServiceName] = set()

    @property
    def ready(self) -> bool:
        """Whether there is anything to write: the first lists are in, and the node is known."""
        return self._node is not None

    def add(self, events: Iterable[Event]) -> tuple[list[InvalidObject], bool]:
        """Apply events to the state of the cluster.

        Returns the problems of objects that cannot be used, and whether anything changed that proxiers have to write.
        """
        with self._lock:
            before = self._state.pending, self._state.all_dirty
            failures: list[Exception] = []
            problems = [problem for event in events for problem in self._apply(event, failures)]
            if failures:  # one wait, however many objects it is
                self._apply_stage.failed(failures[0])
            elif not self._unapplied:
                self._apply_stage.succeeded()
            pending = self._state.pending
            changed = (pending, self._state.all_dirty) != before
            if changed and self._state.ready:
                self._report_stage.attempt(lambda: self._observer.queued(*pending), None)
        return problems, changed

    def retry(self) -> tuple[list[InvalidObject], bool]:
        """Try again what could not be applied or planned because of an unexpected error, once its wait is over."""
        problems: list[InvalidObject] = []
        changed = False
        if self._unapplied and self._apply_stage.ready:
            with self._lock:
                events = list(self._unapplied.values())
            problems, changed = self.add(events)
        return problems, changed or bool(self._unplanned and self._plan_stage.ready)

    def set_node(self, node: NodeInfo | None, external_ips: bool) -> bool:
        """Plan for this node from now on; None while too little is known of it. Returns whether that changed anything.

        external_ips: whether external IPs are served.
        """
        with self._lock:
            before = self._node
            if node == before and external_ips == self._external_ips:
                return False
            if node is not None:
                self._replan_all |= before is None or node.decides_plans != before.decides_plans
                self._replan_all |= external_ips != self._external_ips
            self._node, self._external_ips = node, external_ips
            return node is not None

    def take(self, family: Family) -> FamilyChanges | None:
        """What changed for one family since the last call, with dirty Services planned; None while not `ready`.

        After the first call, and after `start_anew`, that is every plan.
        """
        with self._lock:
            if self._node is None:
                return None
            self._plan(self._node)
            taken = self._waiting[family]
            if taken is None:
                taken = FamilyChanges(self._node)
                taken.plans = {plan.key: (None, plan) for plan in self._store.plans() if plan.family is family}
            taken.node = self._node
            self._waiting[family] = FamilyChanges(self._node)
            return taken

    def start_anew(self, families: Collection[Family]) -> None:
        """Start over for new proxiers: the first `take` of each of `families` returns all plans."""
        with self._lock:
            self._waiting = dict.fromkeys(families)

    def plans(self) -> list[ServicePlan]:
        """The newest plans of the families that are programmed."""
        with self._lock:
            return [plan for plan in self._store.plans() if plan.family in self._waiting]

    def _apply(self, event: Event, failures: list[Exception]) -> list[InvalidObject]:
        key = _key(event)
        if self._unapplied:  # hardly ever; this runs for every event
            unapplied = {at: older for at, older in self._unapplied.items() if not _replaces(event, at)}
            self._unapplied = {at: _without(older, key) for at, older in unapplied.items()}
        try:
            return self._state.apply(event)
        except Exception as error:
            failures.append(error)
            if isinstance(event, Listed):
                return self._delete_absent(event, failures)
            if key is None:
                return []
            self._unapplied[key] = event
            kind, namespace, name = key
            return [InvalidObject(kind.value, f"{namespace}/{name}", "", f"unexpected {type(error).__name__}")]

    def _delete_absent(self, event: Listed, failures: list[Exception]) -> list[InvalidObject]:
        """Delete one by one what is not in a list that could not be applied; only what cannot be deleted waits for a
        retry, and the list itself if it cannot be told what that is."""
        try:
            absent = self._state.absent(event)
        except Exception as error:
            failures.append(error)
            self._unapplied[event.kind, "", ""] = event
            return []
        gone = (Deleted(event.kind, namespace, name) for namespace, name in absent)
        return [problem for deletion in gone for problem in self._apply(deletion, failures)]

    def _plan(self, node: NodeInfo) -> None:
        dirty = self._state.take_dirty()
        retried: set[ServiceName] = set()
        if self._unplanned and self._plan_stage.ready:
            retried, self._unplanned = self._unplanned, set()
        replan_all, self._replan_all = self._replan_all or dirty.all, False
        if not (dirty.names or retried or replan_all):
            self._report_stage.attempt(self._observer.planned, None)
            return
        dirty = dirty._replace(all=replan_all, names=dirty.names | retried)
        failures: dict[ServiceName, Exception] = {}
        try:
            changes = self._store.update(self._state, dirty, node, self._external_ips, failures.__setitem__)
        except Exception:  # what was dirty is known no more
            self._replan_all = True
            raise
        self._unplanned |= failures.keys()
        if failures:  # one wait, however many Services it is
            self._plan_stage.failed(next(iter(failures.values())))
        elif not self._unplanned:
            self._plan_stage.succeeded()
        triggers = [when for times in dirty.triggers.values() for when in times]
        for family, waiting in self._waiting.items():
            if waiting is not None and changes[family]:
                merge(waiting.plans, changes[family])
                waiting.triggers += triggers
        self._report_stage.attempt(self._observer.planned, None)


def _replaces(event: Event, at: tuple[Kind, str, str]) -> bool:
    """Whether `event` makes an older one about object `at` obsolete."""
    kind, namespace, name = at
    if isinstance(event, Listed):  # an object that it does not name is gone, and those in it are newer
        return event.kind is kind and f"{namespace}/{name}" not in event.delivered | event.unreadable
    return _key(event) == at


def _without(older: Event, key: tuple[Kind, str, str] | None) -> Event:
    """OLDER, which could not be applied; if it is a list, an object KEY of which news came later is not its matter."""
    if key is None or not isinstance(older, Listed) or older.kind is not key[0]:
        return older
    return replace(older, delivered=older.delivered | {"/".join(key[1:])})


def _key(event: Event) -> tuple[Kind, str, str] | None:
    """What an event about a single object is about."""
    match event:
        case Changed(kind, item):
            return kind, item.metadata.namespace or "default", item.metadata.name
        case Deleted(kind, namespace, name):
            return kind, namespace or "default", name
        case _:
            return None
