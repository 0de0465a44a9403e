"""The daemon without threads or a kernel: a dataplane that keeps rules in a dict, and a diary of what happened."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from kproxy.containment import Containment
from kproxy.errors import InvalidObject
from kproxy.model.events import Event
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Kind, Object
from kproxy.model.plan_store import FamilyPlans
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.model.state import ClusterState
from kproxy.modes.base import Outcome
from kproxy.sync.controller import Controller
from kproxy.sync.event_queue import EventQueue
from kproxy.sync.plan_queue import PlanQueue
from kproxy.sync.proxier import Proxier, Report
from kproxy.sync.schedule import Schedule
from tests.fakes.clocks import ManualClock
from tests.model.builders import NODE, ZONE, listed

PERIOD = 3600.0
HERE = NodeInfo(NODE, ZONE)


class DictDataplane:
    """A mode whose kernel is the dict `held`. A failed apply leaves it in disorder, until a full one.

    fail: raised by the next applies while it is set. refuse: ports that the kernel does not take. faulty: ports that
    cannot be rendered. drift, answer_drift: what `drifted` answers or raises. care: what `housekeeping` answers or
    raises. applied: for each apply the ports that it was asked to look at, None for all.
    """

    def __init__(self, family: Family = Family.IPV4) -> None:
        self.family = family
        self.held: dict[PortKey, ServicePlan] = {}
        self.fail: Exception | None = None
        self.refuse: frozenset[PortKey] = frozenset()
        self.faulty: frozenset[PortKey] = frozenset()
        self.drift = False
        self.answer_drift: Exception | None = None
        self.asked_for_drift = 0
        self.care: float | Exception | None = None
        self.housekept = 0
        self.applied: list[set[PortKey] | None] = []

    def apply(self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None) -> Outcome:
        self.applied.append(None if touched is None else set(touched))
        if self.fail:
            self.held = {}
            raise self.fail
        self.drift = False
        rejected: dict[PortKey, str] = {}
        faults: dict[PortKey, Exception] = {}
        for key in {*wanted, *self.held} if touched is None else touched:
            self.held.pop(key, None)
            if key in self.refuse and key in wanted:
                rejected[key] = "no such thing"
            elif key in self.faulty and key in wanted:
                rejected[key], faults[key] = "unexpected ValueError", ValueError("bug")
            elif key in wanted:
                self.held[key] = wanted[key]
        return Outcome(rejected=rejected, faults=faults)

    def drifted(self) -> bool:
        self.asked_for_drift += 1
        if self.answer_drift is not None:
            raise self.answer_drift
        return self.drift

    def housekeeping(self) -> float | None:
        self.housekept += 1
        if isinstance(self.care, Exception):
            raise self.care
        return self.care

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        return (f"entry {plan.key}",)


class Diary:
    """Every Observer and PostSync: writes down what it learns, in order. reports: of all syncs that ended."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.reports: list[Report] = []

    def take(self) -> list[str]:
        """The entries since the last call."""
        entries, self.entries = self.entries, []
        return entries

    def applied(self, events: Collection[Event], problems: Collection[InvalidObject]) -> None:
        if problems:
            self.entries.append(f"problems {len(problems)}")

    def node(self, node: NodeInfo | None) -> None:
        self.entries.append(f"node {node.zone if node else None}")

    def queued(self, service_changes: int, endpoint_changes: int) -> None:
        self.entries.append(f"queued {service_changes} {endpoint_changes}")

    def planned(self) -> None:
        """Said with each sync; not worth an entry."""

    def drifted(self, family: Family) -> None:
        self.entries.append(f"drifted {family}")

    def starting(self, family: Family) -> None:
        self.entries.append(f"starting {family}")

    def finished(self, report: Report, plans: FamilyPlans) -> None:
        self.reports.append(report)
        self.entries.append(f"finished {report.family} {'badly' if report.error else 'well'}")

    def synced(self, report: Report, plans: FamilyPlans, node: NodeInfo) -> None:
        self.entries.append(f"post-sync {report.family}")

    def retry(self, plans: FamilyPlans, node: NodeInfo) -> None:
        """Asked in each turn; not worth an entry."""


class FixedNode:
    """A NodeSource that says what the test says. asked: how often."""

    def __init__(self, node: NodeInfo | None) -> None:
        self.node = node
        self.asked = 0

    def current(self, state: ClusterState) -> NodeInfo | None:
        self.asked += 1
        return self.node

    def external_ips(self) -> bool:
        return True


class Rig:
    """A controller and the proxiers of both families, whose turns the test makes."""

    def __init__(self, min_period: float = 0.0, node: NodeInfo | None = HERE) -> None:
        self.queue, self.diary, self.node, self.clock = EventQueue(), Diary(), FixedNode(node), ManualClock()
        self.containment = Containment(self.clock)
        self.dataplanes = {family: DictDataplane(family) for family in Family}
        self.configured: list[tuple[Family, int]] = []
        state = ClusterState(NODE)
        self.plans = PlanQueue(state, tuple(Family), self.diary, self.containment)
        self.proxiers = {family: self._proxier(family, min_period) for family in Family}
        self.controller = Controller(state, self.queue, self.plans, self.node, self.diary, self._wake, self.containment)

    def _proxier(self, family: Family, min_period: float) -> Proxier:
        def configure(node: NodeInfo, plans: FamilyPlans) -> None:
            self.configured.append((family, len(plans.plans)))

        schedule, dataplane = Schedule(min_period, PERIOD), self.dataplanes[family]
        diary = self.diary
        return Proxier(dataplane, configure, schedule, self.plans, diary, diary, self.clock, self.containment)

    def _wake(self) -> None:
        for proxier in self.proxiers.values():
            proxier.changed()

    @property
    def v4(self) -> DictDataplane:
        return self.dataplanes[Family.IPV4]

    @property
    def v6(self) -> DictDataplane:
        return self.dataplanes[Family.IPV6]

    def step(self, *events: Event, families: Iterable[Family] = tuple(Family), wait: float = 0.0) -> list[str]:
        """Put events; one turn of the controller and of the proxiers of `families`. Returns what happened.

        wait: seconds that pass before.
        """
        self.clock.advance(wait)
        for event in events:
            self.queue.put(event)
        self.controller.turn(0.0)
        for family in families:
            self.proxiers[family].turn()
        return self.diary.take()

    def start(self, *services: Object, slices: Iterable[Object] = ()) -> None:
        """The first lists come in and are written."""
        self.step(listed(Kind.SERVICE, *services), listed(Kind.ENDPOINT_SLICE, *slices))
        assert self.v4.applied == [None]
        for dataplane in self.dataplanes.values():
            dataplane.applied.clear()
        self.diary.reports.clear()
        self.configured.clear()
