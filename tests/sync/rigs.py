"""A loop whose surroundings are all in sight: a programmer that keeps rules in a dict, and a diary of what happened."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from kproxy.errors import InvalidObject
from kproxy.model.book import Book, Page
from kproxy.model.events import Event
from kproxy.model.nodes import NodeView
from kproxy.model.objects import Kind, Object
from kproxy.model.planner import Place
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.model.state import ClusterState
from kproxy.modes.base import Outcome
from kproxy.sync.inbox import Inbox
from kproxy.sync.loop import Loop
from kproxy.sync.schedule import Schedule
from kproxy.sync.workers import Report, Worker
from tests.model.builders import NODE, ZONE, listed

PERIOD = 3600.0
HERE = Place(NODE, ZONE)


class DictProgrammer:
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

    def tend(self) -> float | None:
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

    def finished(self, report: Report, book: Book) -> None:
        self.reports.append(report)
        self.entries.append(f"finished {report.family} {'badly' if report.error else 'well'}")

    def node(self, node: NodeView | None) -> None:
        self.entries.append(f"node {node.zone if node else None}")

    def __call__(self, report: Report, book: Book) -> None:
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
        self.inbox, self.diary, self.stand = Inbox(), Diary(), Stand(place)
        self.programmers = {family: DictProgrammer(family) for family in Family}
        self.configured: list[tuple[Family, int]] = []
        workers = [self._worker(programmer, min_period) for programmer in self.programmers.values()]
        self.loop = Loop(ClusterState(NODE), self.inbox, workers, self.stand, self.diary, self.diary)

    def _worker(self, programmer: DictProgrammer, min_period: float) -> Worker:
        def configure(page: Page) -> None:
            self.configured.append((programmer.family, len(page.plans)))

        return Worker(programmer, Schedule(min_period, PERIOD), configure)

    @property
    def v4(self) -> DictProgrammer:
        return self.programmers[Family.IPV4]

    @property
    def v6(self) -> DictProgrammer:
        return self.programmers[Family.IPV6]

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
        for programmer in self.programmers.values():
            programmer.applied.clear()
        self.diary.reports.clear()
        self.configured.clear()
