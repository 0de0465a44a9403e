"""Kubernetes Events: when one is posted, what it says, and that nothing about it holds anybody up."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import KernelError, SourceError
from kproxy.fakes.clocks import ManualClock
from kproxy.health.event_series import BURST, REFILL, WINDOW, EventSeries, Notice, event_json
from kproxy.health.events import ApiSink, EventRecorder, LogSink, check_failed
from kproxy.health.service_checks import HealthCheck

WEB = Notice("Service", "shop", "web", "RulesRejected", "Sync", "the kernel refuses port 80", uid="u-1")
NODE = Notice("Node", "", "node1", "SyncFailing", "Sync", "nothing could be programmed", type="Normal")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def posted(notice: Notice) -> dict[str, Any]:
    events = EventSeries(ManualClock()).add(notice)
    assert events is not None
    return event_json(events[0], "node1")


def test_an_event_says_everything() -> None:
    event = posted(WEB)
    assert SUBDOMAIN.fullmatch(event["metadata"].pop("name"))
    assert event == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": "shop"},
        "regarding": {"apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web", "uid": "u-1"},
        "eventTime": "2026-01-02T03:04:05.000000Z",
        "type": "Warning",
        "reason": "RulesRejected",
        "action": "Sync",
        "note": "the kernel refuses port 80",
        "reportingController": "kproxy",
        "reportingInstance": "kproxy/node1",
    }


def test_an_event_about_a_node_goes_to_the_default_namespace() -> None:
    event = posted(NODE)
    assert event["metadata"]["namespace"] == "default"
    assert event["regarding"] == {"apiVersion": "v1", "kind": "Node", "name": "node1"}
    assert event["type"] == "Normal"


@pytest.mark.parametrize("name", ['we"b\n', "-", "Ünï", "x" * 300, "a..b", "", "a.-b"])
def test_an_object_with_an_impossible_name_can_have_an_event(name: str) -> None:
    made = posted(Notice("Service", "shop", name, "InvalidObject", "Decode", "bad name"))["metadata"]["name"]
    assert SUBDOMAIN.fullmatch(made)
    assert len(made) <= 253


@pytest.mark.parametrize("note", ["x" * 5000, "é" * 5000, "a\nb"])
def test_a_note_fits_in_one_line_that_the_server_takes(note: str) -> None:
    made = posted(Notice("Service", "shop", "web", "InvalidObject", "Decode", note))["note"]
    assert 0 < len(made.encode()) <= 1024
    assert "\n" not in made


def test_a_repeat_is_told_once_with_its_count() -> None:
    clock = ManualClock()
    series = EventSeries(clock)
    assert [e.count for e in series.add(WEB) or []] == [1]
    for _ in range(3):
        clock.advance(10)
        assert series.add(WEB) == []
    clock.advance(WINDOW - 30.5)
    assert series.due() == []
    clock.advance(0.5)
    [event] = series.due()
    body = event_json(event, "node1")
    assert body["series"] == {"count": 4, "lastObservedTime": "2026-01-02T03:04:35.000000Z"}
    assert body["eventTime"] == "2026-01-02T03:04:05.000000Z"
    clock.advance(WINDOW)
    assert series.due() == []
    assert [e.count for e in series.add(WEB) or []] == [1]


def test_different_notices_are_told_apart() -> None:
    series = EventSeries(ManualClock())
    notices = [WEB, NODE, Notice("Service", "shop", "web", "RulesRejected", "Sync", "another port")]
    names = [event_json(event, "node1")["metadata"]["name"] for n in notices for event in series.add(n) or []]
    assert len(set(names)) == 3


def test_one_reason_cannot_flood_and_does_not_silence_others() -> None:
    clock = ManualClock()
    series = EventSeries(clock)

    def tell(i: int) -> bool:
        return bool(series.add(Notice("Service", "shop", f"s{i}", "InvalidObject", "Decode", "bad")))

    assert sum(tell(i) for i in range(1000)) == BURST
    assert series.add(WEB)
    clock.advance(REFILL)
    assert [tell(1000), tell(1001)] == [True, False]


@given(st.lists(st.one_of(st.integers(0, 3), st.floats(0.5, WINDOW)), max_size=60))
def test_in_the_end_every_repeat_has_been_told(steps: list[int | float]) -> None:
    clock = ManualClock()
    series = EventSeries(clock)
    added: Counter[str] = Counter()
    told: Counter[str] = Counter()
    current: dict[str, int] = {}

    def tell(events: list[Any]) -> None:
        for event in events:
            name = event.notice.name
            told[name] += event.count - (current.get(name, 0) if event.count > 1 else 0)
            current[name] = event.count

    for step in steps:
        if isinstance(step, int):
            notice = Notice("Service", "shop", f"s{step}", f"Reason{step}", "Sync", "x")
            events = series.add(notice)
            assert events is not None
            added[notice.name] += 1
            tell(events)
        else:
            clock.advance(step)
            tell(series.due())
    clock.advance(WINDOW)
    tell(series.due())
    assert told == added


class Recording:
    """A sink that keeps what it is given, and fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.events: list[dict[str, Any]] = []
        self.failures = failures

    def post(self, event: dict[str, Any]) -> None:
        if self.failures:
            self.failures -= 1
            raise SourceError("the API server is away")
        self.events.append(event)


def test_notices_of_all_threads_are_posted_before_the_end() -> None:
    sink = Recording()
    outcomes: list[str] = []
    recorder = EventRecorder(sink, "node1", ManualClock(), outcomes.append)
    recorder.start()
    threads = [
        threading.Thread(
            target=recorder.record, args=(Notice("Service", "shop", f"s{i}", "RulesRejected", "Sync", "no"),)
        )
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.stop(10)
    assert sorted(e["regarding"]["name"] for e in sink.events) == [f"s{i}" for i in range(8)]
    assert outcomes == ["posted"] * 8


def test_a_sink_that_hangs_blocks_nobody() -> None:
    going_on = threading.Event()

    class Hanging:
        def post(self, event: dict[str, Any]) -> None:
            going_on.wait(30)

    outcomes: list[str] = []
    recorder = EventRecorder(Hanging(), "node1", ManualClock(), outcomes.append, capacity=4)
    recorder.start()
    for i in range(20):
        recorder.record(Notice("Service", "shop", f"s{i}", "RulesRejected", "Sync", "no"))
    assert outcomes.count("dropped") >= 20 - 4 - 1
    recorder.stop(0.05)
    going_on.set()


def test_a_failure_is_tried_again_and_then_given_up() -> None:
    sink = Recording(failures=1)
    outcomes: list[str] = []
    recorder = EventRecorder(sink, "node1", ManualClock(), outcomes.append)
    recorder.start()
    recorder.record(WEB)
    recorder.stop(10)
    assert ([e["reason"] for e in sink.events], outcomes) == (["RulesRejected"], ["posted"])


def test_an_event_that_never_works_is_counted_as_failed() -> None:
    sink = Recording(failures=99)
    outcomes: list[str] = []
    recorder = EventRecorder(sink, "node1", ManualClock(), outcomes.append)
    recorder.start()
    recorder.record(WEB)
    recorder.stop(10)
    assert (sink.failures, outcomes) == (96, ["failed"])


def test_the_api_sink_creates_events_in_the_namespace() -> None:
    class Client:
        def __init__(self) -> None:
            self.calls: list[tuple[str, bytes]] = []

        def post(self, path: str, body: bytes) -> bytes:
            self.calls.append((path, body))
            return b"{}"

    client = Client()
    event = posted(WEB)
    ApiSink(client).post(event)
    [(path, body)] = client.calls
    assert path == "/apis/events.k8s.io/v1/namespaces/shop/events"
    assert json.loads(body) == event


@pytest.mark.parametrize(
    ("notice", "level", "text"),
    [
        (WEB, logging.WARNING, "Service shop/web: RulesRejected: the kernel refuses port 80"),
        (NODE, logging.INFO, "Node node1: SyncFailing: nothing could be programmed"),
    ],
)
def test_without_an_api_server_events_are_logged(
    caplog: pytest.LogCaptureFixture, notice: Notice, level: int, text: str
) -> None:
    caplog.set_level(logging.INFO)
    LogSink().post(posted(notice))
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(level, text)]


def test_a_health_check_that_cannot_listen_names_service_and_port() -> None:
    notice = check_failed("node1", 31234, HealthCheck("shop", "web", 1), KernelError("Address already in use"))
    event = posted(notice)
    assert (event["reason"], event["action"]) == ("FailedToStartServiceHealthcheck", "Listen")
    assert event["note"] == "node node1 cannot answer health checks of shop/web on port 31234: Address already in use"
