"""What is ours is read from the kernel; what belongs to other programs is not touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from kproxy.kernel.ipset import Change
from kproxy.kernel.ipvs_codec import Operation, RealState, Verb
from kproxy.kernel.virtual_servers import RealServer, ServerKey, VirtualServer
from kproxy.model.plans import Family, Frontend, Protocol
from tests.ipvs_mode.rigs import SETTINGS, Rig, real, server
from tests.plans import NODE_IP, Plans, build_plan, by_key

WEB = build_plan(
    node_port=30080, external_ips=("198.51.100.7",), load_balancer_ips=("203.0.113.5",), source_ranges=("10.0.0.0/8",)
)
DNS = build_plan("dns", Protocol.UDP, port=53, node_port=30053)
SCTP = build_plan("sig", Protocol.SCTP, port=2905, node_port=30029)
PLANS = by_key(WEB, DNS, SCTP)


def add(rig: Rig, key: ServerKey) -> None:
    rig.ipvs.edit(Operation(Verb.ADD_SERVER, VirtualServer(key, "rr")))
    rig.ipvs.edit(Operation(Verb.ADD_REAL, VirtualServer(key, "rr"), RealServer(real(9))))


def test_after_a_restart_nothing_is_written() -> None:
    rig = Rig()
    rig.apply(PLANS)
    rig.restarted()
    written = rig.written()
    outcome = rig.apply(PLANS)
    assert rig.written() == written
    assert (outcome.transactions, outcome.repaired, outcome.abandoned) == (0, False, ())


def test_after_a_restart_objects_of_deleted_services_are_removed() -> None:
    rig = Rig()
    rig.apply(PLANS)
    rig.restarted()
    outcome = rig.apply({})
    rig.assert_holds({})
    gone = {*((ip, 53, Protocol.UDP) for ip in (DNS.cluster_ip,)), (SCTP.cluster_ip, 2905, Protocol.SCTP)}
    nodes = {
        (ip, port, protocol)
        for ip in SETTINGS.node_port_ips
        for port, protocol in ((30053, DNS.protocol), (30029, SCTP.protocol))
    }
    assert set(outcome.abandoned) == {Frontend(*each) for each in gone | nodes}, "TCP clients notice by themselves"


def test_abandoned_frontends_are_reported_even_if_the_check_that_found_them_failed() -> None:
    rig = Rig()
    rig.apply(PLANS)
    rig.restarted()
    rig.sets.fail_at = {rig.sets.applies + 1}
    with pytest.raises(Exception, match="change sets"):
        rig.apply({})
    assert Frontend(DNS.cluster_ip, 53, Protocol.UDP) in rig.apply({}).abandoned


def test_a_wanted_server_is_adopted_whoever_made_it() -> None:
    rig = Rig()
    add(rig, server(WEB))
    rig.apply(by_key(WEB))
    assert rig.reals(server(WEB)) == {real(1): 1, real(2): 1, real(9): 0}


STAY = {
    "an address that is nobody's": ServerKey(Protocol.TCP, "192.0.2.1", 80),
    "the node's address and a port that is no node port": ServerKey(Protocol.TCP, NODE_IP, 8443),
    "the node's address and a node port of another protocol": ServerKey(Protocol.UDP, NODE_IP, 30080),
    "another address and a node port": ServerKey(Protocol.TCP, "192.0.2.1", 30080),
}


@pytest.mark.parametrize("key", STAY.values(), ids=STAY)
def test_others_servers_stay(key: ServerKey) -> None:
    rig = Rig()
    rig.apply(PLANS)
    add(rig, key)
    before = rig.servers()[key]
    rig.apply(PLANS)
    rig.restarted()
    rig.apply(PLANS)
    rig.apply({})
    assert rig.servers()[key] == before
    rig.assert_holds({}, foreign=[key])


GO = {
    "another port of a cluster IP": (WEB.cluster_ip, 81),
    "another port of an external IP": ("198.51.100.7", 81),
    "another port of a load balancer's IP": ("203.0.113.5", 81),
}


# By each of these alone a daemon that starts can tell what is ours.
LEFT: dict[str, Callable[[Rig], None]] = {
    "everything": lambda rig: None,
    "the sets": lambda rig: rig.addresses.flush(),
    "the addresses": lambda rig: rig.sets.flush(),
}


@pytest.mark.parametrize(("address", "port"), GO.values(), ids=GO)
@pytest.mark.parametrize("lose", LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("plans", [PLANS, {}], ids=["wanted", "unwanted"])
def test_stray_servers_at_our_addresses_are_deleted(
    address: str, port: int, lose: Callable[[Rig], None], plans: Plans
) -> None:
    rig = Rig()
    rig.apply(PLANS)
    add(rig, ServerKey(Protocol.TCP, address, port))
    lose(rig)
    rig.restarted()
    rig.apply(plans)
    assert ServerKey(Protocol.TCP, address, port) not in rig.servers()
    written = rig.written()
    rig.apply(plans)
    assert rig.written() == written


def test_servers_at_wanted_addresses_are_ours_even_without_sets_and_addresses() -> None:
    rig = Rig()
    rig.apply(PLANS)
    stray = ServerKey(Protocol.TCP, WEB.cluster_ip, 81)
    add(rig, stray)
    rig.addresses.flush()
    rig.sets.flush()
    rig.restarted()
    rig.apply(PLANS)
    rig.assert_holds(PLANS)


def test_a_server_at_an_address_of_the_node_is_found_after_a_restart() -> None:
    rig = Rig()
    own = build_plan(external_ips=(NODE_IP,))
    rig.apply(by_key(own))
    assert NODE_IP not in rig.addresses.held(Family.IPV4)
    rig.restarted()
    rig.apply({})
    rig.assert_holds({})


def test_node_ports_at_an_address_that_the_node_lost_are_deleted() -> None:
    rig = Rig()
    rig.apply(PLANS)
    rig.settings = replace(SETTINGS, node_addresses=frozenset({NODE_IP}), node_port_ips=(NODE_IP,))
    rig.dataplane.configure(rig.settings)
    rig.apply(PLANS, ())
    rig.assert_holds(PLANS)


class TestExcludedCidrs:
    SETTINGS = replace(SETTINGS, exclude_cidrs=("198.51.100.0/24", "fd00::/8"))

    @pytest.mark.parametrize("full", [True, False])
    def test_a_server_in_one_stays_as_it_is_when_nobody_needs_it(self, full: bool) -> None:
        rig = Rig(self.SETTINGS)
        rig.apply(PLANS)
        key = server(WEB, "198.51.100.7")
        before = rig.servers()[key]
        rig.apply({}, None if full else PLANS.keys())
        assert rig.servers()[key] == before
        assert rig.addresses.held(Family.IPV4) == set()
        rig.assert_holds({}, foreign=[key])
        written = rig.written()
        rig.apply({})
        assert rig.written() == written

    def test_a_stray_one_in_one_stays(self) -> None:
        rig = Rig(self.SETTINGS)
        rig.apply(PLANS)
        stray = ServerKey(Protocol.TCP, "198.51.100.7", 9)
        add(rig, stray)
        rig.restarted()
        rig.apply(PLANS)
        rig.assert_holds(PLANS, foreign=[stray])

    def test_a_wanted_one_is_kept_right(self) -> None:
        rig = Rig(self.SETTINGS)
        add(rig, server(WEB, "198.51.100.7"))
        rig.apply(PLANS)
        fewer = build_plan(node_port=30080, external_ips=("198.51.100.7",), cluster=(2,))
        rig.apply(PLANS | by_key(fewer), [fewer.key])
        rig.dataplane.housekeeping()
        assert rig.reals(server(WEB, "198.51.100.7")) == {real(2): 1}

    def test_its_terminating_endpoints_are_left_alone_without_an_owner(self) -> None:
        rig = Rig(self.SETTINGS)
        rig.apply(PLANS)
        key = server(WEB, "198.51.100.7")
        rig.ipvs.connect(key, real(2), 1)
        fewer = build_plan(external_ips=("198.51.100.7",), cluster=(1,))
        rig.apply(PLANS | by_key(fewer), [fewer.key])
        rig.apply({}, PLANS.keys())
        rig.clock.advance(3600)
        assert rig.dataplane.housekeeping() is None
        assert rig.reals(key) == {real(1): 1, real(2): 0}
        rig.apply(by_key(WEB), [WEB.key])
        assert rig.reals(key) == {real(1): 1, real(2): 1}


def test_real_servers_reached_in_another_way_are_set_right() -> None:
    rig = Rig()
    rig.apply(by_key(WEB))
    held = rig.ipvs._servers[server(WEB)].reals
    held[real(1)] = RealState(1, masqueraded=False)
    assert rig.apply(by_key(WEB)).repaired
    rig.assert_holds(by_key(WEB))


def test_the_other_family_is_left_alone() -> None:
    rig = Rig()
    six = Rig(
        replace(SETTINGS, family=Family.IPV6, node_addresses=frozenset({"fd00::11"}), node_port_ips=("fd00::11",))
    )
    six.ipvs, six.sets, six.addresses = rig.ipvs, rig.sets, rig.addresses
    six.restarted()
    rig.apply(PLANS)
    dual = build_plan(family=Family.IPV6, cluster_ip="fd00:96::1", cluster=(), node_port=30080, has_endpoints=True)
    six.apply(by_key(dual))
    rig.assert_holds(PLANS)
    rig.apply({})
    assert six.addresses.held(Family.IPV6) == {"fd00:96::1"}
    assert set(six.servers()) == {ServerKey(Protocol.TCP, "fd00:96::1", 80), ServerKey(Protocol.TCP, "fd00::11", 30080)}
    assert six.entries()["KUBE-6-CLUSTER-IP"] == ("fd00:96::1,tcp:80",)


def test_stray_entries_and_addresses_are_removed() -> None:
    rig = Rig()
    rig.apply(PLANS)
    rig.addresses.edit(["10.96.77.77"])
    rig.sets.edit(Change("KUBE-NODE-PORT-TCP", "31999", True))
    outcome = rig.apply(PLANS)
    assert outcome.repaired
    rig.assert_holds(PLANS)
