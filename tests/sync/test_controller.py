"""What is planned and written when, one turn of the controller and the proxiers after the other."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from kproxy.errors import InvalidObject, KernelError
from kproxy.model.events import Event, Invalid
from kproxy.model.objects import Kind
from kproxy.model.plans import Family, PortKey, Protocol
from tests.model.builders import DUAL, ZONE, changed, deleted, endpoint, listed, node, service, slice_
from tests.sync.rigs import HERE, Rig

V4, V6 = Family.IPV4, Family.IPV6
WEB = PortKey("default", "web", "http", Protocol.TCP)
API = PortKey("default", "api", "http", Protocol.TCP)
ONE = slice_("web-1", [endpoint("10.244.0.1")])
TWO = slice_("web-1", [endpoint("10.244.0.1"), endpoint("10.244.0.2", "node2")])
TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"


def sync(family: Family) -> list[str]:
    return [f"starting {family}", f"post-sync {family}", f"finished {family} well"]


BOTH = [*sync(V4), *sync(V6)]


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
    assert rig.node.asked == 0


def test_the_first_lists_are_followed_by_a_check_of_everything() -> None:
    rig = Rig()
    assert rig.step(listed(Kind.SERVICE, service(clusterIPs=DUAL))) == []
    assert rig.step(listed(Kind.ENDPOINT_SLICE, ONE)) == ["queued 1 1", *BOTH]
    assert (rig.v4.applied, rig.v6.applied) == ([None], [None])
    assert [len(rig.v4.held[WEB].cluster), len(rig.v6.held[WEB].cluster)] == [1, 0]
    assert rig.step() == []


def test_an_empty_cluster_is_checked_as_well() -> None:
    rig = Rig()
    rig.step(listed(Kind.SERVICE), listed(Kind.ENDPOINT_SLICE))
    assert (rig.v4.applied, rig.v6.applied) == ([None], [None])


def test_nothing_is_planned_while_too_little_is_known_of_the_node() -> None:
    rig = Rig(node=None)
    assert rig.step(listed(Kind.SERVICE, service()), listed(Kind.ENDPOINT_SLICE, ONE)) == ["queued 1 1"]
    assert rig.step() == []
    rig.node.node = HERE
    assert rig.step() == BOTH
    assert set(rig.v4.held) == {WEB}


# ---------------------------------------------------------------- changes


def test_a_change_is_written_in_the_turn_it_comes_in() -> None:
    rig = Rig()
    rig.start(service(), slices=[ONE])
    assert rig.step(changed(TWO)) == ["queued 0 1", *BOTH]
    assert (rig.v4.applied, rig.v6.applied) == ([{WEB}], [set()])
    ((old, new),) = rig.diary.reports[0].changes.values()
    assert old is not None
    assert new is not None
    assert (len(old.cluster), len(new.cluster)) == (1, 2)


def test_an_event_that_changes_nothing_costs_nothing() -> None:
    rig = Rig()
    rig.start(service(), slices=[ONE])
    assert rig.step(changed(service()), changed(ONE), listed(Kind.SERVICE, service())) == []


def test_changes_that_come_together_share_a_sync() -> None:
    rig = Rig()
    rig.start(service(), slices=[ONE])
    assert rig.step(changed(TWO), changed(service("api")))[0] == "queued 1 1"
    assert rig.v4.applied == [{WEB, API}]


def test_within_the_minimum_period_changes_only_gather() -> None:
    rig = Rig(min_period=3600.0)
    rig.start(service(), slices=[ONE])
    assert rig.step(changed(TWO)) == ["queued 0 1"]
    assert rig.step(changed(service("api"))) == ["queued 1 1"]
    assert rig.step() == []
    assert rig.v4.applied == []
    rig.step(wait=3600.0)
    assert rig.v4.applied in ([{WEB, API}], [None])


def test_a_change_of_the_node_that_has_to_wait_is_reported_once() -> None:
    rig = Rig(min_period=3600.0)
    rig.start(service())
    assert rig.step(changed(node(zone="zone-b"))) == ["queued 0 0", "node zone-b"]
    assert rig.step() == []


def test_the_triggers_of_a_change_are_in_the_report_of_the_family_it_changed() -> None:
    rig = Rig()
    rig.start(service(), slices=[ONE])
    rig.step(changed(slice_("web-1", [], annotations={TRIGGER: "1970-01-01T00:01:00Z"})))
    assert [report.triggers for report in rig.diary.reports] == [[60.0], []]


# ---------------------------------------------------------------- the node


def test_the_node_is_reported_and_its_zone_decides_about_plans() -> None:
    rig = Rig()
    hinted = [endpoint("10.244.0.1", zones=[ZONE]), endpoint("10.244.0.2", zones=["zone-b"])]
    rig.start(service(), service("api"), slices=[slice_("web-1", hinted)])
    rig.node.node = replace(HERE, zone="zone-b")
    assert rig.step(changed(node(zone="zone-b")))[:2] == ["queued 0 0", "node zone-b"]
    assert rig.v4.applied == [{WEB}]
    assert [e.ip for e in rig.v4.held[WEB].cluster] == ["10.244.0.2"]


def test_another_node_name_changes_plans_without_any_event() -> None:
    rig = Rig()
    rig.start(service(internalTrafficPolicy="Local"), service("api"), slices=[ONE])
    rig.node.node = replace(HERE, name="node2")
    rig.step()
    assert rig.v4.applied == [{WEB}]
    assert rig.v4.held[WEB].local == ()
    assert rig.step() == []


def test_settings_are_handed_over_when_the_node_changed_and_no_plan_is_made_anew() -> None:
    rig = Rig()
    rig.start(service())
    rig.step()
    assert rig.configured == []
    rig.node.node = replace(HERE, addresses=("172.18.0.2",))
    rig.step()
    assert rig.configured == [(family, len(p.held)) for family, p in rig.dataplanes.items()]
    assert (rig.v4.applied, rig.v6.applied) == ([set()], [set()])


# ---------------------------------------------------------------- what goes wrong


def test_a_failure_leaves_the_other_family_alone_and_is_retried_with_everything() -> None:
    rig = Rig()
    rig.start(service(), slices=[ONE])
    rig.v4.fail = KernelError("busy")
    assert rig.step(changed(TWO)) == ["queued 0 1", "starting IPv4", "finished IPv4 badly", *sync(V6)]
    rig.v4.fail = None
    rig.step(changed(service("api")))
    assert rig.v4.applied == [{WEB}], "a change does not shorten the wait"
    rig.step(wait=0.2)
    assert rig.v4.applied == [{WEB}, None]
    assert set(rig.v4.held) == {WEB, API}
    good = [report for report in rig.diary.reports if report.family is V4 and report.outcome]
    assert set(good[0].changes) == {WEB, API}
    assert None not in rig.v6.applied


def test_a_family_that_hangs_gets_what_it_missed_and_the_other_misses_nothing() -> None:
    rig = Rig()
    rig.start(service(), slices=[ONE])
    rig.step(changed(TWO), families=[V6])
    rig.step(changed(service("api")), families=[V6])
    assert rig.v6.applied == [set(), {API}] or rig.v6.applied == [set(), set()]
    rig.step(deleted(service("api")), families=[V6])
    rig.step()
    assert rig.v4.applied == [{WEB, API}]
    assert set(rig.v4.held) == {WEB}


def test_objects_that_cannot_be_used_are_reported_and_the_rest_is_written() -> None:
    rig = Rig()
    rig.start()
    broken = Invalid(InvalidObject("Service", "default/x", "spec", "is a string"))
    entries = rig.step(broken, changed(service('a"b')), changed(service()), changed(slice_("s", [], None)))
    assert entries[:2] == ["queued 1 0", "problems 3"]
    assert set(rig.v4.held) == {WEB}


def test_drift_is_followed_by_a_check_of_that_family() -> None:
    rig = Rig()
    rig.start(service())
    rig.v4.drift = True
    rig.v4.held.clear()
    assert rig.step() == ["drifted IPv4", *sync(V4)]
    assert (rig.v4.applied, rig.v6.applied) == ([None], [])
    assert set(rig.v4.held) == {WEB}
    assert rig.step() == []


def test_drift_that_has_to_wait_is_reported_once() -> None:
    rig = Rig(min_period=3600.0)
    rig.start(service())
    rig.v4.drift = True
    assert rig.step() == ["drifted IPv4"]
    assert rig.step() == []


# ---------------------------------------------------------------- threads


def run(rig: Rig, until: threading.Event) -> threading.Thread:
    """Start all threads of the rig; they end once `until` is set."""
    thread = threading.Thread(target=rig.controller.run, args=[until.is_set])
    for proxier in rig.proxiers.values():
        proxier.start()
    thread.start()
    return thread


def test_stopped_threads_end_and_leave_the_rules() -> None:
    rig, ending = Rig(), threading.Event()
    rig.queue.put(listed(Kind.SERVICE, service()))
    rig.queue.put(listed(Kind.ENDPOINT_SLICE, ONE))
    thread = run(rig, ending)
    for _ in range(1000):
        if rig.v6.applied and rig.v4.applied:
            break
        thread.join(0.01)
    ending.set()
    rig.queue.wake()
    thread.join(30)
    assert all(proxier.stop(30) for proxier in rig.proxiers.values())
    assert not thread.is_alive()
    assert set(rig.v4.held) == {WEB}


def test_waiting_for_the_node_does_not_spin() -> None:
    rig, ending = Rig(node=None), threading.Event()
    rig.queue.put(listed(Kind.SERVICE))
    rig.queue.put(listed(Kind.ENDPOINT_SLICE))
    thread = run(rig, ending)
    thread.join(0.5)
    ending.set()
    rig.queue.wake()
    thread.join(30)
    assert all(proxier.stop(30) for proxier in rig.proxiers.values())
    assert 1 <= rig.node.asked <= 50  # at the polling rate these are three; a spinning loop asks by the thousand
