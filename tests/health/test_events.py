"""Kubernetes Events: when one is posted, what it says, and that nothing about it holds anybody up."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import ApiError, KernelError, SourceError
from kproxy.events.recorder import ApiSink, EventRecorder
from kproxy.events.series import BURST, REFILL, WINDOW, Event, EventSeries, Notice, event_json
from kproxy.healthz.service_checks import HealthCheck, check_failed
from kproxy.sources.client import ApiClient
from kproxy.sources.credentials import ClientSettings
from tests.fakes.apifaults import Refuse
from tests.fakes.apiserver import ApiServer
from tests.fakes.clocks import ManualClock

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


def test_repeats_are_told_at_once_and_then_once_a_window_on_the_same_event() -> None:
    clock = ManualClock()
    series = EventSeries(clock)
    [first] = series.add(WEB) or []
    name = event_json(first, "node1")["metadata"]["name"]
    clock.advance(10)
    [again] = series.add(WEB) or []
    assert event_json(again, "node1")["series"] == {"count": 2, "lastObservedTime": "2026-01-02T03:04:15.000000Z"}
    for _ in range(2):
        clock.advance(10)
        assert series.add(WEB) == []
    clock.advance(WINDOW - 30.5)
    assert series.due() == []
    clock.advance(0.5)
    [event] = series.due()
    body = event_json(event, "node1")
    assert body["series"] == {"count": 4, "lastObservedTime": "2026-01-02T03:04:35.000000Z"}
    assert body["eventTime"] == "2026-01-02T03:04:05.000000Z"
    assert {name} == {event_json(e, "node1")["metadata"]["name"] for e in (again, event)}


def test_what_ended_begins_anew_with_another_event() -> None:
    clock = ManualClock()
    series = EventSeries(clock)
    events = [*(series.add(WEB) or []), *(series.add(WEB) or [])]
    for _ in range(2):  # nothing more comes in the second window
        clock.advance(WINDOW)
        assert series.due() == []
    events += series.add(WEB) or []
    assert [event.count for event in events] == [1, 2, 1]
    assert len({event_json(event, "node1")["metadata"]["name"] for event in events}) == 2


def test_what_goes_on_for_a_day_is_one_event_and_a_request_a_window() -> None:
    clock = ManualClock()
    series = EventSeries(clock)
    told = []
    for _ in range(24 * 60 * 2):
        told += series.add(WEB) or []
        clock.advance(30)
        told += series.due()
    assert len({event_json(event, "node1")["metadata"]["name"] for event in told}) == 1
    assert told[-1].count == 24 * 60 * 2
    assert len(told) == 2 + 24 * 3600 / WINDOW


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


def test_repeats_keep_nothing_new_from_being_told_and_are_bounded_themselves() -> None:
    clock = ManualClock()
    series = EventSeries(clock)
    notices = [Notice("Service", "shop", f"s{i}", "InvalidObject", "Decode", "bad") for i in range(BURST)]
    counts = [event.count for _ in range(50) for notice in notices[:-1] for event in series.add(notice) or []]
    assert sorted(counts) == [1] * (BURST - 1) + [2] * (BURST - 1)
    assert series.add(notices[-1])
    told = []
    for _ in range(4):  # 19 services go on and on; in a window their reason may be told of WINDOW / REFILL times
        clock.advance(WINDOW)
        for notice in notices[:-1]:
            series.add(notice)
        told.append(len(series.due()))
    assert max(told) <= WINDOW / REFILL + 1


@given(st.lists(st.one_of(st.integers(0, 3), st.floats(0.5, WINDOW)), max_size=60))
def test_in_the_end_every_repeat_has_been_told(steps: list[int | float]) -> None:
    clock = ManualClock()
    series = EventSeries(clock)
    added: Counter[str] = Counter()
    told: dict[str, int] = {}  # the count of each Event, as the API server has it in the end

    def tell(events: list[Any]) -> None:
        for event in events:
            name = event_json(event, "node1")["metadata"]["name"]
            assert (event.count == 1) == (name not in told)
            assert event.count > told.get(name, 0)
            told[name] = event.count

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
    sums = Counter[str]()
    for name, count in told.items():
        sums[name.split(".")[0]] += count
    assert sums == added


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


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_what_the_server_judges_is_not_asked_again(status: int) -> None:
    class Refusing(Recording):
        def post(self, event: dict[str, Any]) -> None:
            self.failures += 1
            raise ApiError("POST /events", status, "no")

    sink = Refusing()
    outcomes: list[str] = []
    recorder = EventRecorder(sink, "node1", ManualClock(), outcomes.append)
    recorder.start()
    recorder.record(WEB)
    recorder.stop(10)
    assert (sink.failures, outcomes) == (1, ["failed"])


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def sink(server: ApiServer) -> Iterator[ApiSink]:
    client = ApiClient(ClientSettings(master=server.url))
    yield ApiSink(client)
    client.close()


def counted(count: int) -> dict[str, Any]:
    """WEB's Event after COUNT times."""
    moment = ManualClock().now()
    return event_json(Event(WEB, moment, moment, count, 0), "node1")


def verbs(server: ApiServer) -> list[str]:
    return [request.verb for request in server.requests]


def test_repeats_are_counted_on_the_event_that_is_there(server: ApiServer, sink: ApiSink) -> None:
    for count in (1, 2, 7):
        sink.post(counted(count))
    (event,) = server.events
    assert event["metadata"]["namespace"] == "shop"
    assert (event["note"], event["eventTime"]) == (WEB.note, "2026-01-02T03:04:05.000000Z")
    assert event["series"] == counted(7)["series"]
    assert verbs(server) == ["create", "patch", "patch"]


def test_an_event_that_is_gone_is_created_with_its_count(server: ApiServer, sink: ApiSink) -> None:
    sink.post(counted(1))
    server.delete("Event", "shop", server.events[0]["metadata"]["name"])
    sink.post(counted(3))
    (event,) = server.events
    assert event["series"]["count"] == 3
    assert verbs(server) == ["create", "patch", "create"]


def test_an_event_whose_answer_was_lost_is_there_all_the_same(server: ApiServer, sink: ApiSink) -> None:
    sink.post(counted(1))
    sink.post(counted(1))
    assert len(server.events) == 1


@pytest.mark.parametrize(("verb", "count"), [("create", 1), ("patch", 2)])
def test_a_refusal_is_passed_on(server: ApiServer, sink: ApiSink, verb: str, count: int) -> None:
    server.inject(Refuse(403), verb=verb, kind="Event")
    with pytest.raises(ApiError, match="403"):
        sink.post(counted(count))
    assert server.events == []


def test_a_health_check_that_cannot_listen_names_service_and_port() -> None:
    notice = check_failed("node1", 31234, HealthCheck("shop", "web", 1), KernelError("Address already in use"))
    event = posted(notice)
    assert (event["reason"], event["action"]) == ("FailedToStartServiceHealthcheck", "Listen")
    assert event["note"] == "node node1 cannot answer health checks of shop/web on port 31234: Address already in use"
