"""A loop whose surroundings are all in sight: a dataplane that keeps rules in a dict, and a diary of what happened."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from kproxy.errors import InvalidObject
from kproxy.model.events import Event
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Kind, Object
from kproxy.model.plan_store import FamilyPlans, PlanStore
from kproxy.model.planner import Place
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.model.state import ClusterState
from kproxy.modes.base import Outcome
from kproxy.sync.controller import Controller
from kproxy.sync.event_queue import EventQueue
from kproxy.sync.proxier import Proxier, Report
from kproxy.sync.schedule import Schedule
from tests.model.builders import NODE, ZONE, listed

PERIOD = 3600.0
HERE = Place(NODE, ZONE)


class DictDataplane:
    """A mode whose kernel is the dict `held`. A failed apply leaves it in disorder, until a full one.

    fail: raised by the next applies while it is set; refuse: ports that the kernel does not take; drift: what drifted
    answers; care: what tend answers or raises. applied: for each apply the ports that it was asked to look at, None for
    all.
    """

    def __init__(self, family: Family = Family.IPV4) -> None:
        self.family = family
        self.held: dict[PortKey, ServicePlan] = {}
        self.fail: Exception | None = None
        self.refuse: frozenset[PortKey] = frozenset()
        self.drift: bool | Exception = False
        self.asked_for_drift = 0
        self.care: float | Exception | None = None
        self.tended = 0
        self.applied: list[set[PortKey] | None] = []

    def apply(self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None) -> Outcome:
        self.applied.append(None if touched is None else set(touched))
        if self.fail:
            self.held = {}
            raise self.fail
        self.drift = False
        rejected = {}
        for key in {*wanted, *self.held} if touched is None else touched:
            self.held.pop(key, None)
            if key in self.refuse and key in wanted:
                rejected[key] = "no such thing"
            elif key in wanted:
                self.held[key] = wanted[key]
        return Outcome(rejected=rejected)

    def drifted(self) -> bool:
        self.asked_for_drift += 1
        if isinstance(self.drift, Exception):
            raise self.drift
        return self.drift

    def housekeeping(self) -> float | None:
        self.tended += 1
        if isinstance(self.care, Exception):
            raise self.care
        return self.care

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        return (f"entry {plan.key}",)

    def cleanup(self) -> None:
        raise AssertionError("rules must stay in place")


class Diary:
    """Observer and Afterwork: writes down what it is told, in order. reports: all that finished."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.reports: list[Report] = []

    def take(self) -> list[str]:
        """The entries since the last call."""
        entries, self.entries = self.entries, []
        return entries

    def problems(self, found: Collection[InvalidObject]) -> None:
        self.entries.append(f"problems {len(found)}")

    def queued(self, families: Collection[Family], service_changes: int, endpoint_changes: int) -> None:
        self.entries.append(f"queued {'+'.join(families)} {service_changes} {endpoint_changes}")

    def planned(self, service_changes: int, endpoint_changes: int) -> None:
        self.entries.append(f"planned {service_changes} {endpoint_changes}")

    def drifted(self, family: Family) -> None:
        self.entries.append(f"drifted {family}")

    def starting(self, family: Family) -> None:
        self.entries.append(f"starting {family}")

    def finished(self, report: Report, book: PlanStore) -> None:
        self.reports.append(report)
        self.entries.append(f"finished {report.family} {'badly' if report.error else 'well'}")

    def node(self, node: NodeInfo | None) -> None:
        self.entries.append(f"node {node.zone if node else None}")

    def __call__(self, report: Report, book: PlanStore) -> None:
        self.entries.append(f"afterwork {report.family}")


class Stand:
    """Surroundings that are what the test says. asked: how often the place was asked for."""

    def __init__(self, place: Place | None) -> None:
        self.where = place
        self.news = False
        self.asked = 0

    def place(self, state: ClusterState) -> Place | None:
        self.asked += 1
        return self.where

    def changed(self) -> bool:
        news, self.news = self.news, False
        return news


class Rig:
    """A loop over both families."""

    def __init__(self, min_period: float = 0.0, place: Place | None = HERE) -> None:
        self.inbox, self.diary, self.stand = EventQueue(), Diary(), Stand(place)
        self.dataplanes = {family: DictDataplane(family) for family in Family}
        self.configured: list[tuple[Family, int]] = []
        workers = [self._worker(dataplane, min_period) for dataplane in self.dataplanes.values()]
        self.loop = Controller(ClusterState(NODE), self.inbox, workers, self.stand, self.diary, self.diary)

    def _worker(self, dataplane: DictDataplane, min_period: float) -> Proxier:
        def configure(page: FamilyPlans) -> None:
            self.configured.append((dataplane.family, len(page.plans)))

        return Proxier(dataplane, Schedule(min_period, PERIOD), configure)

    @property
    def v4(self) -> DictDataplane:
        return self.dataplanes[Family.IPV4]

    @property
    def v6(self) -> DictDataplane:
        return self.dataplanes[Family.IPV6]

    def step(self, *events: Event, timeout: float = 0.0) -> list[str]:
        """Put events and let the loop do one turn; what happened."""
        for event in events:
            self.inbox.put(event)
        with ThreadPoolExecutor(2) as pool:
            self.loop.step(pool, timeout)
        return self.diary.take()

    def start(self, *services: Object, slices: Iterable[Object] = ()) -> None:
        """The first lists come in and are written."""
        self.step(listed(Kind.SERVICE, *services), listed(Kind.ENDPOINT_SLICE, *slices))
        assert self.v4.applied == [None]
        for dataplane in self.dataplanes.values():
            dataplane.applied.clear()
        self.diary.reports.clear()
        self.configured.clear()
