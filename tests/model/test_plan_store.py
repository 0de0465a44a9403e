"""The plans of a cluster, kept by difference: what a change touches, and the sums over all plans."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.model.events import Event
from kproxy.model.objects import Object
from kproxy.model.plan_store import FamilyPlans, PlanStore, Touched
from kproxy.model.planner import Place
from kproxy.model.plans import Endpoint, Family
from kproxy.model.state import ClusterState, ServiceName
from tests.model.builders import DUAL, NODE, ZONE, changed, cluster, deleted, endpoint, node, service, slice_

V4, V6 = Family.IPV4, Family.IPV6
PLACE = Place(NODE, ZONE)
ONE = slice_("web-1", [endpoint("10.244.0.1")])
TWO = slice_("web-1", [endpoint("10.244.0.1"), endpoint("10.244.0.2", "node2")])


def opened(*items: Object) -> tuple[ClusterState, PlanStore]:
    """A cluster and the book of all its plans."""
    state, book = cluster(*items), PlanStore()
    book.update(state, state.take_dirty()._replace(all=True), PLACE)
    return state, book


def update(state: ClusterState, book: PlanStore, *events: Event) -> dict[Family, Touched]:
    for event in events:
        state.apply(event)
    return book.update(state, state.take_dirty(), PLACE)


def shown(touched: Touched) -> dict[str, tuple[int | None, int | None]]:
    """By port, the number of endpoints before and after; None for no plan."""
    return {
        str(key): (len(old.cluster) if old else None, len(new.cluster) if new else None)
        for key, (old, new) in touched.items()
    }


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        pytest.param(changed(TWO), {"default/web:http": (1, 2)}, id="one more endpoint"),
        pytest.param(deleted(ONE), {"default/web:http": (1, 0)}, id="no endpoint left"),
        pytest.param(deleted(service()), {"default/web:http": (1, None)}, id="Service deleted"),
        pytest.param(changed(service("api")), {"default/api:http": (None, 0)}, id="new Service"),
        pytest.param(
            changed(service(ports=[{"name": "web", "port": 80}])),
            {"default/web:http": (1, None), "default/web:web": (None, 0)},
            id="port renamed",
        ),
        pytest.param(
            changed(slice_("web-2", [endpoint("10.244.0.1")])), {}, id="an endpoint known already, in another slice"
        ),
        pytest.param(
            changed(slice_("web-2", [endpoint("fd00::1")], addressType="IPv6")), {}, id="an endpoint of no use here"
        ),
        pytest.param(changed(slice_("api-1", [endpoint("10.244.0.1")], "api")), {}, id="a slice of an unknown Service"),
        pytest.param(changed(node(zone="zone-b")), {}, id="another zone, and no hints"),
    ],
)
def test_touched_is_what_really_differs(event: Event, expected: dict[str, Any]) -> None:
    touched = update(*opened(service(), ONE), event)
    assert (shown(touched[V4]), shown(touched[V6])) == (expected, {})


def test_touched_holds_the_plans_before_and_after() -> None:
    state, book = opened(service(), ONE)
    before = dict(book.pages[V4].plans)
    ((key, (old, new)),) = update(state, book, changed(TWO))[V4].items()
    assert old == before[key]
    assert new == book.pages[V4].plans[key]
    assert new.cluster == (Endpoint("10.244.0.1", 8080, True), Endpoint("10.244.0.2", 8080))


def test_a_dual_stack_service_is_on_both_pages() -> None:
    state, book = opened(service(clusterIPs=DUAL), ONE)
    assert [len(page.plans) for page in book.pages.values()] == [1, 1]
    touched = update(state, book, changed(service()))
    assert (shown(touched[V4]), shown(touched[V6])) == ({}, {"default/web:http": (0, None)})


def test_everything_dirty_also_finds_what_is_gone() -> None:
    state, book = opened(service(), service("api"))
    state.apply(deleted(service("api")))
    state.take_dirty()  # lost on the way
    touched = book.update(state, state.take_dirty()._replace(all=True), PLACE)
    assert shown(touched[V4]) == {"default/api:http": (0, None)}


def test_a_new_place_counts_when_everything_is_dirty() -> None:
    state, book = opened(service(internalTrafficPolicy="Local"), ONE)
    elsewhere = Place("node2", ZONE)
    assert book.update(state, state.take_dirty(), elsewhere)[V4] == {}
    ((old, new),) = book.update(state, state.take_dirty()._replace(all=True), elsewhere)[V4].values()
    assert old is not None
    assert new is not None
    assert (len(old.local), len(new.local)) == (1, 0)


# ---------------------------------------------------------------- sums


def test_endpoints_are_summed_over_all_ports() -> None:
    ports = [{"name": "http", "port": 80}, {"name": "alt", "port": 81}]
    both = [{"name": "http", "port": 8080}, {"name": "alt", "port": 8081}]
    state, book = opened(
        service(ports=ports), slice_("web-1", [endpoint("10.244.0.1"), endpoint("10.244.0.2")], ports=both)
    )
    assert (book.pages[V4].endpoints, book.pages[V6].endpoints) == (4, 0)
    update(state, book, changed(service()))
    assert book.pages[V4].endpoints == 2
    update(state, book, deleted(service()))
    assert book.pages[V4] == FamilyPlans()


AWAY = slice_("web-1", [endpoint("10.244.0.1", "node2")])
NODE_PORT = {"type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}


@pytest.mark.parametrize(
    ("spec", "endpoints", "internal", "external"),
    [
        pytest.param({}, AWAY, 0, 0, id="policy Cluster"),
        pytest.param({"internalTrafficPolicy": "Local"}, AWAY, 1, 0, id="inside Local"),
        pytest.param({"internalTrafficPolicy": "Local"}, ONE, 0, 0, id="inside Local, one here"),
        pytest.param({"internalTrafficPolicy": "Local"}, None, 0, 0, id="inside Local, none anywhere"),
        pytest.param({**NODE_PORT, "externalTrafficPolicy": "Local"}, AWAY, 0, 1, id="outside Local"),
        pytest.param({**NODE_PORT, "externalTrafficPolicy": "Local"}, ONE, 0, 0, id="outside Local, one here"),
        pytest.param(
            {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}, AWAY, 0, 0, id="outside Local, no way in yet"
        ),
        pytest.param(
            {**NODE_PORT, "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}, AWAY, 1, 1, id="both"
        ),
    ],
)
def test_ports_without_local_endpoints(spec: dict[str, Any], endpoints: Any, internal: int, external: int) -> None:
    items = [service(**spec), *([endpoints] if endpoints else [])]
    state, book = opened(*items)
    assert (book.pages[V4].no_internal, book.pages[V4].no_external) == (internal, external)
    update(state, book, deleted(service()))
    assert (book.pages[V4].no_internal, book.pages[V4].no_external) == (0, 0)


# ---------------------------------------------------------------- health checks


def balanced(name: str = "web", port: int = 32000, **spec: Any) -> Any:
    fields = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ingress": [{"ip": "203.0.113.1"}], **spec}
    return service(name, healthCheckNodePort=port, **fields)


def test_health_checks_count_ready_endpoints_here_once_over_ports_and_families() -> None:
    ports = [{"name": "http", "port": 80}, {"name": "alt", "port": 81}]
    both = [{"name": "http", "port": 8080}, {"name": "alt", "port": 8081}]
    v4 = slice_("web-4", [endpoint("10.244.0.1"), endpoint("10.244.0.2", "node2")], ports=both)
    v6 = slice_("web-6", [endpoint("fd00::1"), endpoint("fd00::2")], ports=both, addressType="IPv6")
    _, book = opened(balanced(clusterIPs=DUAL, ports=ports), v4, v6)
    assert book.health_checks() == {32000: (ServiceName("default", "web"), 2)}


def test_health_checks_follow_the_services() -> None:
    state, book = opened(balanced(), balanced("api", 32001), ONE)
    web, api = ServiceName("default", "web"), ServiceName("default", "api")
    assert book.health_checks() == {32000: (web, 1), 32001: (api, 0)}
    update(state, book, changed(balanced("web", 32002)), deleted(service("api")))
    assert book.health_checks() == {32002: (web, 1)}
    update(state, book, changed(balanced(externalTrafficPolicy="Cluster")))
    assert book.health_checks() == {}
