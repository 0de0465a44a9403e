"""A node with tables in memory, whose controller, proxiers, reporter, status and servers are the real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http.client import HTTPConnection
from types import TracebackType

from kproxy.config.fields import ProxyMode
from kproxy.containment import Containment
from kproxy.events.series import Notice
from kproxy.healthz.proxier_health import ProxierHealth
from kproxy.metrics.registry import Metrics
from kproxy.model.events import Event
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Kind, Object
from kproxy.model.plan_store import FamilyPlans
from kproxy.model.plans import Family, ServicePlan
from kproxy.model.state import ClusterState
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings
from kproxy.status.schema import Identity
from kproxy.status.servers import Servers, ServerSettings
from kproxy.status.store import StatusStore
from kproxy.sync.controller import Controller
from kproxy.sync.event_queue import EventQueue
from kproxy.sync.plan_queue import PlanQueue
from kproxy.sync.proxier import Proxier, Report
from kproxy.sync.reporter import Reporter
from kproxy.sync.schedule import Schedule
from tests.fakes.clocks import ManualClock
from tests.fakes.iptables import FakeTables
from tests.model.builders import NODE, ZONE, endpoint, listed, service, slice_

PERIOD = 30.0


class _NodeSource:
    """A node that never changes."""

    def current(self, state: ClusterState) -> NodeInfo:
        return NodeInfo(NODE, ZONE, ("172.18.0.2", "fd00:18::2"))

    def external_ips(self) -> bool:
        return True


class _NoPostSync:
    """No work after a sync."""

    def synced(self, report: Report, plans: FamilyPlans, node: NodeInfo) -> None: ...

    def retry(self, plans: FamilyPlans, node: NodeInfo) -> None: ...


class OperatedNode:
    """Serves on a port of 127.0.0.1 within `with`. notices: what was reported to operators."""

    def __init__(self, notify: Callable[[Notice], None] | None = None) -> None:
        self.clock = ManualClock()
        self.tables = {family: FakeTables(family) for family in Family}
        self.notices: list[Notice] = []
        self.queue = EventQueue()
        self.health = ProxierHealth(PERIOD, self.clock)
        self.containment = containment = Containment(self.clock)
        metrics = Metrics(list(Family), "iptables", "1.2.3", containment)
        identity = Identity("1.2.3", "iptables", "1.36", {"mode": "iptables"}, {"v": "2"})
        self.store = StatusStore(identity, NODE, self.clock, containment)
        self.reporter = Reporter(
            metrics, self.health, self.store, notify or self.notices.append, NODE, ProxyMode.IPTABLES
        )
        self.reporter.serves(ProxyMode.IPTABLES, tuple(Family))
        state = ClusterState(NODE)
        self._plans = PlanQueue(state, tuple(Family), self.reporter, containment)
        self.proxiers = {
            family: Proxier(
                IptablesDataplane(Settings(family), tables),
                lambda node, plans: None,
                Schedule(0.0, 3600.0),
                self._plans,
                _NoPostSync(),
                self.reporter,
                self.clock,
                containment,
            )
            for family, tables in self.tables.items()
        }
        self._controller = Controller(
            state, self.queue, self._plans, _NodeSource(), self.reporter, self._wake, containment
        )
        self.store.show(self, Family)
        self.servers = Servers(
            ServerSettings("", "127.0.0.1:0"),
            identity,
            self.health,
            metrics,
            self.clock,
            self.store,
            containment,
        )
        self._listening = self.store.listening()

    def __enter__(self) -> OperatedNode:
        self._listening.__enter__()
        self.servers.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.servers.stop()
        self._listening.__exit__(None, None, None)

    @property
    def port(self) -> int:
        port = self.servers.metrics_port
        assert port is not None
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def step(self, *events: Event) -> None:
        """Let events happen, and one turn of the controller and of each proxier."""
        for event in events:
            self.queue.put(event)
        self._controller.turn(0.0)
        for proxier in self.proxiers.values():
            proxier.turn()

    def plans(self) -> list[ServicePlan]:
        """For the status page."""
        return self._plans.plans()

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """For the status page."""
        return self.proxiers[plan.family].names(plan)

    def _wake(self) -> None:
        for proxier in self.proxiers.values():
            proxier.changed()

    def start(self, *objects: Object) -> None:
        """Take in first lists that hold `objects`."""
        for kind in Kind:
            items = [item for item in objects if type(item).__name__ == kind.value]
            self.queue.put(listed(kind, *items))
        self.step()

    def get(self, path: str, accept: str = "") -> tuple[int, str, str]:
        """Status, media type and text of a page."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path, headers={"Accept": accept} if accept else {})
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
        finally:
            connection.close()


def shop(number: int = 1) -> Iterable[Object]:
    """Services web-0, web-1, ... of namespace shop, each with two endpoints, one of them on this node."""
    for i in range(number):
        ip = f"10.96.{i >> 8}.{i & 255}"
        pod = f"10.244.{i >> 8}.{i & 255}"
        yield service(f"web-{i}", "shop", clusterIP=ip)
        yield slice_(
            f"web-{i}-x",
            [endpoint(pod), endpoint(f"10.245.{i >> 8}.{i & 255}", node="node2")],
            f"web-{i}",
            namespace="shop",
        )
