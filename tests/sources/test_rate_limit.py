"""Requests to the API server come no faster than qps and burst allow."""

from __future__ import annotations

import threading

import pytest

from kproxy.model.objects import Kind
from kproxy.rate_limit import RateLimiter
from kproxy.sources.client import ApiClient
from kproxy.sources.credentials import ClientSettings
from kproxy.sources.decode import Decoder
from kproxy.sources.listing import PAGE_SIZE, Lister, resources
from tests.fakes.apiserver import ApiServer


class Time:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


def test_a_burst_is_free_and_then_they_wait_their_turn(time: Time) -> None:
    pace = RateLimiter(5, 3, time.clock, time.sleep)
    for _ in range(5):
        pace.wait()
    assert time.slept == [0.2, 0.2]


def test_what_was_not_used_is_saved_up_to_the_burst(time: Time) -> None:
    pace = RateLimiter(5, 3, time.clock, time.sleep)
    for _ in range(3):
        pace.wait()
    time.now += 1000
    for _ in range(4):
        pace.wait()
    assert time.slept == [0.2]


@pytest.mark.parametrize("qps", [0, -1])
def test_no_limit(qps: float, time: Time) -> None:
    pace = RateLimiter(qps, 1, time.clock, time.sleep)
    for _ in range(100):
        pace.wait()
    assert time.slept == []


def test_the_pages_of_a_list_count_as_one_request() -> None:
    """At this pace a second request would have to wait for years."""
    with ApiServer() as server:
        for number in range(2 * PAGE_SIZE + 1):
            server.apply({"kind": "Service", "metadata": {"name": f"s{number}"}, "spec": {"clusterIP": "10.96.0.9"}})
        client = ApiClient(ClientSettings(master=server.url, qps=1e-6, burst=1))
        services = next(each for each in resources("node1") if each.kind is Kind.SERVICE)
        found: list[int] = []

        def read() -> None:
            page = Lister(client, services, Decoder(Kind.SERVICE)).list("")
            found.append(len(page.objects) if page else 0)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(30)
        client.close()
        assert found == [2 * PAGE_SIZE + 1]
        assert server.served["list", "Service"] == 3
