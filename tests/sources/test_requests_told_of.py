"""Dashboards see the requests to the API server: each is counted by its outcome, and timed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from kproxy.errors import SourceError
from kproxy.metrics.collectors import ClientMetrics
from kproxy.sources.client import ApiClient
from kproxy.sources.credentials import ClientSettings
from tests.fakes.apifaults import Refuse
from tests.fakes.apiserver import ApiServer
from tests.sources.cluster import EVENT, EVENTS

SERVICES = "/api/v1/services"


@dataclass
class Client:
    """A client of SERVER and what it tells."""

    server: ApiServer
    settings: ClientSettings
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.asks = ApiClient(self.settings, ClientMetrics(self.registry))

    def requests(self) -> dict[tuple[str, str], float]:
        """How many by (method, code)."""
        samples = [s for family in self.registry.collect() for s in family.samples]
        found = [s for s in samples if s.name == "rest_client_requests_total"]
        assert {s.labels["host"] for s in found} <= {f"127.0.0.1:{self.server.port}"}
        return {(s.labels["method"], s.labels["code"]): s.value for s in found}

    def value(self, name: str, verb: str = "GET") -> float | None:
        labels = {"verb": verb, "host": f"127.0.0.1:{self.server.port}"}
        return self.registry.get_sample_value(f"rest_client_{name}", labels)


@pytest.fixture
def client(server: ApiServer) -> Iterator[Client]:
    made = Client(server, ClientSettings(master=server.url))
    yield made
    made.asks.close()


def test_each_request_is_counted_by_its_answer(client: Client) -> None:
    client.server.inject(Refuse(503), verb="list", kind="Service")
    with pytest.raises(SourceError):
        client.asks.get(SERVICES)
    client.asks.get(SERVICES)
    client.asks.post(EVENTS, json.dumps(EVENT).encode())
    client.asks.patch(f"{EVENTS}/e1", b"{}")
    client.asks.patch(f"{EVENTS}/e1", b"{}")
    assert client.requests() == {("GET", "503"): 1, ("GET", "200"): 1, ("POST", "201"): 1, ("PATCH", "200"): 2}
    assert [client.value("request_duration_seconds_count", verb) for verb in ("GET", "POST", "PATCH")] == [2, 1, 2]


def test_a_watch_is_counted_and_not_timed(client: Client) -> None:
    with client.asks.stream(SERVICES, {"watch": "1"}, 5.0):
        assert client.requests() == {("GET", "200"): 1}
    assert client.value("request_duration_seconds_count") is None


def test_a_server_that_is_away(client: Client) -> None:
    client.server.go_down()
    with pytest.raises(SourceError):
        client.asks.get(SERVICES)
    assert client.requests() == {("GET", "<error>"): 1}
    assert client.value("request_duration_seconds_count") == 1


def test_a_refused_token_is_one_request_more(client: Client) -> None:
    client.server.inject(Refuse(401), verb="list", kind="Service")
    client.asks.get(SERVICES)
    assert client.requests() == {("GET", "401"): 1, ("GET", "200"): 1}
    assert client.value("request_duration_seconds_count") == 1


def test_waiting_for_ones_turn_is_told_and_part_of_the_whole(server: ApiServer) -> None:
    client = Client(server, ClientSettings(master=server.url, qps=20.0, burst=1))
    began = time.monotonic()
    for _ in range(3):
        client.asks.get(SERVICES)
    client.asks.get(SERVICES, limited=False)
    client.asks.close()
    passed = time.monotonic() - began
    waited, whole = (client.value(f"{name}_duration_seconds_sum") for name in ("rate_limiter", "request"))
    assert waited is not None
    assert whole is not None
    assert 0.01 < waited < whole <= passed
    assert client.value("rate_limiter_duration_seconds_count") == 3
    assert client.value("request_duration_seconds_count") == 4


def test_without_credentials_there_is_nothing_to_tell(server: ApiServer) -> None:
    client = Client(server, ClientSettings(kubeconfig="/nowhere"))
    with pytest.raises(SourceError):
        client.asks.get(SERVICES)
    assert client.requests() == {}
