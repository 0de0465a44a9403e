"""One turn of the sync loop after the other: what is planned and written when, and who is told."""

from __future__ import annotations

import threading

import pytest

from kproxy.errors import InvalidObject, KernelError
from kproxy.model.events import Event, Invalid
from kproxy.model.objects import Kind
from kproxy.model.planner import Place
from kproxy.model.plans import PortKey, Protocol
from tests.model.builders import DUAL, NODE, ZONE, changed, deleted, endpoint, listed, node, service, slice_
from tests.sync.rigs import Rig

WEB = PortKey("default", "web", "http", Protocol.TCP)
API = PortKey("default", "api", "http", Protocol.TCP)
ONE = slice_("web-1", [endpoint("10.244.0.1")])
TWO = slice_("web-1", [endpoint("10.244.0.1"), endpoint("10.244.0.2", "node2")])
TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"

FIRST = [
    "planned 1 1",
    "starting IPv4",
    "starting IPv6",
    "afterwork IPv4",
    "finished IPv4 well",
    "afterwork IPv6",
    "finished IPv6 well",
]


# ---------------------------------------------------------------- the start


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([], id="nothing yet"),
        pytest.param([listed(Kind.SERVICE, service())], id="no slices yet"),
        pytest.param([listed(Kind.ENDPOINT_SLICE, ONE)], id="no Services yet"),
        pytest.param([listed(Kind.SERVICE, service()), changed(ONE), listed(Kind.NODE, node())], id="single slices"),
    ],
)
def test_nothing_is_planned_before_both_first_lists_are_in(events: list[Event]) -> None:
    rig = Rig()
    assert [entry for entry in rig.step(*events) if not entry.startswith("node")] == []
    assert rig.v4.applied == []
    assert rig.stand.asked == 0


def test_the_first_lists_lead_to_a_check_of_everything() -> None:
    rig = Rig()
    assert rig.step(listed(Kind.SERVICE, service(clusterIPs=DUAL))) == []
    assert rig.step(listed(Kind.ENDPOINT_SLICE, ONE)) == ["queued IPv4+IPv6 1 1", *FIRST]
    assert (rig.v4.applied, rig.v6.applied) == ([None], [None])
    assert [len(rig.v4.held[WEB].cluster), len(rig.v6.held[WEB].cluster)] == [1, 0]
    assert rig.step() == []


def test_an_empty_cluster_is_checked_as_well() -> None:
    rig = Rig()
    rig.step(listed(Kind.SERVICE), listed(Kind.ENDPOINT_SLICE))
    assert (rig.v4.applied, rig.v6.applied) == ([None], [None])


def test_nothing_is_planned_while_the_place_is_unknown() -> None:
    rig = Rig(place=None)
    lists = [listed(Kind.SERVICE, service()), listed(Kind.ENDPOINT_SLICE, ONE)]
    assert rig.step(*lists) == ["queued IPv4+IPv6 1 1"]
    assert rig.step() == []
    rig.stand.where = Place(NODE, ZONE)
    assert rig.step() == FIRST
    assert set(rig.v4.held) == {WEB}


# ---------------------------------------------------------------- changes


def test_a_change_is_written_in_the_turn_it_comes_in() -> None:
    rig = Rig()
    rig.start(service(), slices=[ONE])
    assert rig.step(changed(TWO)) == [
        "queued IPv4+IPv6 0 1",
        "planned 0 1",
        "starting IPv4",
        "starting IPv6",
        "afterwork IPv4",
        "finished IPv4 well",
        "afterwork IPv6",
        "finished IPv6 well",
    ]
    assert (rig.v4.applied, rig.v6.applied) == ([{WEB}], [set()])
    ((old, new),) = rig.diary.reports[0].touched.values()
    assert old is not None
    assert new is not None
    assert (len(old.cluster), len(new.cluster)) == (1, 2)


def test_an_event_that_changes_nothing_leads_nowhere() -> None:
    rig = Rig()
    rig.start(service(), slices=[ONE])
    assert rig.step(changed(service()), changed(ONE), listed(Kind.SERVICE, service())) == []


def test_changes_that_come_together_share_a_sync() -> None:
    rig = Rig()
    rig.start(service(), slices=[ONE])
    entries = rig.step(changed(TWO), changed(service("api")), changed(ONE), deleted(ONE))
    assert entries[:2] == ["queued IPv4+IPv6 1 3", "planned 1 3"]
    assert rig.v4.applied == [{WEB, API}]


def test_within_the_minimum_period_changes_only_gather() -> None:
    rig = Rig(min_period=3600.0)
    rig.start(service(), slices=[ONE])
    assert rig.step(changed(TWO)) == ["queued IPv4+IPv6 0 1"]
    assert rig.step(changed(service("api"))) == ["queued IPv4+IPv6 1 1"]
    assert rig.step() == []
    assert rig.v4.applied == []


def test_a_change_of_the_node_that_has_to_wait_is_told_once() -> None:
    rig = Rig(min_period=3600.0)
    rig.start(service())
    assert rig.step(changed(node(zone="zone-b"))) == ["node zone-b", "queued IPv4+IPv6 0 0"]
    assert rig.step() == []


def test_the_triggers_of_a_change_are_in_the_report_of_the_family_it_changed() -> None:
    rig = Rig()
    rig.start(service(), slices=[ONE])
    rig.step(changed(slice_("web-1", [], annotations={TRIGGER: "1970-01-01T00:01:00Z"})))
    assert [report.triggers for report in rig.diary.reports] == [[60.0], []]


# ---------------------------------------------------------------- node and surroundings


def test_the_node_is_told_and_its_zone_decides_about_plans() -> None:
    rig = Rig()
    hinted = [endpoint("10.244.0.1", zones=[ZONE]), endpoint("10.244.0.2", zones=["zone-b"])]
    rig.start(service(), service("api"), slices=[slice_("web-1", hinted)])
    rig.stand.where = Place(NODE, "zone-b")
    entries = rig.step(changed(node(zone="zone-b")))
    assert entries[:3] == ["node zone-b", "queued IPv4+IPv6 0 0", "planned 0 0"]
    assert rig.v4.applied == [{WEB}]
    assert [e.ip for e in rig.v4.held[WEB].cluster] == ["10.244.0.2"]


def test_another_place_leads_to_new_plans_without_any_event() -> None:
    rig = Rig()
    rig.start(service(internalTrafficPolicy="Local"), service("api"), slices=[ONE])
    rig.stand.where = Place("node2", ZONE)
    rig.step()
    assert rig.v4.applied == [{WEB}]
    assert rig.v4.held[WEB].local == ()
    assert rig.step() == []


def test_settings_are_handed_over_when_they_may_have_changed() -> None:
    rig = Rig()
    rig.start(service())
    rig.step()
    assert rig.configured == []
    rig.stand.news = True
    rig.step()
    assert rig.configured == [(family, len(p.held)) for family, p in rig.dataplanes.items()]
    assert (rig.v4.applied, rig.v6.applied) == ([set()], [set()])


# ---------------------------------------------------------------- what goes wrong


def test_a_failure_leaves_the_other_family_alone_and_is_retried_with_everything() -> None:
    rig = Rig()
    rig.start(service(), slices=[ONE])
    rig.v4.fail = KernelError("busy")
    entries = rig.step(changed(TWO))
    assert entries[-3:] == ["finished IPv4 badly", "afterwork IPv6", "finished IPv6 well"]
    assert "afterwork IPv4" not in entries

    rig.v4.fail = None
    rig.step(changed(service("api")))  # the first retry may be due by now or not
    for _ in range(100):
        if None in rig.v4.applied:
            break
        rig.step(timeout=0.05)
    assert rig.v4.applied[:2] == [{WEB}, None]
    assert set(rig.v4.held) == {WEB, API}
    good = [report for report in rig.diary.reports if report.family is rig.v4.family and report.outcome]
    assert set(good[0].touched) == {WEB, API}
    assert None not in rig.v6.applied


def test_objects_that_cannot_be_used_are_told_and_the_rest_is_written() -> None:
    rig = Rig()
    rig.start()
    broken = Invalid(InvalidObject("Service", "default/x", "spec", "is a string"))
    entries = rig.step(broken, changed(service('a"b')), changed(service()), changed(slice_("s", [], None)))
    assert entries[:2] == ["problems 3", "queued IPv4+IPv6 1 0"]
    assert set(rig.v4.held) == {WEB}


def test_drift_leads_to_a_check_of_that_family() -> None:
    rig = Rig()
    rig.start(service())
    rig.v4.drift = True
    rig.v4.held.clear()
    assert rig.step() == [
        "drifted IPv4",
        "planned 0 0",
        "starting IPv4",
        "afterwork IPv4",
        "finished IPv4 well",
    ]
    assert (rig.v4.applied, rig.v6.applied) == ([None], [])
    assert set(rig.v4.held) == {WEB}
    assert rig.step() == []


def test_drift_that_has_to_wait_is_told_once() -> None:
    rig = Rig(min_period=3600.0)
    rig.start(service())
    rig.v4.drift = True
    assert rig.step() == ["drifted IPv4"]
    assert rig.step() == []


# ---------------------------------------------------------------- the thread


def test_a_stopped_loop_ends_and_leaves_the_rules() -> None:
    rig = Rig()
    lists = [listed(Kind.SERVICE, service()), listed(Kind.ENDPOINT_SLICE, ONE)]
    for event in lists:
        rig.inbox.put(event)
    thread = threading.Thread(target=rig.loop.run)
    thread.start()
    try:
        for _ in range(1000):
            if rig.v6.applied and rig.v4.applied:
                break
            thread.join(0.01)
    finally:
        rig.inbox.stop()
        rig.inbox.wake()
        thread.join(10)
    assert not thread.is_alive()
    assert set(rig.v4.held) == {WEB}


def test_waiting_for_the_place_does_not_spin() -> None:
    rig = Rig(place=None)
    rig.inbox.put(listed(Kind.SERVICE))
    rig.inbox.put(listed(Kind.ENDPOINT_SLICE))
    thread = threading.Thread(target=rig.loop.run)
    thread.start()
    thread.join(0.5)
    rig.inbox.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert 1 <= rig.stand.asked <= 50  # at the polling rate these are three; a spinning loop asks by the thousand
