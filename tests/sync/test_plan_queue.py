"""Plans between the thread that follows the cluster and the two proxiers: what each takes, and what an error costs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from kproxy.containment import Containment
from kproxy.model.events import Event, Listed
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Kind, Object
from kproxy.model.plan_store import Changes, FamilyPlans
from kproxy.model.planner import plan_service
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState, ServiceName
from kproxy.rate_limit import FIRST_RETRY
from kproxy.sync.plan_queue import FamilyChanges, PlanQueue
from tests.fakes.clocks import ManualClock
from tests.fakes.plans import FaultyState
from tests.model.builders import DUAL, NODE, ZONE, changed, cluster, deleted, endpoint, node, service, slice_

V4, V6 = Family.IPV4, Family.IPV6
HERE = NodeInfo(NODE, ZONE, ("172.18.0.2",))
WEB, API = ServiceName("default", "web"), ServiceName("default", "api")
ONE, TWO, THREE = (slice_("web-1", [endpoint(f"10.244.0.{n + 1}") for n in range(count)]) for count in (1, 2, 3))


class Counts:
    """The number of changes that wait, as the metrics are given it."""

    def __init__(self) -> None:
        self.waiting = (0, 0)

    def queued(self, service_changes: int, endpoint_changes: int) -> None:
        self.waiting = service_changes, endpoint_changes

    def planned(self) -> None:
        self.waiting = 0, 0


def names_of(kind: Kind, items: Iterable[Object]) -> Listed:
    """The end of a list, as the EventQueue passes it on: the objects themselves came before."""
    found = (deleted(item) for item in items)
    return Listed(kind, (), delivered=frozenset(f"{gone.namespace}/{gone.name}" for gone in found if gone.kind is kind))


class Rig:
    """A PlanQueue with a state whose faults the test decides, and what two proxiers took of it.

    items: all that the first lists hold.
    """

    def __init__(self, *items: Object, families: Collection[Family] = tuple(Family)) -> None:
        self.clock, self.counts = ManualClock(), Counts()
        self.containment = Containment(self.clock)
        self.state = FaultyState(NODE)
        self.queue = PlanQueue(self.state, families, self.counts, self.containment)
        self.taken = {family: FamilyPlans() for family in families}
        self.add(*map(changed, items), *(names_of(kind, items) for kind in Kind))

    def add(self, *events: Event) -> bool:
        """Whether anything changed, of events without problems."""
        problems, something_changed = self.queue.add(events)
        assert problems == []
        return something_changed

    def take(self, family: Family = V4) -> FamilyChanges:
        """Take what changed, and hold the plans that follow from it."""
        taken = self.queue.take(family)
        assert taken is not None
        held = self.taken[family]
        assert {key: old for key, (old, _) in taken.plans.items()} == {key: held.plans.get(key) for key in taken.plans}
        held.update(taken.plans)
        return taken


def planned_anew(state: ClusterState, family: Family, node: NodeInfo, external_ips: bool = True) -> FamilyPlans:
    """The family's plans, planned at once."""
    found = FamilyPlans()
    everything = (p for name in state.names() for p in plan_service(state, name, node, external_ips))
    found.update({plan.key: (None, plan) for plan in everything if plan.family is family})
    return found


def ready(*items: Object) -> Rig:
    """A queue whose node is known, and of which the IPv4 proxier has taken everything."""
    rig = Rig(*items)
    rig.queue.set_node(HERE, external_ips=True)
    rig.take()
    return rig


def shown(changes: Changes) -> dict[str, tuple[int | None, int | None]]:
    """By port, the number of endpoints before and after; None for no plan."""
    return {
        str(key): (len(old.cluster) if old else None, len(new.cluster) if new else None)
        for key, (old, new) in changes.items()
    }


def test_there_is_nothing_to_take_before_the_node_is_known() -> None:
    rig = Rig(service(), ONE)
    assert not rig.queue.ready
    assert rig.queue.take(V4) is None
    assert rig.queue.set_node(HERE, external_ips=True)
    assert rig.queue.ready
    taken = rig.take()
    assert (shown(taken.plans), taken.node) == ({"default/web:http": (None, 1)}, HERE)


def test_each_family_takes_everything_first_and_then_what_changed_for_it() -> None:
    rig = ready(service(clusterIPs=DUAL), ONE)
    assert shown(rig.take(V4).plans) == {}
    rig.add(changed(TWO))
    assert shown(rig.take(V4).plans) == {"default/web:http": (1, 2)}
    assert shown(rig.take(V6).plans) == {"default/web:http": (None, 0)}
    rig.add(changed(THREE))
    assert shown(rig.take(V6).plans) == {}
    assert shown(rig.take(V4).plans) == {"default/web:http": (2, 3)}, "planned for the other family, and kept"


def test_many_changes_of_one_port_are_taken_as_one() -> None:
    rig = ready(service(), ONE)
    rig.take(V6)
    for item in (TWO, THREE, ONE, TWO):
        rig.add(changed(item))
        rig.take(V6)  # plans for both
    assert shown(rig.take(V4).plans) == {"default/web:http": (1, 2)}


def test_the_causes_of_a_change_are_taken_with_it_by_each_family_that_it_concerns() -> None:
    rig = ready(service(), ONE)
    rig.take(V6)
    stamped = {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-02T03:04:05Z"}
    rig.add(changed(slice_("web-1", [endpoint("10.244.0.9")], annotations=stamped)))
    assert rig.take(V6).triggers == []
    assert rig.take(V4).triggers == [1767323045.0]
    assert rig.take(V4).triggers == []


def test_adding_reports_what_waits_and_whether_anything_changed() -> None:
    rig = ready(service(), ONE)
    assert not rig.add(changed(ONE))
    assert rig.counts.waiting == (0, 0)
    assert rig.add(changed(TWO), changed(service("api")))
    assert rig.counts.waiting == (1, 1)
    assert rig.add(deleted(service("api")))
    assert rig.counts.waiting == (2, 1)
    rig.take(V6)
    assert rig.counts.waiting == (0, 0)
    problems, _ = rig.queue.add([changed(slice_("x", [], None))])
    assert [(p.kind, p.name) for p in problems] == [("EndpointSlice", "default/x")]


@pytest.mark.parametrize(
    ("node_after", "external_ips", "news", "replanned"),
    [
        pytest.param(HERE, True, False, False, id="the same"),
        pytest.param(None, True, False, False, id="not known any more"),
        pytest.param(replace(HERE, addresses=("127.0.0.1",)), True, True, False, id="what rules alone depend on"),
        pytest.param(replace(HERE, name="node2"), True, True, True, id="what plans depend on"),
        pytest.param(HERE, False, True, True, id="external IPs not served"),
    ],
)
def test_everything_is_planned_anew_for_another_node_only_if_plans_depend_on_it(
    node_after: NodeInfo | None, external_ips: bool, news: bool, replanned: bool
) -> None:
    rig = ready(service(externalIPs=["198.51.100.1"], internalTrafficPolicy="Local"), ONE)
    assert rig.queue.set_node(node_after, external_ips) is news
    if node_after is None:
        assert rig.queue.take(V4) is None
        assert rig.queue.set_node(HERE, external_ips), "the proxiers have to be woken again"
        return
    taken = rig.take()
    assert taken.node == node_after
    assert bool(taken.plans) is replanned
    assert rig.taken[V4] == planned_anew(rig.state, V4, node_after, external_ips)


def test_new_proxiers_take_everything_first() -> None:
    rig = ready(service(clusterIPs=DUAL), ONE)
    assert len(rig.queue.plans()) == 2
    rig.queue.start_anew([V4])
    rig.taken = {V4: FamilyPlans()}
    assert shown(rig.take(V4).plans) == {"default/web:http": (None, 1)}
    assert [plan.family for plan in rig.queue.plans()] == [V4], "of the families that are programmed"


# ---------------------------------------------------------------- unexpected errors


def test_an_object_that_cannot_be_applied_costs_itself_and_is_tried_again() -> None:
    rig = ready(service(), ONE)
    rig.state.unusable.add("web-1")
    problems, something_changed = rig.queue.add([changed(TWO), changed(service("api"))])
    assert [str(problem) for problem in problems] == ["EndpointSlice default/web-1: unexpected ZeroDivisionError"]
    assert something_changed
    assert shown(rig.take().plans) == {"default/api:http": (None, 0)}
    assert rig.queue.retry() == ([], False), "its wait is not over"
    rig.clock.advance(FIRST_RETRY)
    assert len(rig.queue.retry()[0]) == 1
    rig.state.unusable.clear()
    rig.clock.advance(FIRST_RETRY)
    assert rig.queue.retry() == ([], False), "it failed again: the wait is longer"
    rig.clock.advance(FIRST_RETRY)
    assert rig.queue.retry() == ([], True)
    assert shown(rig.take().plans) == {"default/web:http": (1, 2)}
    assert rig.containment.counts()["cluster-state"] == 2
    assert rig.containment.failing() == []


@pytest.mark.parametrize("newer", [changed(THREE), deleted(ONE)], ids=["changed", "deleted"])
def test_a_newer_event_takes_the_place_of_one_that_could_not_be_applied(newer: Event) -> None:
    rig = ready(service(), ONE)
    rig.state.unusable.add("web-1")
    rig.queue.add([changed(TWO)])
    rig.state.unusable.clear()
    rig.add(newer)
    rig.clock.advance(60)
    assert rig.queue.retry() == ([], False)
    rig.take()
    assert rig.taken[V4] == planned_anew(rig.state, V4, HERE)
    assert len(next(iter(rig.taken[V4].plans.values())).cluster) in (3, 0)
    assert rig.containment.failing() == []


def test_a_list_without_the_object_ends_the_retries() -> None:
    """The list says that the object is gone: an older event must not bring it back."""
    rig = ready(service(), ONE)
    rig.state.unusable.add("web-1")
    rig.queue.add([changed(TWO)])
    rig.state.unusable.clear()
    rig.add(names_of(Kind.ENDPOINT_SLICE, []))
    rig.clock.advance(60)
    rig.queue.retry()
    rig.take()
    assert [len(plan.cluster) for plan in rig.taken[V4].plans.values()] == [0]


def test_of_a_list_that_cannot_be_applied_only_what_fails_waits_for_a_retry() -> None:
    other = slice_("api-1", [endpoint("10.244.0.3")], "api")
    rig = ready(service(), service("api"), ONE, other)
    rig.take()
    rig.state.unusable.add("web-1")
    problems, _ = rig.queue.add([names_of(Kind.ENDPOINT_SLICE, [])])
    assert [str(problem) for problem in problems] == ["EndpointSlice default/web-1: unexpected ZeroDivisionError"]
    assert shown(rig.take().plans) == {"default/api:http": (1, 0)}
    rig.state.unusable.clear()
    assert rig.queue.retry() == ([], False), "its wait is not over"
    rig.clock.advance(60)
    assert rig.queue.retry() == ([], True)
    assert shown(rig.take().plans) == {"default/web:http": (1, 0)}
    assert rig.containment.failing() == []


def test_a_list_that_cannot_be_read_is_tried_again_and_undoes_nothing_newer() -> None:
    rig = ready(service(), ONE)
    rig.take()
    rig.state.unlistable.add(Kind.ENDPOINT_SLICE)
    rig.queue.add([names_of(Kind.ENDPOINT_SLICE, [])])
    rig.queue.add([changed(slice_("web-2", [endpoint("10.244.0.9")]))])
    assert shown(rig.take().plans) == {"default/web:http": (1, 2)}
    rig.state.unlistable.clear()
    rig.clock.advance(60)
    assert rig.queue.retry() == ([], True)
    assert shown(rig.take().plans) == {"default/web:http": (2, 1)}
    assert rig.containment.failing() == []


def test_a_service_that_cannot_be_planned_keeps_its_plans_and_is_tried_again() -> None:
    rig = ready(service(), service("api"), ONE)
    rig.take(V6)
    rig.state.unplannable.add(WEB)
    rig.add(changed(TWO), changed(slice_("api-1", [endpoint("10.244.0.3")], "api")))
    assert shown(rig.take().plans) == {"default/api:http": (0, 1)}
    assert rig.queue.retry() == ([], False)
    rig.clock.advance(FIRST_RETRY)
    assert rig.queue.retry() == ([], True)
    assert shown(rig.take().plans) == {}
    rig.state.unplannable.clear()
    rig.clock.advance(FIRST_RETRY)
    assert rig.queue.retry() == ([], False), "it failed again: the wait is longer"
    rig.clock.advance(FIRST_RETRY)
    assert rig.queue.retry() == ([], True)
    assert shown(rig.take().plans) == {"default/web:http": (1, 2)}
    assert rig.queue.retry() == ([], False)
    assert rig.containment.counts()["plan"] == 2
    assert rig.containment.failing() == []


def test_a_service_that_could_not_be_planned_is_planned_at_once_when_it_changes() -> None:
    rig = ready(service(), ONE)
    rig.state.unplannable.add(WEB)
    rig.add(changed(TWO))
    assert shown(rig.take().plans) == {}
    rig.state.unplannable.clear()
    rig.add(changed(THREE))
    assert shown(rig.take().plans) == {"default/web:http": (1, 3)}
    rig.clock.advance(60)
    rig.take()
    assert rig.queue.retry() == ([], False)
    assert rig.containment.failing() == []


def test_planning_that_failed_for_every_service_is_made_up_for() -> None:
    """After a change of the node, say."""
    rig = ready(service(internalTrafficPolicy="Local"), service("api"), ONE)
    rig.state.unplannable = {WEB, API}
    elsewhere = replace(HERE, name="node2")
    rig.queue.set_node(elsewhere, external_ips=True)
    assert shown(rig.take().plans) == {}
    rig.state.unplannable.clear()
    rig.clock.advance(60)
    assert rig.queue.retry() == ([], True)
    rig.take()
    assert rig.taken[V4] == planned_anew(rig.state, V4, elsewhere)


# ---------------------------------------------------------------- whatever the order

NAMES = ("web", "api")
services: st.SearchStrategy[Object] = st.builds(
    lambda name, ips, policy, external: service(
        name, clusterIPs=ips, internalTrafficPolicy=policy, externalIPs=external
    ),
    st.sampled_from(NAMES),
    st.sampled_from([None, DUAL, ["fd00:96::1"]]),
    st.sampled_from(["Cluster", "Local"]),
    st.sampled_from([[], ["198.51.100.1"]]),
)
endpoints = st.builds(
    endpoint,
    st.integers(1, 3).map("10.244.0.{}".format),
    st.sampled_from([NODE, "node2"]),
    zones=st.sampled_from([(), (ZONE,), ("zone-b",)]),
)
slices: st.SearchStrategy[Object] = st.builds(
    slice_, st.sampled_from(["s1", "s2"]), st.lists(endpoints, max_size=3), st.sampled_from(NAMES)
)
nodes: st.SearchStrategy[Object] = st.builds(node, st.just(NODE), st.sampled_from([ZONE, "zone-b", None]))
items = st.one_of(services, slices, slices, nodes)
node_infos = st.builds(
    NodeInfo,
    st.sampled_from([NODE, "node2"]),
    st.sampled_from([ZONE, "zone-b"]),
    addresses=st.sampled_from([(), ("127.0.0.1",)]),
)


class TwoProxiers(RuleBasedStateMachine):
    """Events, lists, other nodes, faults and takes in any order: in the end each family holds the plans of `world`."""

    @initialize(first=st.lists(items, max_size=4), node_info=node_infos)
    def start(self, first: list[Object], node_info: NodeInfo) -> None:
        self.rig, self.world = Rig(*first), {deleted(item): item for item in first}
        self.node, self.external_ips = node_info, True
        self.rig.queue.set_node(node_info, self.external_ips)

    @rule(changes=st.lists(items, max_size=3), gone=st.lists(items, max_size=1))
    def add(self, changes: list[Object], gone: list[Object]) -> None:
        self.rig.queue.add([*map(changed, changes), *map(deleted, gone)])
        self.world |= {deleted(item): item for item in changes}
        for item in gone:
            self.world.pop(deleted(item), None)

    @rule(kind=st.sampled_from(Kind), gone=st.lists(items, max_size=2))
    def relist(self, kind: Kind, gone: list[Object]) -> None:
        """After a gap in which objects of this kind were deleted."""
        for item in gone:
            if deleted(item).kind is kind:
                self.world.pop(deleted(item), None)
        there = [item for item in self.world.values() if deleted(item).kind is kind]
        self.rig.queue.add([*map(changed, there), names_of(kind, there)])

    @rule(node_info=st.one_of(st.none(), node_infos), external_ips=st.booleans())
    def set_node(self, node_info: NodeInfo | None, external_ips: bool) -> None:
        self.rig.queue.set_node(node_info, external_ips)
        if node_info is None:
            assert self.rig.queue.take(V4) is None
            self.rig.queue.set_node(self.node, external_ips)
        else:
            self.node = node_info
        self.external_ips = external_ips

    @rule(family=st.sampled_from(Family))
    def take(self, family: Family) -> None:
        assert self.rig.take(family).node == self.node

    @rule(
        unusable=st.sets(st.sampled_from(["s1", "web"])),
        unplannable=st.sets(st.sampled_from([WEB, API])),
        unlistable=st.sets(st.sampled_from(Kind), max_size=1),
    )
    def break_something(self, unusable: set[str], unplannable: set[ServiceName], unlistable: set[Kind]) -> None:
        state = self.rig.state
        state.unusable, state.unplannable, state.unlistable = unusable, unplannable, unlistable

    @rule(seconds=st.sampled_from([0.1, 1.0, 40.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.rig.clock.advance(seconds)
        self.rig.queue.retry()

    @rule(family=st.sampled_from(Family))
    def make_one_proxier_anew(self, family: Family) -> None:
        self.rig.queue.start_anew(list(Family))
        self.rig.taken = {each: FamilyPlans() for each in Family}

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.break_something(set(), set(), set())
        self.let_time_pass(40.0)
        world = cluster(*self.world.values())
        for family in Family:
            self.take(family)
            assert self.rig.taken[family] == planned_anew(world, family, self.node, self.external_ips)
            assert self.rig.take(family).plans == {}
        assert self.rig.queue.retry() == ([], False)
        assert self.rig.containment.failing() == []
        assert self.rig.counts.waiting == (0, 0)


TestTwoProxiers = TwoProxiers.TestCase
TestTwoProxiers.settings = settings(max_examples=60, stateful_step_count=20)


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads take turns as often as they can, so that a missing lock shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switching")
def test_two_threads_may_take_while_a_third_adds() -> None:
    rig = ready(*(service(f"s{n}", clusterIPs=DUAL) for n in range(20)))
    done, errors = threading.Event(), []

    def proxier(family: Family) -> None:
        try:
            while not done.is_set():
                rig.take(family)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=proxier, args=(family,)) for family in Family]
    for thread in threads:
        thread.start()
    for i in range(300):
        name = f"s{i % 20}"
        v6: dict[str, Any] = {"addressType": "IPv6"} if i % 3 else {}
        ip = f"fd00::{i + 1:x}" if v6 else f"10.244.{i // 250}.{i % 250}"
        rig.add(changed(slice_(f"{name}-{bool(v6)}", [endpoint(ip)], name, **v6)))
        rig.queue.set_node(replace(HERE, addresses=(ip,)), external_ips=i % 50 != 0)
    done.set()
    for thread in threads:
        thread.join(60)
    assert errors == []
    for family in Family:
        rig.take(family)
        assert rig.taken[family] == planned_anew(rig.state, family, HERE)
