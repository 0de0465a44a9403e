"""Whatever the order of events, repeats and relists: the plans end as if the final cluster had been planned at once."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Kind, Object
from kproxy.model.plan_store import checks_by_port, health_checks
from kproxy.model.planner import plan_service
from kproxy.model.plans import PortKey, ServicePlan
from kproxy.model.state import ClusterState, ServiceName
from tests.fakes.plans import BothFamilies
from tests.model.builders import (
    DUAL,
    KINDS,
    NODE,
    ZONE,
    changed,
    deleted,
    endpoint,
    in_pages,
    listed,
    node,
    service,
    slice_,
)

Key = tuple[Kind, str, str]

NAMES = ("web", "api")
NAMESPACES = ("default", "prod")
# Health check node ports are unique in a cluster: the API server allocates them.
CHECKS = {(ns, name): 32000 + i for i, (ns, name) in enumerate((ns, n) for ns in NAMESPACES for n in NAMES)}


@st.composite
def services(draw: st.DrawFn) -> Object:
    name, namespace = draw(st.sampled_from(NAMES)), draw(st.sampled_from(NAMESPACES))
    pool: list[dict[str, Any]] = [
        {"name": "http", "port": 80, "nodePort": 30080},
        {"name": "http", "port": 80, "protocol": "UDP"},
        {"name": "alt", "port": 81},
        {"name": "bad", "port": 70000},
    ]
    policy = st.sampled_from([None, "Cluster", "Local"])
    return service(
        name,
        namespace,
        type=draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])),
        clusterIP=draw(st.sampled_from(["10.96.0.1", "10.96.0.1", "10.96.0.1", "None"])),
        clusterIPs=draw(st.sampled_from([None, DUAL])),
        ports=draw(st.lists(st.sampled_from(pool), max_size=3)),
        internalTrafficPolicy=draw(policy),
        externalTrafficPolicy=draw(policy),
        healthCheckNodePort=CHECKS[namespace, name],
    )


endpoints = st.builds(
    endpoint,
    st.integers(1, 5).map(lambda n: f"10.244.0.{n}"),
    st.sampled_from([NODE, "node2", None]),
    st.sampled_from([None, "ready", "draining", "dead"]),
    zones=st.sampled_from([(), (ZONE,), ("zone-b",)]),
    nodes=st.sampled_from([(), (), (NODE,)]),
)
slices: st.SearchStrategy[Object] = st.builds(
    slice_,
    st.sampled_from(["s1", "s2", "s3"]),
    st.lists(endpoints, max_size=4),
    st.sampled_from([*NAMES, "nobody", None]),
    namespace=st.sampled_from(NAMESPACES),
    ports=st.sampled_from(
        [None, [{"name": "http", "port": 8080}], [{"name": "http", "port": 8080}, {"name": "alt", "port": 8081}]]
    ),
    addressType=st.sampled_from(["IPv4", "IPv4", "IPv4", "FQDN"]),
)
v6_slices: st.SearchStrategy[Object] = st.builds(
    slice_,
    st.just("six"),
    st.lists(st.builds(endpoint, st.sampled_from(["fd00::1", "fd00::2"])), max_size=2),
    st.sampled_from(NAMES),
    namespace=st.sampled_from(NAMESPACES),
    addressType=st.just("IPv6"),
)
nodes: st.SearchStrategy[Object] = st.builds(
    node, st.sampled_from([NODE, NODE, "node2"]), st.sampled_from([ZONE, "zone-b", None])
)
anything = st.one_of(services(), slices, slices, v6_slices, nodes)


def key_of(item: Object) -> Key:
    return KINDS[type(item)], item.metadata.namespace or "default", item.metadata.name


def here(state: ClusterState) -> NodeInfo:
    return NodeInfo(NODE, state.node.zone if state.node else "", ("172.18.0.2",))


def checks(both: BothFamilies) -> dict[int, tuple[ServiceName, int]]:
    found = checks_by_port({family: health_checks(plans) for family, plans in both.families.items()})
    return {port: (check.service, check.endpoints) for port, check in found.items()}


class Following(RuleBasedStateMachine):
    """`world` is what exists; the state gets events of it, and is planned now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.world: dict[Key, Object] = {}
        self.state = ClusterState(NODE)
        self.both = BothFamilies()
        self.planned = True

    def apply(self, event: Any) -> None:
        self.state.apply(event)
        self.planned = False

    @initialize(items=st.lists(anything, max_size=6))
    def start(self, items: list[Object]) -> None:
        self.world = {key_of(item): item for item in items}
        for kind in Kind:
            self.relist(kind, (), ())

    @rule(item=anything)
    def change(self, item: Object) -> None:
        self.world[key_of(item)] = item
        self.apply(changed(item))

    @precondition(lambda self: self.world)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        item = self.world.pop(data.draw(st.sampled_from(sorted(self.world))))
        self.apply(deleted(item))

    @precondition(lambda self: self.world)
    @rule(data=st.data())
    def repeat_a_change(self, data: st.DataObject) -> None:
        self.apply(changed(self.world[data.draw(st.sampled_from(sorted(self.world)))]))

    @rule(item=anything)
    def repeat_a_deletion(self, item: Object) -> None:
        if key_of(item) not in self.world:
            self.apply(deleted(item))

    @rule(
        kind=st.sampled_from(Kind),
        missed=st.lists(anything, max_size=3),
        gone=st.lists(anything, max_size=2),
        size=st.integers(1, 4),
    )
    def relist(self, kind: Kind, missed: Any, gone: Any, size: int = 100) -> None:
        """A list after a gap, in which objects of its kind changed and went without an event."""
        for item in missed:
            if key_of(item)[0] is kind:
                self.world[key_of(item)] = item
        for item in gone:
            if key_of(item)[0] is kind:
                self.world.pop(key_of(item), None)
        # Newest first, so that the order differs from that of the changes.
        for event in in_pages(kind, [item for key, item in reversed(self.world.items()) if key[0] is kind], size):
            self.apply(event)

    @rule()
    def plan(self) -> None:
        before = {family: dict(plans.plans) for family, plans in self.both.families.items()}
        changes = self.both.update(self.state, here(self.state))
        self.planned = True
        for family, plans in self.both.families.items():
            assert changes[family] == differences(before[family], plans.plans)

    @invariant()
    def plans_are_those_of_the_world(self) -> None:
        if not self.planned:
            return
        fresh = ClusterState(NODE)
        for kind in Kind:
            fresh.apply(listed(kind, *(item for key, item in self.world.items() if key[0] is kind)))
        assert fresh.node == self.state.node
        at_once = BothFamilies()
        at_once.update(fresh, here(fresh), everything=True)
        assert self.both.families == at_once.families
        assert checks(self.both) == checks(at_once)
        everything = [p for name in self.state.names() for p in plan_service(self.state, name, here(self.state))]
        assert {(p.family, p.key): p for p in everything} == {
            (family, key): plan for family, plans in self.both.families.items() for key, plan in plans.plans.items()
        }
        assert {(p.family, p.key): p for p in self.both.store.plans()} == {(p.family, p.key): p for p in everything}

    @invariant()
    def pending_counts_are_zero_when_nothing_is_dirty(self) -> None:
        assert not self.planned or self.state.pending == (0, 0)

    def teardown(self) -> None:
        self.plan()
        self.plans_are_those_of_the_world()


def differences(
    before: dict[PortKey, ServicePlan], after: dict[PortKey, ServicePlan]
) -> dict[PortKey, tuple[ServicePlan | None, ServicePlan | None]]:
    keys = {*before, *after}
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


TestFollowing = Following.TestCase
TestFollowing.settings = settings(max_examples=60, stateful_step_count=25)
