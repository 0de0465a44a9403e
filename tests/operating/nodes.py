"""A node whose tables are in memory and whose loop, reporter, board and servers are the real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from types import TracebackType

from kproxy.config.fields import ProxyMode
from kproxy.events.series import Notice
from kproxy.healthz.proxier_health import ProxierHealth
from kproxy.metrics.registry import Metrics
from kproxy.model.events import Event
from kproxy.model.objects import Kind, Object
from kproxy.model.plan_store import PlanStore
from kproxy.model.planner import Place
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings
from kproxy.status.schema import Identity
from kproxy.status.servers import Servers, ServerSettings
from kproxy.status.store import StatusStore
from kproxy.sync.controller import Controller
from kproxy.sync.event_queue import EventQueue
from kproxy.sync.proxier import Proxier, Report
from kproxy.sync.reporter import Reporter
from kproxy.sync.schedule import Schedule
from tests.fakes.clocks import ManualClock
from tests.fakes.iptables import FakeTables
from tests.model.builders import NODE, ZONE, endpoint, listed, service, slice_

PERIOD = 30.0


class _Still:
    """Surroundings that never change."""

    def place(self, state: ClusterState) -> Place:
        return Place(NODE, ZONE, "172.18.0.2", "fd00:18::2")

    def changed(self) -> bool:
        return False


def _nothing(report: Report, book: PlanStore) -> None:
    """No work after a sync."""


class OperatedNode:
    """As a context: serves on a port of 127.0.0.1. notices: what was told to operators."""

    def __init__(self, notify: Callable[[Notice], None] | None = None) -> None:
        self.clock = ManualClock()
        self.tables = {family: FakeTables(family) for family in Family}
        self.notices: list[Notice] = []
        self.inbox = EventQueue()
        self.health = ProxierHealth(PERIOD, self.clock)
        metrics = Metrics(list(Family), "iptables", "1.2.3")
        identity = Identity("1.2.3", "iptables", {"mode": "iptables"}, {"v": "2"})
        self.board = StatusStore(identity, NODE, self.clock)
        reporter = Reporter(metrics, self.health, self.board, notify or self.notices.append, NODE, ProxyMode.IPTABLES)
        workers = [
            Proxier(IptablesDataplane(Settings(family), tables), Schedule(0.0, 3600.0))
            for family, tables in self.tables.items()
        ]
        self.loop = Controller(ClusterState(NODE), self.inbox, workers, _Still(), reporter, _nothing)
        self.board.show(self.loop, Family)
        self.servers = Servers(
            ServerSettings("", "127.0.0.1:0"), identity, self.health, metrics, self.clock, self.board
        )
        self._listening = self.board.listening()

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
        """Let EVENTS happen, and one turn of the loop."""
        for event in events:
            self.inbox.put(event)
        with ThreadPoolExecutor(2) as pool:
            self.loop.step(pool, 0.0)

    def start(self, *objects: Object) -> None:
        """The first lists: OBJECTS and nothing else."""
        for kind in Kind:
            items = [item for item in objects if type(item).__name__ == kind.value]
            self.inbox.put(listed(kind, *items))
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
