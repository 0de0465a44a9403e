"""Which flows are stale, for every way in which a flow and the Services can stand to each other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.conntrack.stale_flows import Flow, LiveFrontends
from kproxy.model.plans import Endpoint, Family, Frontend, PortKey, Protocol, ServicePlan, frontends

UDP, SCTP, TCP = Protocol.UDP, Protocol.SCTP, Protocol.TCP
CLUSTER, EXTERNAL, BALANCER, NODE = "10.96.0.10", "192.0.2.50", "203.0.113.9", "192.168.0.1"
NODE_IPS = {NODE, "127.0.0.1"}
LIVE, DEAD = ("10.244.0.5", 5353), ("10.244.0.99", 5353)
DNS = PortKey("kube-system", "dns", "dns", UDP)
Target = tuple[str, int]


def plan(key: PortKey = DNS, endpoints: tuple[Target, ...] = (LIVE,), **changes: Any) -> ServicePlan:
    reachable = tuple(Endpoint(ip, port) for ip, port in endpoints)
    fields: dict[str, Any] = {
        "cluster_ip": CLUSTER,
        "port": 53,
        "node_port": 30053,
        "external_ips": (EXTERNAL,),
        "load_balancer_ips": (BALANCER,),
        "cluster": reachable,
        "reachable": reachable,
        "has_endpoints": bool(reachable),
    }
    return ServicePlan(key=key, family=Family.IPV4, **{**fields, **changes})


def flow(to: str, port: int, answers: Target | None = None, protocol: Protocol = UDP, **changes: Any) -> Flow:
    """From a client to TO; ANSWERS is what it was translated to, None when it was not."""
    return Flow(protocol, "10.244.0.7", 4000, to, port, *(answers or (to, port)), **changes)


def is_stale(one: Flow, *plans: ServicePlan, retired: set[Frontend] | None = None) -> bool:
    live = LiveFrontends()
    live.update({p.key: p for p in plans}, [p.key for p in plans])
    return live.stale([one], retired or set(), NODE_IPS) == [one]


FRONTENDS = [
    pytest.param(CLUSTER, 53, id="cluster IP"),
    pytest.param(EXTERNAL, 53, id="external IP"),
    pytest.param(BALANCER, 53, id="load balancer IP"),
    pytest.param(NODE, 30053, id="node port"),
    pytest.param("127.0.0.1", 30053, id="node port on loopback"),
]


@pytest.mark.parametrize(("ip", "port"), FRONTENDS)
@pytest.mark.parametrize("protocol", [UDP, SCTP])
@pytest.mark.parametrize(
    ("answers", "endpoints", "stale"),
    [
        pytest.param(LIVE, (LIVE,), False, id="to a serving endpoint"),
        pytest.param(DEAD, (LIVE,), True, id="to a gone endpoint"),
        pytest.param((LIVE[0], 53), (LIVE,), True, id="to another port of an endpoint"),
        pytest.param(None, (LIVE,), True, id="not translated"),
        pytest.param(LIVE, (), True, id="without endpoints"),
        pytest.param(None, (), True, id="without endpoints, not translated"),
    ],
)
def test_a_flow_at_a_live_frontend(
    ip: str, port: int, protocol: Protocol, answers: Target | None, endpoints: tuple[Target, ...], stale: bool
) -> None:
    served = plan(PortKey("default", "a", "", protocol), endpoints)
    assert is_stale(flow(ip, port, answers, protocol), served) is stale
    other = SCTP if protocol is UDP else UDP
    assert not is_stale(flow(ip, port, answers, other), served), "another protocol is another frontend"


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(flow("192.168.0.2", 30053), id="another machine's port with the number of a node port"),
        pytest.param(flow("192.168.0.2", 30053, DEAD), id="translated by somebody else, to that port"),
        pytest.param(flow(NODE, 53), id="the node's own DNS server"),
        pytest.param(flow(NODE, 30054, DEAD), id="a host port that is no node port"),
        pytest.param(flow(CLUSTER, 54, DEAD), id="another port of the cluster IP"),
        pytest.param(flow(CLUSTER, 30053, DEAD), id="the node port's number at the cluster IP"),
        pytest.param(flow("10.244.0.5", 5353), id="straight to an endpoint"),
        pytest.param(flow("8.8.8.8", 53), id="elsewhere"),
    ],
)
def test_unrelated_flows_are_never_touched(one: Flow) -> None:
    assert not is_stale(one, plan())
    assert not is_stale(one, plan(endpoints=()))


class TestAtARetiredFrontend:
    @pytest.mark.parametrize(("ip", "port"), FRONTENDS)
    def test_what_was_translated_goes_whoever_answers(self, ip: str, port: int) -> None:
        retired = set(frontends(plan()))
        assert is_stale(flow(ip, port, LIVE), retired=retired)
        assert is_stale(flow(ip, port, DEAD), retired=retired)

    @pytest.mark.parametrize(("ip", "port"), FRONTENDS)
    def test_what_was_not_translated_lives(self, ip: str, port: int) -> None:
        assert not is_stale(flow(ip, port), retired=set(frontends(plan())))

    def test_a_node_port_is_one_only_on_this_node(self) -> None:
        assert not is_stale(flow("192.168.0.2", 30053, DEAD), retired={Frontend("", 30053, UDP)})

    def test_it_may_be_another_services_by_now(self) -> None:
        other = plan(PortKey("default", "other", "", UDP), cluster_ip="10.96.0.77")
        assert not is_stale(flow(EXTERNAL, 53, LIVE), other, retired={Frontend(EXTERNAL, 53, UDP)})
        assert is_stale(flow(EXTERNAL, 53, DEAD), other, retired={Frontend(EXTERNAL, 53, UDP)})


class TestZones:
    """A virtual switch tracks each connection in a zone of its own, in which nothing is translated."""

    def test_an_untranslated_flow_in_a_zone_is_the_switchs(self) -> None:
        assert not is_stale(flow(CLUSTER, 53, None, zone=7), plan())

    def test_a_translated_one_is_ours(self) -> None:
        assert is_stale(flow(CLUSTER, 53, DEAD, zone=7), plan())
        assert not is_stale(flow(CLUSTER, 53, LIVE, zone=7), plan())


class TestServicesThatShare:
    def test_both_services_endpoints_may_carry_a_flow_to_a_shared_external_ip(self) -> None:
        one = plan(PortKey("default", "one", "", UDP), (LIVE,), cluster_ip="10.96.0.1", node_port=0)
        two = plan(PortKey("default", "two", "", UDP), (DEAD,), cluster_ip="10.96.0.2", node_port=0)
        assert not is_stale(flow(EXTERNAL, 53, LIVE), one, two)
        assert not is_stale(flow(EXTERNAL, 53, DEAD), one, two)
        assert is_stale(flow("10.96.0.1", 53, DEAD), one, two)

    def test_an_external_ip_that_is_the_nodes_own_goes_before_a_node_port(self) -> None:
        by_node_port = plan(PortKey("default", "one", "", UDP), (DEAD,))
        by_ip = plan(PortKey("default", "two", "", UDP), (LIVE,), port=30053, external_ips=(NODE,), node_port=0)
        assert is_stale(flow(NODE, 30053, DEAD), by_node_port, by_ip)
        assert not is_stale(flow(NODE, 30053, LIVE), by_node_port, by_ip)
        assert not is_stale(flow("127.0.0.1", 30053, DEAD), by_node_port, by_ip)

    def test_when_one_of_them_goes_the_frontend_is_not_retired(self) -> None:
        live = LiveFrontends()
        one, two = (plan(PortKey("default", n, "", UDP), cluster_ip=f"10.96.0.{i}") for i, n in ((1, "a"), (2, "b")))
        live.update({one.key: one, two.key: two}, [one.key, two.key])
        assert live.update({two.key: two}, [one.key]) == (True, {Frontend("10.96.0.1", 53, UDP)}, {})


class TestWhatRetires:
    def test_every_frontend_of_a_deleted_service(self) -> None:
        live = LiveFrontends()
        live.put(DNS, plan())
        assert live.put(DNS, None) == (True, frozenset(frontends(plan())))
        assert not live.keys()
        assert live.put(DNS, None) == (False, frozenset())

    @pytest.mark.parametrize(
        ("changes", "retired"),
        [
            ({"node_port": 0}, {Frontend("", 30053, UDP)}),
            ({"node_port": 30054}, {Frontend("", 30053, UDP)}),
            ({"external_ips": ()}, {Frontend(EXTERNAL, 53, UDP)}),
            ({"load_balancer_ips": ("203.0.113.10",)}, {Frontend(BALANCER, 53, UDP)}),
            ({"port": 54}, {Frontend(ip, 53, UDP) for ip in (CLUSTER, EXTERNAL, BALANCER)}),
            ({"endpoints": ()}, set()),
        ],
    )
    def test_only_what_a_service_lost(self, changes: dict[str, Any], retired: set[Frontend]) -> None:
        live = LiveFrontends()
        live.put(DNS, plan())
        assert live.put(DNS, plan(**changes)) == (True, frozenset(retired))

    def test_a_plan_that_differs_in_nothing_that_flows_see_is_no_change(self) -> None:
        live = LiveFrontends()
        live.put(DNS, plan())
        assert live.put(DNS, plan(affinity_seconds=60, source_ranges=("10.0.0.0/8",))) == (False, frozenset())

    def test_tcp_is_none_of_our_business(self) -> None:
        live, key = LiveFrontends(), PortKey("default", "web", "", TCP)
        assert live.put(key, plan(key)) == (False, frozenset())
        assert not live.keys()

    def test_an_address_that_moves_between_two_services_at_once(self) -> None:
        live, a, b = LiveFrontends(), PortKey("default", "a", "", UDP), PortKey("default", "b", "", UDP)
        before = {a: plan(a, cluster_ip="10.96.0.1"), b: plan(b, cluster_ip="10.96.0.2", external_ips=())}
        after = {a: plan(a, cluster_ip="10.96.0.1", external_ips=()), b: plan(b, cluster_ip="10.96.0.2")}
        live.update(before, [a, b])
        assert live.update(after, [a, b]) == (True, set(), {})
        assert live.update(before, [b, a]) == (True, set(), {})


# ---- however the state was reached, it decides alike

PORTS = [PortKey("default", name, "", protocol) for name in "abc" for protocol in (UDP, TCP)]
ENDPOINTS = [("10.244.0.1", 1), ("10.244.0.2", 2), ("10.244.0.3", 1)]
STATES = st.dictionaries(
    st.sampled_from(PORTS),
    st.tuples(
        st.sets(st.sampled_from(ENDPOINTS)),
        st.sets(st.sampled_from([EXTERNAL, NODE])),
        st.sampled_from([0, 53, 30053]),
    ),
)
FLOWS = st.builds(
    lambda to, port, answers: flow(to, port, answers),
    st.sampled_from([*(f"10.96.0.{ord(n)}" for n in "abc"), EXTERNAL, NODE, "192.168.0.2"]),
    st.sampled_from([53, 30053]),
    st.sampled_from([None, *ENDPOINTS]),
)


def plans_of(state: dict[PortKey, Any]) -> dict[PortKey, ServicePlan]:
    return {
        key: plan(
            key,
            tuple(sorted(endpoints)),
            cluster_ip=f"10.96.0.{ord(key.name)}",
            external_ips=tuple(sorted(external)),
            load_balancer_ips=(),
            node_port=node_port,
        )
        for key, (endpoints, external, node_port) in state.items()
    }


@given(st.lists(STATES, min_size=1, max_size=5), st.lists(FLOWS, max_size=10))
def test_step_by_step_or_at_once_the_same_flows_are_stale(steps: list[dict[PortKey, Any]], flows: list[Flow]) -> None:
    gradual, at_once = LiveFrontends(), LiveFrontends()
    before: dict[PortKey, ServicePlan] = {}
    for state in steps:
        wanted = plans_of(state)
        touched = {key for key in {*before, *wanted} if before.get(key) != wanted.get(key)}
        retired = gradual.update(wanted, touched).retired
        assert retired == {f for p in before.values() if p.protocol is UDP for f in frontends(p)} - {
            f for p in wanted.values() for f in frontends(p)
        }
        before = wanted
    at_once.update(before, before)
    assert gradual.stale(flows, set(), NODE_IPS) == at_once.stale(flows, set(), NODE_IPS)


@given(STATES, st.lists(FLOWS, max_size=10), st.sets(st.sampled_from([Frontend("", 30053, UDP)])))
def test_no_flow_to_an_endpoint_of_its_frontend_ever_goes(
    state: dict[PortKey, Any], flows: list[Flow], retired: set[Frontend]
) -> None:
    live = LiveFrontends()
    live.update(plans_of(state), plans_of(state))
    for one in live.stale(flows, retired, NODE_IPS):
        assert one.destination != "192.168.0.2"
        for key, (endpoints, _, _) in state.items():
            if key.protocol is UDP and one.destination == f"10.96.0.{ord(key.name)}" and one.destination_port == 53:
                assert (one.reply_source, one.reply_port) not in endpoints
