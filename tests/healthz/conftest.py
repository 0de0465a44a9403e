"""A node's servers on loopback with a manual clock, and a small HTTP client."""

from __future__ import annotations

import http.client
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest

from kproxy.containment import Containment
from kproxy.healthz.proxier_health import ProxierHealth
from kproxy.healthz.service_checks import HealthCheck
from kproxy.metrics.registry import Metrics
from kproxy.model.plans import Family
from kproxy.status.schema import Identity
from kproxy.status.servers import Servers, ServerSettings
from kproxy.status.store import StatusStore
from tests.fakes.clocks import ManualClock

SYNC_PERIOD = 30.0


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass
class Node:
    """The servers of a node, and the objects that they read."""

    clock: ManualClock
    health: ProxierHealth
    metrics: Metrics
    servers: Servers
    failures: list[tuple[int, HealthCheck, str]]
    containment: Containment

    def healthz(self, path: str) -> Answer:
        assert self.servers.healthz_port is not None
        return ask(self.servers.healthz_port, path)

    def status(self, path: str) -> Answer:
        assert self.servers.metrics_port is not None
        return ask(self.servers.metrics_port, path)

    def check(self, checks: dict[int, HealthCheck], ips: list[str] | None) -> bool:
        """Update the health checks, on IPS (None: all), and wait until it is done; False without a difference."""
        where = frozenset({""} if ips is None else ips)
        done = self.servers.update_health_checks({port: replace(check, ips=where) for port, check in checks.items()})
        if done is None:
            return False
        done.result(10)
        return True


def ask(port: int, path: str, ip: str = "127.0.0.1", method: str = "GET") -> Answer:
    connection = http.client.HTTPConnection(ip, port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


@pytest.fixture
def get() -> Callable[..., Answer]:
    return ask


@pytest.fixture
def start() -> Iterator[Callable[[ServerSettings], Node]]:
    """Start servers that end with the test."""
    started: list[Servers] = []

    def start_servers(settings: ServerSettings) -> Node:
        clock = ManualClock()
        health = ProxierHealth(SYNC_PERIOD, clock)
        containment = Containment(clock)
        metrics = Metrics([Family.IPV4, Family.IPV6], "iptables", "1.2.3", containment)
        failures: list[tuple[int, HealthCheck, str]] = []
        identity = Identity(
            "1.2.3", "iptables", "1.36", {"mode": "iptables", "iptables": {"masqueradeBit": 14}}, {"v": "2"}
        )
        servers = Servers(
            settings,
            identity,
            health,
            metrics,
            clock,
            StatusStore(identity, "node1", clock, containment),
            containment,
            lambda port, check, error: failures.append((port, check, str(error))),
        )
        started.append(servers)
        servers.start()
        return Node(clock, health, metrics, servers, failures, containment)

    yield start_servers
    for servers in started:
        servers.stop()


@pytest.fixture
def node(start: Callable[[ServerSettings], Node]) -> Node:
    return start(ServerSettings(healthz="127.0.0.1:0", metrics="127.0.0.1:0"))


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return ports that are free on every address, each once, from below the range of clients' ports."""
    candidates = iter(random.sample(range(20000, 32000), 500))

    def find() -> int:
        for port in candidates:
            with socket.socket(socket.AF_INET6) as sock, suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                sock.bind(("::", port))
                return port
        raise AssertionError("no free port")

    return find
