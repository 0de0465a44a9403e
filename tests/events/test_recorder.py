"""Posting Kubernetes Events: from any thread, without blocking anybody, whatever the sink does."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kproxy.clocks import SystemClock
from kproxy.containment import Containment
from kproxy.errors import ApiError, KproxyError, SourceError
from kproxy.events.recorder import ApiSink, EventRecorder
from kproxy.events.series import Event, EventSeries, event_json
from kproxy.lab.proxies import wait_for
from kproxy.sources.client import ApiClient
from kproxy.sources.credentials import ClientSettings
from tests.events.test_series import WEB, bad
from tests.fakes.apifaults import Refuse
from tests.fakes.apiserver import ApiServer
from tests.fakes.clocks import ManualClock


class Sink:
    """A sink that keeps Events. before: called with each Event first, to raise or to block."""

    def __init__(self, before: Callable[[dict[str, Any]], object] = lambda event: None) -> None:
        self.before, self.events, self.attempts = before, list[dict[str, Any]](), 0

    def post(self, event: dict[str, Any]) -> None:
        self.attempts += 1
        self.before(event)
        self.events.append(event)

    def names(self) -> list[str]:
        return sorted(event["regarding"]["name"] for event in self.events)


class Recording:
    """A recorder at work on `sink`."""

    def __init__(self, sink: Sink, capacity: int = 256) -> None:
        self.sink, self.outcomes = sink, list[str]()
        self.containment = Containment(SystemClock())
        self.recorder = EventRecorder(
            sink, "node1", ManualClock(), self.containment, self.outcomes.append, capacity
        )  # fmt: skip


@contextmanager
def recording(sink: Sink, seconds: float = 10, capacity: int = 256) -> Iterator[Recording]:
    """Start a recorder; at the end it has `seconds` to post what waits."""
    found = Recording(sink, capacity)
    found.recorder.start()
    yield found
    found.recorder.stop(seconds)


def failing(times: int, error: Exception) -> Callable[[dict[str, Any]], None]:
    """Raise `error` so many times."""
    left = [None] * times

    def before(event: dict[str, Any]) -> None:
        if left:
            left.pop()
            raise error

    return before


def test_notices_of_all_threads_are_posted_before_the_end() -> None:
    with recording(Sink()) as found:
        threads = [threading.Thread(target=found.recorder.record, args=(bad(f"s{i}"),)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found.sink.names() == [f"s{i}" for i in range(8)]
    assert found.outcomes == ["posted"] * 8


def test_a_sink_that_hangs_blocks_nobody() -> None:
    released = threading.Event()
    with recording(Sink(lambda event: released.wait(30)), seconds=0.05, capacity=4) as found:
        for i in range(20):
            found.recorder.record(bad(f"s{i}"))
        assert found.outcomes.count("dropped") >= 20 - 4 - 1
    released.set()


AWAY = SourceError("the API server is away")


@pytest.mark.parametrize(
    ("failures", "error", "attempts", "outcome"),
    [
        (1, AWAY, 2, "posted"),
        (99, AWAY, 3, "failed"),
        *((99, ApiError("POST /events", status, "no"), 1, "failed") for status in (400, 403, 404, 422)),
    ],
    ids=str,
)
def test_failures_are_retried_unless_the_server_refused_the_event(
    failures: int, error: KproxyError, attempts: int, outcome: str
) -> None:
    with recording(Sink(failing(failures, error))) as found:
        found.recorder.record(WEB)
    assert (found.sink.attempts, found.outcomes) == (attempts, [outcome])
    assert found.containment.counts() == {"events": 0}


def test_an_event_that_makes_posting_raise_is_dropped_and_the_others_are_posted() -> None:
    def before(event: dict[str, Any]) -> None:
        if event["regarding"]["name"].startswith("odd"):
            raise ZeroDivisionError("a bug")

    with recording(Sink(before)) as found:
        for name in ("odd-1", "a", "odd-2", "b"):
            found.recorder.record(bad(name))
    assert found.sink.names() == ["a", "b"]
    assert Counter(found.outcomes) == {"posted": 2, "failed": 2}
    assert (found.containment.counts(), found.containment.failing()) == ({"events": 2}, [])


def test_the_thread_outlives_errors_that_nobody_foresaw(monkeypatch: pytest.MonkeyPatch) -> None:
    add = EventSeries.add

    def odd(series: EventSeries, notice: Any) -> Any:
        return add(series, notice) if notice.name == "fine" else 1 / 0

    monkeypatch.setattr(EventSeries, "add", odd)
    with recording(Sink()) as found:
        found.recorder.record(bad("odd"))
        assert wait_for(lambda: bool(found.containment.failing()), 10)
        found.recorder.record(bad("fine"))
        assert wait_for(lambda: found.sink.names() == ["fine"], 10)
    assert (found.containment.counts(), found.containment.failing()) == ({"events": 1}, [])


# ---------------------------------------------------------------- at the API server


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        server.apply({"kind": "Namespace", "metadata": {"name": "shop"}})
        yield server


@pytest.fixture
def sink(server: ApiServer) -> Iterator[ApiSink]:
    client = ApiClient(ClientSettings(master=server.url))
    yield ApiSink(client)
    client.close()


def counted(count: int) -> dict[str, Any]:
    """WEB's Event after `count` times."""
    moment = ManualClock().now()
    return event_json(Event(WEB, moment, moment, count, 0), "node1")


def verbs(server: ApiServer) -> list[str]:
    return [request.verb for request in server.requests]


def test_repeats_are_counted_on_the_existing_event(server: ApiServer, sink: ApiSink) -> None:
    for count in (1, 2, 7):
        sink.post(counted(count))
    (event,) = server.events
    assert event["metadata"]["namespace"] == "shop"
    assert (event["note"], event["eventTime"]) == (WEB.note, "2026-01-02T03:04:05.000000Z")
    assert event["series"] == counted(7)["series"]
    assert verbs(server) == ["create", "patch", "patch"]


def test_an_event_that_was_deleted_is_created_with_its_count(server: ApiServer, sink: ApiSink) -> None:
    sink.post(counted(1))
    server.delete("Event", "shop", server.events[0]["metadata"]["name"])
    sink.post(counted(3))
    (event,) = server.events
    assert event["series"]["count"] == 3
    assert verbs(server) == ["create", "patch", "create"]


def test_an_event_whose_answer_was_lost_exists_once(server: ApiServer, sink: ApiSink) -> None:
    sink.post(counted(1))
    sink.post(counted(1))
    assert len(server.events) == 1


@pytest.mark.parametrize(("verb", "count"), [("create", 1), ("patch", 2)])
def test_a_refusal_is_raised(server: ApiServer, sink: ApiSink, verb: str, count: int) -> None:
    server.inject(Refuse(403), verb=verb, kind="Event")
    with pytest.raises(ApiError, match="403"):
        sink.post(counted(count))
    assert server.events == []
