"""Cleanup removes everything that IPVS mode ever wrote, and nothing of other programs."""

from __future__ import annotations

import errno

import pytest

from kproxy.errors import NetlinkError
from kproxy.kernel.ipset_codec import SetSpec, SetType
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.kernel.virtual_servers import ServerKey, VirtualServer
from kproxy.model.plans import Family, Protocol
from kproxy.modes.ipvs.cleanup import clean, connections
from kproxy.modes.xtables.cleanup import clean as clean_rules
from tests.fakes.ipset import FakeIpSets
from tests.fakes.ipvs import FakeIpvs
from tests.fakes.service_device import FakeAddresses
from tests.ipvs_mode.rigs import FOREIGN, FOREIGN_REAL, SETTINGS, Rig, real, server
from tests.plans import build_plan, by_key

PLANS = by_key(
    build_plan(node_port=30080, external_ips=("198.51.100.7",)),
    build_plan("dns", Protocol.UDP, port=53, node_port=30053),
)
MINE = SetSpec("MY-SET", SetType.HASH_IP, Family.IPV4)


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    made.sets.create([MINE])
    made.apply(PLANS)
    return made


def test_when_another_mode_took_over(rig: Rig) -> None:
    clean_rules(rig.tables)
    assert clean(rig.ipvs, rig.sets, rig.addresses, SETTINGS.node_addresses) == []
    assert set(rig.servers()) == {FOREIGN.key}
    assert rig.sets.names() == {MINE.name}
    assert not rig.addresses.present
    assert "KUBE" not in rig.tables.save()
    before = rig.written()
    assert clean(rig.ipvs, rig.sets, rig.addresses, SETTINGS.node_addresses) == []
    assert rig.written() == before


def test_sets_that_rules_still_use_are_reported(rig: Rig) -> None:
    problems = clean(rig.ipvs, rig.sets, rig.addresses, SETTINGS.node_addresses)
    assert problems
    assert all(problem.count("KUBE-") and "\n" not in problem for problem in problems)
    clean_rules(rig.tables)
    assert clean(rig.ipvs, rig.sets, rig.addresses, SETTINGS.node_addresses) == []


def test_servers_that_cannot_be_deleted_are_reported(rig: Rig) -> None:
    clean_rules(rig.tables)
    rig.ipvs.refuse = lambda operation: errno.EPERM if operation.server.key.port == 53 else 0
    [problem] = clean(rig.ipvs, rig.sets, rig.addresses, SETTINGS.node_addresses)
    assert ":53" in problem


def test_excluded_servers_stay(rig: Rig) -> None:
    clean(rig.ipvs, rig.sets, rig.addresses, SETTINGS.node_addresses, ["198.51.100.0/24"])
    assert set(rig.servers()) == {FOREIGN.key, ServerKey(Protocol.TCP, "198.51.100.7", 80)}


def test_one_family_alone(rig: Rig) -> None:
    six = VirtualServer(ServerKey(Protocol.TCP, "fd00:96::1", 80), "rr")
    rig.ipvs.edit(Operation(Verb.ADD_SERVER, six))
    rig.addresses.edit(["fd00:96::1"])
    rig.sets.create([SetSpec("KUBE-6-CLUSTER-IP", SetType.HASH_IP_PORT, Family.IPV6)])
    clean_rules(rig.tables)
    assert clean(rig.ipvs, rig.sets, rig.addresses, SETTINGS.node_addresses, families=[Family.IPV4]) == []
    assert [set(rig.addresses.held(family)) for family in Family] == [set(), {"fd00:96::1"}]
    assert set(rig.ipvs.servers(Family.IPV6)) == {six.key}
    assert rig.sets.names() == {MINE.name, "KUBE-6-CLUSTER-IP"}
    assert clean(rig.ipvs, rig.sets, rig.addresses, (), families=[Family.IPV6]) == []
    assert set(rig.sets.names()) == {MINE.name}
    assert not rig.addresses.present


class TestHostsWithoutIt:
    def test_nothing_is_loaded(self) -> None:
        device = FakeAddresses()
        assert clean(None, None, device, ()) == []
        assert device.changes == 0

    def test_nothing_is_there(self) -> None:
        ipvs, sets = FakeIpvs(), FakeIpSets()
        ipvs.absent = sets.absent = True
        for read in (ipvs.servers, lambda family: sets.held([])):
            with pytest.raises(NetlinkError):
                read(Family.IPV4)
        assert clean(ipvs, sets, FakeAddresses(), ()) == []
        assert (ipvs.applies, sets.applies) == (0, 0)

    def test_other_errors_are_errors(self) -> None:
        ipvs = FakeIpvs()
        ipvs.unreadable = True
        with pytest.raises(NetlinkError):
            clean(ipvs, FakeIpSets(), FakeAddresses(), ())


def test_connections_of_our_servers_are_counted(rig: Rig) -> None:
    web = next(iter(PLANS.values()))
    rig.ipvs.connect(FOREIGN.key, FOREIGN_REAL.key, active=5)
    rig.ipvs.connect(server(web), real(1), active=2, inactive=9)
    rig.ipvs.connect(server(web, "198.51.100.7"), real(2), active=1)
    node = SETTINGS.node_addresses
    assert connections(rig.ipvs, rig.sets, rig.addresses, node) == 3
    assert connections(rig.ipvs, rig.sets, rig.addresses, node, ["198.51.100.0/24"]) == 2
    assert connections(None, rig.sets, rig.addresses, node) == 0
