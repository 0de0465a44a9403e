"""The plans of a cluster, kept by difference: which plans an event changes, and the sums over all plans."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.model.events import Event
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Object
from kproxy.model.plan_store import Changes, FamilyPlans, checks_by_port, health_checks, merge
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState, ServiceName
from tests.fakes.plans import BothFamilies, FaultyState
from tests.model.builders import DUAL, NODE, ZONE, changed, cluster, deleted, endpoint, node, service, slice_

V4, V6 = Family.IPV4, Family.IPV6
HERE = NodeInfo(NODE, ZONE)
WEB = ServiceName("default", "web")
ONE = slice_("web-1", [endpoint("10.244.0.1")])
TWO = slice_("web-1", [endpoint("10.244.0.1"), endpoint("10.244.0.2", "node2")])


def planned(*items: Object) -> tuple[ClusterState, BothFamilies]:
    """A cluster and all its plans."""
    state, both = cluster(*items), BothFamilies()
    both.update(state, HERE, everything=True)
    return state, both


def update(state: ClusterState, both: BothFamilies, *events: Event) -> dict[Family, Changes]:
    for event in events:
        state.apply(event)
    return both.update(state, HERE)


def shown(changes: Changes) -> dict[str, tuple[int | None, int | None]]:
    """By port, the number of endpoints before and after; None for no plan."""
    return {
        str(key): (len(old.cluster) if old else None, len(new.cluster) if new else None)
        for key, (old, new) in changes.items()
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
def test_changes_are_the_plans_that_really_differ(event: Event, expected: dict[str, Any]) -> None:
    changes = update(*planned(service(), ONE), event)
    assert (shown(changes[V4]), shown(changes[V6])) == (expected, {})


def test_an_unchanged_plan_of_a_changed_service_stays_the_same_object() -> None:
    """The proxiers share it with the store."""
    state, both = planned(service(clusterIPs=DUAL), ONE)
    update(state, both, changed(TWO))
    (kept,) = (plan for plan in both.store.plans() if plan.family is V6)
    assert kept is both.families[V6].plans[kept.key]


def test_everything_dirty_also_finds_what_is_gone() -> None:
    state, both = planned(service(), service("api"))
    state.apply(deleted(service("api")))
    state.take_dirty()  # lost on the way
    assert shown(both.update(state, HERE, everything=True)[V4]) == {"default/api:http": (0, None)}


def test_another_node_counts_when_everything_is_dirty() -> None:
    state, both = planned(service(internalTrafficPolicy="Local"), ONE)
    elsewhere = NodeInfo("node2", ZONE)
    assert both.update(state, elsewhere)[V4] == {}
    ((old, new),) = both.update(state, elsewhere, everything=True)[V4].values()
    assert old is not None
    assert new is not None
    assert (len(old.local), len(new.local)) == (1, 0)


def test_several_changes_of_one_port_become_one() -> None:
    state, both = planned(service(), ONE)
    merged = update(state, both, changed(TWO))[V4]
    merge(merged, update(state, both, deleted(service()), changed(service("api")))[V4])
    assert shown(merged) == {"default/web:http": (1, None), "default/api:http": (None, 0)}


def test_a_service_that_cannot_be_planned_keeps_its_plans_and_harms_no_other() -> None:
    state, both = FaultyState(NODE), BothFamilies()
    update(state, both, changed(service()), changed(service("api")), changed(ONE))
    state.unplannable.add(WEB)
    for event in (changed(TWO), changed(slice_("api-1", [endpoint("10.244.0.3")], "api"))):
        state.apply(event)
    dirty, failed = state.take_dirty(), []
    changes = both.store.update(state, dirty, HERE, failed=lambda name, error: failed.append((name, type(error))))
    assert failed == [(WEB, ZeroDivisionError)]
    assert shown(changes[V4]) == {"default/api:http": (0, 1)}
    assert {plan.key.name: len(plan.cluster) for plan in both.store.plans()} == {"web": 1, "api": 1}
    with pytest.raises(ZeroDivisionError):
        both.store.update(state, dirty, HERE)


# ---------------------------------------------------------------- sums


def test_endpoints_are_summed_over_all_ports() -> None:
    ports = [{"name": "http", "port": 80}, {"name": "alt", "port": 81}]
    targets = [{"name": "http", "port": 8080}, {"name": "alt", "port": 8081}]
    state, both = planned(
        service(ports=ports), slice_("web-1", [endpoint("10.244.0.1"), endpoint("10.244.0.2")], ports=targets)
    )
    assert (both.families[V4].endpoints, both.families[V6].endpoints) == (4, 0)
    update(state, both, changed(service()))
    assert both.families[V4].endpoints == 2
    update(state, both, deleted(service()))
    assert both.families[V4] == FamilyPlans()


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
    state, both = planned(*items)
    assert (both.families[V4].no_internal, both.families[V4].no_external) == (internal, external)
    update(state, both, deleted(service()))
    assert (both.families[V4].no_internal, both.families[V4].no_external) == (0, 0)


# ---------------------------------------------------------------- health checks


def balanced(name: str = "web", port: int = 32000, **spec: Any) -> Any:
    fields = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ingress": [{"ip": "203.0.113.1"}], **spec}
    return service(name, healthCheckNodePort=port, **fields)


def checks(both: BothFamilies) -> dict[int, tuple[ServiceName, int]]:
    found = checks_by_port({family: health_checks(plans) for family, plans in both.families.items()})
    return {port: (check.service, check.endpoints) for port, check in found.items()}


def test_health_checks_count_ready_endpoints_here_once_over_ports_and_families() -> None:
    ports = [{"name": "http", "port": 80}, {"name": "alt", "port": 81}]
    targets = [{"name": "http", "port": 8080}, {"name": "alt", "port": 8081}]
    v4 = slice_("web-4", [endpoint("10.244.0.1"), endpoint("10.244.0.2", "node2")], ports=targets)
    v6 = slice_("web-6", [endpoint("fd00::1"), endpoint("fd00::2")], ports=targets, addressType="IPv6")
    _, both = planned(balanced(clusterIPs=DUAL, ports=ports), v4, v6)
    assert checks(both) == {32000: (WEB, 2)}
