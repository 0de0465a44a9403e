"""What events make of the known cluster, and which Services they leave to be planned again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from kproxy.errors import InvalidObject
from kproxy.model import objects
from kproxy.model.events import Changed, Deleted, Event, Invalid, ListPage
from kproxy.model.objects import Kind
from kproxy.model.state import ClusterState, Dirty, ServiceName
from tests.model.builders import (
    NODE,
    changed,
    cidr,
    cluster,
    deleted,
    endpoint,
    in_pages,
    listed,
    node,
    service,
    slice_,
)

WEB, API = ServiceName("default", "web"), ServiceName("default", "api")
ONE, TWO = [endpoint("10.244.0.1")], [endpoint("10.244.0.2")]
TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"


def after(state: ClusterState, *events: Event) -> Dirty:
    """What is dirty after events that have no problems."""
    for event in events:
        assert state.apply(event) == []
    return state.take_dirty()


def ips(state: ClusterState, name: ServiceName = WEB) -> list[str]:
    return [address.ip for piece in state.slices(name) for address in piece.addresses]


# ---------------------------------------------------------------- Services


def test_a_new_service_is_dirty_once() -> None:
    state = cluster()
    assert after(state, changed(service())) == Dirty(frozenset({WEB}), False, 1, 0, {})
    assert after(state) == Dirty(frozenset(), False, 0, 0, {})


@pytest.mark.parametrize(
    ("event", "names", "changes"),
    [
        pytest.param(changed(service()), set(), 0, id="the same again"),
        pytest.param(changed(service(labels={"team": "blue"})), set(), 0, id="only a label"),
        pytest.param(changed(service(sessionAffinity="ClientIP")), {WEB}, 1, id="another affinity"),
        pytest.param(changed(service(clusterIP="None")), {WEB}, 1, id="turned headless"),
        pytest.param(
            changed(service(labels={"service.kubernetes.io/service-proxy-name": "x"})), {WEB}, 1, id="given away"
        ),
        pytest.param(deleted(service()), {WEB}, 1, id="deleted"),
        pytest.param(Deleted(Kind.SERVICE, "", "web"), {WEB}, 1, id="deleted, namespace left out"),
        pytest.param(Deleted(Kind.SERVICE, "default", "nobody"), set(), 0, id="deletion of an unknown one"),
        pytest.param(changed(service("api")), {API}, 1, id="another one"),
        pytest.param(changed(service("headless", clusterIP="None")), set(), 0, id="another one, headless"),
    ],
)
def test_a_service_event_marks_what_it_changes(event: Event, names: set[ServiceName], changes: int) -> None:
    dirty = after(cluster(service()), event)
    assert (set(dirty.names), dirty.service_changes, dirty.all) == (names, changes, False)


def test_changes_of_one_service_are_counted_and_planned_once() -> None:
    dirty = after(cluster(), changed(service()), changed(service(sessionAffinity="ClientIP")), deleted(service()))
    assert (set(dirty.names), dirty.service_changes) == ({WEB}, 3)


def test_pending_counts_until_dirty_is_taken() -> None:
    state = cluster()
    state.apply(changed(service()))
    state.apply(changed(slice_("web-1", ONE)))
    state.apply(changed(slice_("web-1", TWO)))
    assert state.pending == (1, 2)
    state.take_dirty()
    assert state.pending == (0, 0)


# ---------------------------------------------------------------- slices


@pytest.mark.parametrize(
    ("event", "names", "left"),
    [
        pytest.param(changed(slice_("web-1", ONE)), set(), ["10.244.0.1"], id="the same again"),
        pytest.param(
            changed(slice_("web-1", ONE, annotations={TRIGGER: "2026-01-01T00:00:00Z"})),
            set(),
            ["10.244.0.1"],
            id="only an annotation",
        ),
        pytest.param(changed(slice_("web-1", TWO)), {WEB}, ["10.244.0.2"], id="another endpoint"),
        pytest.param(changed(slice_("web-2", TWO)), {WEB}, ["10.244.0.1", "10.244.0.2"], id="a second slice"),
        pytest.param(changed(slice_("web-1", ONE, "api")), {WEB, API}, [], id="moves to another Service"),
        pytest.param(changed(slice_("web-1", ONE, addressType="FQDN")), {WEB}, [], id="is no longer for us"),
        pytest.param(deleted(slice_("web-1")), {WEB}, [], id="deleted"),
        pytest.param(Deleted(Kind.ENDPOINT_SLICE, "default", "web-9"), set(), ["10.244.0.1"], id="unknown deleted"),
        pytest.param(Deleted(Kind.ENDPOINT_SLICE, "other", "web-1"), set(), ["10.244.0.1"], id="another namespace"),
        pytest.param(changed(slice_("web-1", TWO, namespace="other")), None, ["10.244.0.1"], id="same name elsewhere"),
    ],
)
def test_a_slice_event_marks_what_it_changes(event: Event, names: set[ServiceName] | None, left: list[str]) -> None:
    state = cluster(service(), slice_("web-1", ONE))
    dirty = after(state, event)
    assert dirty.names == ({ServiceName("other", "web")} if names is None else names)
    assert dirty.endpoint_changes == (0 if names == set() else 1)
    assert ips(state) == left


def test_a_slice_that_moved_is_found_at_its_new_service() -> None:
    state = cluster(service(), service("api"), slice_("web-1", ONE))
    after(state, changed(slice_("web-1", TWO, "api")))
    assert (ips(state, WEB), ips(state, API)) == ([], ["10.244.0.2"])
    assert after(state, deleted(slice_("web-1"))).names == {API}


def test_a_slice_may_come_before_its_service() -> None:
    state = cluster()
    after(state, changed(slice_("web-1", ONE)))
    assert list(state.names()) == []
    after(state, changed(service()))
    assert (list(state.names()), ips(state)) == ([WEB], ["10.244.0.1"])


def test_slices_outlive_their_service() -> None:
    state = cluster(service(), slice_("web-1", ONE))
    after(state, deleted(service()))
    after(state, changed(service()))
    assert ips(state) == ["10.244.0.1"]


def test_a_slice_that_becomes_unusable_is_a_problem_and_its_endpoints_go() -> None:
    state = cluster(service(), slice_("web-1", ONE))
    (problem,) = state.apply(changed(slice_("web-1", [endpoint("10.244.0.1")] * 1001)))
    assert problem.field == "endpoints"
    assert state.take_dirty().names == {WEB}
    assert ips(state) == []


# ---------------------------------------------------------------- lists


def test_planning_waits_for_the_first_list_of_services_and_of_slices() -> None:
    state = ClusterState(NODE)
    for event, ready in (
        (changed(service()), False),
        (listed(Kind.NODE, node()), False),
        (listed(Kind.SERVICE, service()), False),
        (listed(Kind.ENDPOINT_SLICE), True),
    ):
        state.apply(event)
        assert state.ready is ready
    assert state.listed(Kind.NODE)
    assert not state.listed(Kind.SERVICE_CIDR)


def test_the_same_list_again_changes_nothing() -> None:
    items: list[objects.Object] = [
        service(),
        service("api"),
        slice_("web-1", ONE),
        slice_("api-1", TWO, "api"),
        node(),
        cidr("a", "10.0.0.0/8"),
    ]
    state = cluster(*items)
    relist: list[Event] = [
        listed(Kind.SERVICE, items[1], items[0]),
        listed(Kind.ENDPOINT_SLICE, items[3], items[2]),
        listed(Kind.NODE, items[4]),
        listed(Kind.SERVICE_CIDR, items[5]),
    ]
    assert after(state, *relist) == Dirty(frozenset(), False, 0, 0, {})


def test_a_relist_is_its_difference() -> None:
    state = cluster(service("kept"), service("gone"), service("edited"))
    relist = listed(Kind.SERVICE, service("kept"), service("edited", sessionAffinity="ClientIP"), service("new"))
    dirty = after(state, relist)
    assert {name.name for name in dirty.names} == {"gone", "edited", "new"}
    assert dirty.service_changes == 3


def test_a_relist_of_slices_is_its_difference() -> None:
    state = cluster(service(), service("api"), slice_("web-1", ONE), slice_("web-2", TWO), slice_("api-1", ONE, "api"))
    dirty = after(state, listed(Kind.ENDPOINT_SLICE, slice_("web-1", ONE), slice_("api-1", ONE, "api")))
    assert (set(dirty.names), dirty.endpoint_changes) == ({WEB}, 1)
    assert ips(state) == ["10.244.0.1"]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_relist_in_pages_is_the_same_difference(size: int) -> None:
    state = cluster(service("kept"), service("gone"), service("edited"))
    now = [service("kept"), service("edited", sessionAffinity="ClientIP"), service("new")]
    dirty = after(state, *in_pages(Kind.SERVICE, now, size))
    assert {name.name for name in dirty.names} == {"gone", "edited", "new"}
    assert dirty.service_changes == 3
    assert {name.name for name in state.names()} == {"kept", "edited", "new"}


def test_pages_alone_are_no_list() -> None:
    state = ClusterState(NODE)
    state.apply(listed(Kind.SERVICE))
    state.apply(ListPage(Kind.ENDPOINT_SLICE, (slice_("web-1", ONE),)))
    assert not state.ready
    state.apply(listed(Kind.ENDPOINT_SLICE, slice_("web-2", TWO)))
    assert state.ready
    assert ips(state) == ["10.244.0.2"], "what the list has not, a page that broke off had for nothing"


@pytest.mark.parametrize("kind", [Kind.SERVICE, Kind.ENDPOINT_SLICE])
def test_an_empty_relist_removes_everything_of_its_kind(kind: Kind) -> None:
    state = cluster(service(), slice_("web-1", ONE))
    assert after(state, listed(kind)).names == {WEB}
    assert (list(state.names()), ips(state)) == (([], ["10.244.0.1"]) if kind is Kind.SERVICE else ([WEB], []))


def test_what_a_relist_could_not_read_stays_as_it_was() -> None:
    state = cluster(
        service(), service("api"), slice_("web-1", ONE), slice_("web-2", TWO), node(), cidr("a", "10.0.0.0/8")
    )
    dirty = after(
        state,
        listed(Kind.SERVICE, unreadable=["default/web"]),
        listed(Kind.ENDPOINT_SLICE, unreadable=["default/web-1"]),
        listed(Kind.NODE, unreadable=[f"default/{NODE}"]),
        listed(Kind.SERVICE_CIDR, unreadable=["default/a"]),
    )
    assert (set(dirty.names), dirty.all) == ({API, WEB}, False)
    assert (list(state.names()), ips(state)) == ([WEB], ["10.244.0.1"])
    assert state.node is not None
    assert state.service_cidrs == ("10.0.0.0/8",)


def test_a_list_tells_the_problems_of_all_its_objects_and_takes_the_rest() -> None:
    state = ClusterState(NODE)
    odd = [service("a", externalIPs=["x"]), service('b"'), service()]
    problems = state.apply(listed(Kind.SERVICE, *odd))
    assert [p.field for p in problems] == ["spec.externalIPs[0]", "metadata.name"]
    assert set(state.names()) == {WEB, ServiceName("default", "a")}


def test_an_object_that_could_not_be_decoded_only_passes_its_problem_on() -> None:
    state = cluster(service())
    problem = InvalidObject("Service", "default/web", "spec.ports", "is not an array")
    assert state.apply(Invalid(problem)) == [problem]
    assert state.take_dirty() == Dirty(frozenset(), False, 0, 0, {})
    assert list(state.names()) == [WEB]


# ---------------------------------------------------------------- the Node and ServiceCIDRs

READY_NODE = node(spec={"podCIDRs": ["10.244.1.0/24"]})


@pytest.mark.parametrize(
    ("event", "everything"),
    [
        pytest.param(changed(READY_NODE), False, id="the same again"),
        pytest.param(changed(node(spec={"podCIDR": "10.244.1.0/24"})), False, id="said in another way"),
        pytest.param(changed(node(zone="zone-b", spec={"podCIDRs": ["10.244.1.0/24"]})), True, id="another zone"),
        pytest.param(changed(node()), True, id="no pod CIDR"),
        pytest.param(changed(node("node2", zone="zone-b")), False, id="another node"),
        pytest.param(deleted(node("node2")), False, id="another node is deleted"),
        pytest.param(deleted(node()), True, id="deleted"),
        pytest.param(listed(Kind.NODE), True, id="missing from a relist"),
        pytest.param(listed(Kind.NODE, READY_NODE), False, id="relist"),
    ],
)
def test_a_change_of_the_own_node_makes_everything_dirty(event: Event, everything: bool) -> None:
    state = cluster(READY_NODE, service())
    state.apply(event)
    assert state.all_dirty is everything
    dirty = state.take_dirty()
    assert (dirty.all, set(dirty.names)) == (everything, set())
    assert not state.all_dirty


def test_what_a_deleted_node_leaves() -> None:
    state = cluster(node())
    after(state, deleted(node()))
    assert state.node is None


def test_service_cidrs_are_those_of_all_objects_each_once() -> None:
    state = cluster()
    steps: list[tuple[list[Event], list[str]]] = [
        ([changed(cidr("b", "10.96.0.0/16", "fd00::/108"))], ["10.96.0.0/16", "fd00::/108"]),
        ([changed(cidr("a", "10.96.0.0/16", "10.112.0.0/16"))], ["10.112.0.0/16", "10.96.0.0/16", "fd00::/108"]),
        ([deleted(cidr("b")), deleted(cidr("unknown"))], ["10.112.0.0/16", "10.96.0.0/16"]),
        ([listed(Kind.SERVICE_CIDR, cidr("c", "10.0.0.0/24"))], ["10.0.0.0/24"]),
    ]
    for events, expected in steps:
        after(state, *events)
        assert list(state.service_cidrs) == expected


def test_a_service_cidr_without_spec_is_none() -> None:
    bare = objects.ServiceCIDR(objects.Metadata("a"))
    state = cluster()
    after(state, Changed(Kind.SERVICE_CIDR, bare))
    assert state.service_cidrs == ()


# ---------------------------------------------------------------- when the cause of a change happened


def triggered(when: str | None, ip: str = "10.244.0.9") -> objects.EndpointSlice:
    return slice_("web-1", [endpoint(ip)], annotations={TRIGGER: when} if when is not None else None)


NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-01T00:00:00Z", [NEW_YEAR]),
        ("2026-01-01T01:00:00+01:00", [NEW_YEAR]),
        ("2026-01-01T00:00:00.5Z", [NEW_YEAR + 0.5]),
        ("2026-01-01T00:00:00.500000123Z", [NEW_YEAR + 0.5]),
        (None, []),
        ("", []),
        ("yesterday", []),
        ("0001-01-01T00:00:00", []),
        ("2026-13-01T00:00:00Z", []),
    ],
)
def test_trigger_times(text: str | None, expected: list[float]) -> None:
    dirty = after(cluster(service()), changed(triggered(text)))
    assert dirty.triggers == ({WEB: expected} if expected else {})


def test_every_change_adds_its_trigger_until_dirty_is_taken() -> None:
    state = cluster(service())
    events = [changed(triggered(f"2026-01-01T00:00:0{i}Z", f"10.244.0.{i}")) for i in (0, 1, 2)]
    assert after(state, *events).triggers == {WEB: [NEW_YEAR, NEW_YEAR + 1, NEW_YEAR + 2]}
    assert after(state, events[-1]).triggers == {}


def test_the_first_list_tells_of_causes_long_past() -> None:
    state = ClusterState(NODE)
    assert after(state, listed(Kind.ENDPOINT_SLICE, triggered("2026-01-01T00:00:00Z"))).triggers == {}
    relist = listed(Kind.ENDPOINT_SLICE, triggered("2026-01-01T00:00:01Z", "10.244.0.10"))
    assert after(state, relist).triggers == {WEB: [NEW_YEAR + 1]}
