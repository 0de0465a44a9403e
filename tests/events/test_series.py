"""Which notices become Kubernetes Events, what an Event says, and how repeats are counted on it."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import KernelError
from kproxy.events.series import BURST, REFILL, WINDOW, Event, EventSeries, Notice, event_json
from kproxy.healthz.service_checks import HealthCheck, check_failed
from tests.fakes.clocks import ManualClock

WEB = Notice("Service", "shop", "web", "RulesRejected", "Sync", "the kernel refuses port 80", uid="u-1")
NODE = Notice("Node", "", "node1", "SyncFailing", "Sync", "nothing could be programmed", type="Normal")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def bad(name: str = "web", note: str = "bad", reason: str = "InvalidObject") -> Notice:
    return Notice("Service", "shop", name, reason, "Decode", note)


def posted(notice: Notice) -> dict[str, Any]:
    (event,) = EventSeries(ManualClock()).add(notice) or []
    return event_json(event, "node1")


def name_of(event: Event) -> str:
    name: str = event_json(event, "node1")["metadata"]["name"]
    return name


class Rig:
    """A series and its clock. events: all that it had posted."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.series = EventSeries(self.clock)
        self.events: list[Event] = []

    def add(self, *notices: Notice) -> list[Event]:
        """The Events that are posted at once."""
        found = [event for notice in notices for event in self.series.add(notice) or []]
        self.events += found
        return found

    def wait(self, seconds: float) -> list[Event]:
        """The updates that are due after so many seconds."""
        self.clock.advance(seconds)
        found = self.series.due()
        self.events += found
        return found

    def names(self) -> set[str]:
        return set(map(name_of, self.events))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_an_event_has_every_field() -> None:
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


def test_an_event_about_a_node_is_in_the_default_namespace() -> None:
    event = posted(NODE)
    assert event["metadata"]["namespace"] == "default"
    assert event["regarding"] == {"apiVersion": "v1", "kind": "Node", "name": "node1"}
    assert event["type"] == "Normal"


@pytest.mark.parametrize("name", ['we"b\n', "-", "Ünï", "x" * 300, "a..b", "", "a.-b"])
def test_an_object_with_an_invalid_name_can_have_an_event(name: str) -> None:
    found = posted(bad(name))["metadata"]["name"]
    assert SUBDOMAIN.fullmatch(found)
    assert len(found) <= 253


@pytest.mark.parametrize("note", ["x" * 5000, "é" * 5000, "a\nb"])
def test_a_note_fits_in_one_line_that_the_server_accepts(note: str) -> None:
    found = posted(bad(note=note))["note"]
    assert 0 < len(found.encode()) <= 1024
    assert "\n" not in found


def test_a_health_check_that_cannot_listen_names_service_and_port() -> None:
    event = posted(check_failed("node1", 31234, HealthCheck("shop", "web", 1), KernelError("Address already in use")))
    assert (event["reason"], event["action"]) == ("FailedToStartServiceHealthcheck", "Listen")
    assert event["note"] == "node node1 cannot answer health checks of shop/web on port 31234: Address already in use"


def test_a_repeat_is_posted_at_once_and_further_ones_once_a_window_on_the_same_event(rig: Rig) -> None:
    assert len(rig.add(WEB)) == 1
    rig.clock.advance(10)
    [again] = rig.add(WEB)
    assert event_json(again, "node1")["series"] == {"count": 2, "lastObservedTime": "2026-01-02T03:04:15.000000Z"}
    for _ in range(2):
        rig.clock.advance(10)
        assert rig.add(WEB) == []
    assert rig.wait(WINDOW - 30.5) == []
    [event] = rig.wait(0.5)
    body = event_json(event, "node1")
    assert body["series"] == {"count": 4, "lastObservedTime": "2026-01-02T03:04:35.000000Z"}
    assert body["eventTime"] == "2026-01-02T03:04:05.000000Z"
    assert len(rig.names()) == 1


def test_a_series_that_ended_begins_anew_with_another_event(rig: Rig) -> None:
    rig.add(WEB, WEB)
    assert (rig.wait(WINDOW), rig.wait(WINDOW)) == ([], [])  # no repeat in the second window
    rig.add(WEB)
    assert [event.count for event in rig.events] == [1, 2, 1]
    assert len(rig.names()) == 2


def test_a_condition_of_a_day_is_one_event_and_a_request_a_window(rig: Rig) -> None:
    for _ in range(24 * 60 * 2):
        rig.add(WEB)
        rig.wait(30)
    assert len(rig.names()) == 1
    assert rig.events[-1].count == 24 * 60 * 2
    assert len(rig.events) == 2 + 24 * 3600 / WINDOW


def test_different_notices_have_different_events(rig: Rig) -> None:
    rig.add(WEB, NODE, Notice("Service", "shop", "web", "RulesRejected", "Sync", "another port"))
    assert len(rig.names()) == 3


def test_one_reason_cannot_flood_and_does_not_silence_others(rig: Rig) -> None:
    assert len(rig.add(*(bad(f"s{i}") for i in range(1000)))) == BURST
    assert rig.add(WEB)
    rig.clock.advance(REFILL)
    assert [len(rig.add(bad(f"s{i}"))) for i in (1000, 1001)] == [1, 0]


def test_repeats_are_limited_without_costing_a_new_event(rig: Rig) -> None:
    *repeated, new = (bad(f"s{i}") for i in range(BURST))
    counts = [event.count for _ in range(50) for event in rig.add(*repeated)]
    assert sorted(counts) == [1] * (BURST - 1) + [2] * (BURST - 1)
    assert rig.add(new)
    for _ in range(4):  # 19 Services go on and on; in a window their reason may have WINDOW / REFILL updates
        rig.add(*repeated)
        assert len(rig.wait(WINDOW)) <= WINDOW / REFILL + 1


@given(st.lists(st.one_of(st.integers(0, 3), st.floats(0.5, WINDOW)), max_size=60))
def test_in_the_end_every_repeat_has_been_counted(steps: list[int | float]) -> None:
    rig, added = Rig(), Counter[str]()
    for step in steps:
        if isinstance(step, int):
            rig.add(bad(f"s{step}", reason=f"Reason{step}"))
            added[f"s{step}"] += 1
        else:
            rig.wait(step)
    rig.wait(WINDOW)
    counts: dict[str, int] = {}  # of each Event, as the API server has it in the end
    for event in rig.events:
        assert (event.count == 1) == (name_of(event) not in counts)
        assert event.count > counts.get(name_of(event), 0)
        counts[name_of(event)] = event.count
    sums = Counter[str]()
    for name, count in counts.items():
        sums[name.split(".")[0]] += count
    assert sums == added
