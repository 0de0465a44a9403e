"""userspace mode's Dataplane: listeners before rules, rules before what listens in vain, and trouble with either."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from msgspec.structs import replace

from kproxy.errors import KernelError
from kproxy.model.plans import Endpoint, Family, PortKey, Protocol, ServicePlan
from kproxy.modes.userspace import apply
from kproxy.modes.userspace.apply import UserspaceDataplane, carried
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Reach
from kproxy.modes.userspace.render import Settings, listeners
from kproxy.modes.xtables.chain_writer import NoDrift
from tests.fakes.forwarder import FakeForwarder
from tests.fakes.iptables import FakeTables
from tests.plans import build_plan, by_key
from tests.userspace.portal_plans import BY_CIDR, NODE

V4, V6 = Family.IPV4, Family.IPV6


class Node:
    """A dataplane and what it works on. log: what happened, in order, as "listen", "close" and "rules"."""

    def __init__(self) -> None:
        self.tables, self.forwarder = FakeTables(), FakeForwarder()
        self.dataplane = UserspaceDataplane(BY_CIDR, self.tables, self.forwarder)

    def port(self, plan: ServicePlan, reach: Reach = Reach.CLUSTER) -> int | None:
        return self.forwarder.ports.get((V4, ListenerKey(plan.key, reach)))

    def leads_to(self, plan: ServicePlan) -> set[int]:
        """The proxy ports that rules of the plan lead to, those of its chains left out."""
        lines = [line for line in self.tables.save().splitlines() if f"{plan.key} " in line or f'{plan.key}"' in line]
        return {int(line.rpartition(" ")[2]) for line in lines if "--to-ports" in line}


@pytest.fixture
def node() -> Node:
    return Node()


def asked(node: Node) -> Collection[ListenerKey]:
    """What the last update of the forwarder was about."""
    return node.forwarder.updates[-1][1]


WEB = build_plan("web", node_port=30080)
LOCAL = build_plan("web", node_port=30080, external_local=True, local=(1,))
DNS = build_plan("dns", Protocol.UDP)


# ---------------------------------------------------------------- as it should be


def test_each_port_is_listened_for_and_led_to(node: Node) -> None:
    outcome = node.dataplane.apply(by_key(WEB, DNS), None)
    assert outcome.rejected == {}
    for plan in (WEB, DNS):
        assert node.leads_to(plan) == {node.port(plan)}
        assert node.forwarder.listeners[V4, ListenerKey(plan.key, Reach.CLUSTER)] == Listener(V4, plan.cluster)
    assert outcome.rules_total["nat"] > 4
    assert node.dataplane.apply(by_key(WEB, DNS), None).transactions == 0


def test_a_change_of_endpoints_alone_reaches_the_forwarder_alone(node: Node) -> None:
    node.dataplane.apply(by_key(WEB, DNS), None)
    writes, reads = len(node.tables.restores), node.tables.saves
    more = build_plan("web", node_port=30080, cluster=(1, 2, 3))
    outcome = node.dataplane.apply(by_key(more, DNS), [more.key])
    assert (len(node.tables.restores), node.tables.saves, outcome.transactions) == (writes, reads, 0)
    assert node.forwarder.listeners[V4, ListenerKey(WEB.key, Reach.CLUSTER)].endpoints == more.cluster
    assert set(asked(node)) == {ListenerKey(WEB.key, Reach.CLUSTER)}, "only what changed is told"
    updates = len(node.forwarder.updates)
    node.dataplane.apply(by_key(more, DNS), [more.key])
    assert len(node.forwarder.updates) == updates, "what did not change is not told at all"


def test_what_nothing_leads_to_any_more_is_closed_after_the_rules(node: Node) -> None:
    node.dataplane.apply(by_key(LOCAL, DNS), None)
    node.tables.fail_at = {len(node.tables.restores) + 1}
    with pytest.raises(KernelError):
        node.dataplane.apply(by_key(WEB), [WEB.key, DNS.key])
    assert node.port(DNS), "its rules are still there"
    assert node.port(LOCAL, Reach.LOCAL)
    node.dataplane.apply(by_key(WEB), None)
    assert set(node.forwarder.ports) == {(V4, ListenerKey(WEB.key, Reach.CLUSTER))}
    assert node.leads_to(DNS) == set()


def test_other_settings_rewrite_the_rules_and_leave_the_listeners(node: Node) -> None:
    node.dataplane.apply(by_key(WEB), None)
    before, updates = node.port(WEB), len(node.forwarder.updates)
    node.dataplane.configure(BY_CIDR)
    assert node.dataplane.apply(by_key(WEB), []).transactions == 0
    node.dataplane.configure(Settings(V4, "172.30.0.99", localhost_node_ports=False))
    node.dataplane.apply(by_key(WEB), [])
    saved = node.tables.save()
    assert f"--to-destination 172.30.0.99:{before}" in saved
    assert f"{NODE}:" not in saved
    assert saved.count("-j KUBE-NODEPORT-HOST") == 1, "the jump that does not hold any more is gone"
    assert len(node.forwarder.updates) == updates


# ---------------------------------------------------------------- what cannot be had


def test_a_listener_that_cannot_be_had_refuses_its_port_alone(node: Node) -> None:
    key = ListenerKey(WEB.key, Reach.CLUSTER)
    node.forwarder.refuse(V4, key)
    outcome = node.dataplane.apply(by_key(WEB, DNS), None)
    assert set(outcome.rejected) == {WEB.key}
    assert outcome.rejected[WEB.key] == "default/web:http: no listener for policy cluster: no port is free"
    assert node.leads_to(WEB) == set()
    assert "default/web:http has no endpoints" in node.tables.save()
    assert node.leads_to(DNS) == {node.port(DNS)}
    assert set(node.dataplane.apply(by_key(WEB, DNS), [DNS.key]).rejected) == {WEB.key}, "still refused, and said so"
    node.forwarder.permit(V4, key)
    assert node.dataplane.apply(by_key(WEB, DNS), []).rejected == {}
    assert node.leads_to(WEB) == {node.port(WEB)}


def test_a_port_goes_on_by_the_listener_that_it_has(node: Node) -> None:
    node.dataplane.apply(by_key(WEB), None)
    before = node.port(WEB)
    node.forwarder.refuse(V4, ListenerKey(WEB.key, Reach.LOCAL))
    assert set(node.dataplane.apply(by_key(LOCAL), [LOCAL.key]).rejected) == {LOCAL.key}
    assert node.leads_to(LOCAL) == {before} == {node.port(LOCAL)}


def test_sctp_is_refused_in_one_line(node: Node) -> None:
    sctp = build_plan("assoc", Protocol.SCTP, node_port=30090)
    outcome = node.dataplane.apply(by_key(WEB, sctp), None)
    assert outcome.rejected == {
        sctp.key: "default/assoc:http: SCTP is not forwarded in userspace mode; its clients are refused"
    }
    assert node.leads_to(WEB) == {node.port(WEB)}
    assert node.dataplane.apply(by_key(WEB, sctp), [WEB.key]).rejected.keys() == {sctp.key}
    assert node.dataplane.apply(by_key(WEB), [sctp.key]).rejected == {}


def test_rules_that_the_kernel_refuses_keep_the_listeners_of_the_old_ones(node: Node) -> None:
    node.dataplane.apply(by_key(LOCAL, DNS), None)
    before = node.leads_to(LOCAL)
    node.tables.refuse = lambda table, chain, rule: chain == "KUBE-NODEPORT-CONTAINER" and "REDIRECT" in rule
    outcome = node.dataplane.apply(by_key(WEB, DNS), [WEB.key])
    assert set(outcome.rejected) == {WEB.key}
    assert node.leads_to(LOCAL) == before
    assert before <= set(node.forwarder.ports.values())
    assert node.port(WEB, Reach.LOCAL), "rules still lead there"
    node.tables.refuse = lambda table, chain, rule: False
    assert node.dataplane.apply(by_key(WEB, DNS), None).rejected == {}
    assert node.port(WEB, Reach.LOCAL) is None


def test_an_exception_for_one_port_costs_that_port_alone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port keeps what it had; the others are served, those that are new included."""

    def broken(plan: ServicePlan) -> dict[Reach, Listener]:
        if plan.key == WEB.key:
            raise ZeroDivisionError("division by zero")
        return listeners(plan)

    node.dataplane.apply(by_key(WEB), None)
    before = node.port(WEB)
    monkeypatch.setattr(apply, "listeners", broken)
    for touched in ([LOCAL.key, DNS.key], None, []):
        outcome = node.dataplane.apply(by_key(LOCAL, DNS), touched)
        assert outcome.rejected == {WEB.key: "default/web:http: unexpected ZeroDivisionError: division by zero"}
        assert [type(error) for error in outcome.faults.values()] == [ZeroDivisionError]
        assert node.leads_to(WEB) == {before} == {node.port(WEB)}
        assert node.leads_to(DNS) == {node.port(DNS)}
    node.forwarder.die()
    node.dataplane.apply(by_key(LOCAL, DNS), None)
    assert node.leads_to(WEB) == set(), "its proxy ports may be others' by now"
    assert node.leads_to(DNS) == {node.port(DNS)}
    monkeypatch.undo()
    outcome = node.dataplane.apply(by_key(LOCAL, DNS), [])
    assert (outcome.rejected, outcome.faults) == ({}, {})
    assert node.leads_to(LOCAL)


def test_a_busy_forwarder_costs_only_the_ports_whose_listeners_change(node: Node) -> None:
    node.dataplane.apply(by_key(LOCAL, DNS), None)
    ports = dict(node.forwarder.ports)
    node.forwarder.busy = True
    new, moved = build_plan("new"), replace(DNS, cluster_ip="10.96.0.77")
    outcome = node.dataplane.apply(by_key(WEB, moved, new), [WEB.key, DNS.key, new.key])
    assert set(outcome.rejected) == {new.key}, "others need no other listener, or less"
    assert "10.96.0.77" in node.tables.save()
    assert node.forwarder.ports == ports
    assert node.dataplane.housekeeping(), "a listener is to be closed"
    assert not node.dataplane.drifted()
    node.forwarder.busy = False
    assert node.dataplane.housekeeping() is None
    assert node.port(WEB, Reach.LOCAL) is None
    assert node.dataplane.apply(by_key(WEB, moved, new), []).rejected == {}
    assert node.leads_to(new) == {node.port(new)}


def test_a_listener_that_is_wanted_again_before_a_busy_forwarder_closed_it_stays(node: Node) -> None:
    node.dataplane.apply(by_key(LOCAL), None)
    ports = dict(node.forwarder.ports)
    node.forwarder.busy = True
    node.dataplane.apply(by_key(WEB), [WEB.key])
    assert node.dataplane.apply(by_key(LOCAL), [LOCAL.key]).rejected == {}
    node.forwarder.busy = False
    assert node.dataplane.housekeeping() is None
    assert node.forwarder.ports == ports


# ---------------------------------------------------------------- the forwarder's end


def test_a_forwarder_that_ended_is_drift_and_is_replaced_by_the_next_apply(node: Node) -> None:
    node.dataplane.apply(by_key(WEB, DNS), None)
    before = {plan.key: node.port(plan) for plan in (WEB, DNS)}
    assert not node.dataplane.drifted()
    node.forwarder.die()
    assert node.dataplane.drifted()
    assert node.dataplane.apply(by_key(WEB, DNS), None).rejected == {}
    assert not node.dataplane.drifted()
    for plan in (WEB, DNS):
        assert node.port(plan) not in (None, before[plan.key])
        assert node.leads_to(plan) == {node.port(plan)}


class Suspicion(NoDrift):
    """Cannot tell whether others changed the tables, and so makes every full apply read them."""

    def changed(self) -> bool:
        return True


def test_rules_that_follow_the_listeners_are_no_repair_of_what_others_did(node: Node) -> None:
    dataplane = UserspaceDataplane(BY_CIDR, node.tables, node.forwarder, Suspicion())
    dataplane.apply(by_key(WEB), None)
    node.forwarder.die()
    outcome = dataplane.apply(by_key(WEB), None)
    assert (outcome.transactions > 0, outcome.repaired) == (True, False)
    node.tables.flush("nat")
    assert dataplane.apply(by_key(WEB), None).repaired


def test_ports_that_moved_in_a_small_change_call_for_a_look_at_everything(node: Node) -> None:
    node.dataplane.apply(by_key(WEB, DNS), None)
    node.forwarder.die()
    node.dataplane.apply(by_key(WEB, DNS), [WEB.key])
    assert node.leads_to(DNS) == {node.port(DNS)}
    assert node.dataplane.drifted(), "those who follow flows know only of the port that was touched"
    node.dataplane.apply(by_key(WEB, DNS), [])
    assert node.dataplane.drifted()
    node.dataplane.apply(by_key(WEB, DNS), None)
    assert not node.dataplane.drifted()


def test_a_forwarder_that_cannot_be_had_is_an_error(node: Node) -> None:
    node.dataplane.apply(by_key(WEB), None)
    node.forwarder.close()
    with pytest.raises(KernelError, match="closed"):
        node.dataplane.apply(by_key(WEB), [])


def test_a_forwarder_that_ends_while_nothing_changes_is_noticed_by_the_other_family_too(node: Node) -> None:
    six = Endpoint("fd00:244::1", 8080)
    other = ServicePlan(
        key=PortKey("default", "six", "", Protocol.TCP), family=V6, cluster_ip="fd00:96::1", port=80,
        cluster=(six,), reachable=(six,), has_endpoints=True,
    )  # fmt: skip
    second = UserspaceDataplane(Settings(V6, "fd00:30::11"), FakeTables(V6), node.forwarder)
    node.dataplane.apply(by_key(WEB), None)
    second.apply(by_key(other), None)
    node.forwarder.die()
    second.apply(by_key(other), [])
    assert node.dataplane.drifted()
    assert second.drifted(), "its own ports have moved"
    second.apply(by_key(other), None)
    assert not second.drifted(), "that the other family was not told yet is none of its business"
    node.dataplane.apply(by_key(WEB), [])
    assert set(node.forwarder.ports) == {
        (V4, ListenerKey(WEB.key, Reach.CLUSTER)),
        (V6, ListenerKey(other.key, Reach.CLUSTER)),
    }


# ---------------------------------------------------------------- flows


def test_flows_are_answered_by_this_host_at_the_proxy_ports(node: Node) -> None:
    leaving = replace(DNS, still_serving=(Endpoint("10.244.1.9", 53),))
    node.dataplane.apply(by_key(LOCAL, leaving), None)
    own = (NODE, "10.244.1.1")
    seen = node.dataplane.carriers(by_key(LOCAL, leaving), own)
    assert seen.keys() == {LOCAL.key, DNS.key}
    ports = [node.port(LOCAL), node.port(LOCAL, Reach.LOCAL)]
    answering = {(e.ip, e.port) for e in seen[LOCAL.key].reachable}
    assert answering == {(ip, p) for ip in own for p in ports} | {(e.ip, e.port) for e in LOCAL.reachable}
    proxied = tuple(Endpoint(ip, node.port(DNS) or 0, True) for ip in own)
    assert seen[DNS.key] == replace(leaving, reachable=(*DNS.reachable, *proxied))
    assert (len(seen), seen.get(WEB.key._replace(name="none"))) == (2, None)


def test_a_plan_that_nothing_listens_for_is_answered_by_its_endpoints_alone() -> None:
    assert carried(DNS, (), [NODE]).reachable == DNS.reachable
    assert carried(WEB, (40000,), [NODE]).node_port == 30080, "what leads to it stays"
