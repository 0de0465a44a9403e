"""The kernels in memory refuse what the real ones refuse, and hold what is written."""

from __future__ import annotations

import errno

import pytest

from kproxy.errors import NetlinkError
from kproxy.kernel.ipset import Change, HeldSet
from kproxy.kernel.ipset_codec import SetSpec, SetType
from kproxy.kernel.ipvs_codec import Operation, RealState, Verb
from kproxy.kernel.virtual_servers import HASHED, PERSISTENT, RealKey, RealServer, ServerKey, VirtualServer
from kproxy.model.plans import Family, Protocol
from tests.fakes.ipset import FakeIpSets, SavedTables
from tests.fakes.ipvs import FakeIpvs
from tests.fakes.service_device import FakeAddresses

WEB = VirtualServer(ServerKey(Protocol.TCP, "10.96.0.1", 443), "rr")
DNS = VirtualServer(ServerKey(Protocol.UDP, "fd00::a", 53), "rr")
ONE, TWO = RealServer(RealKey("10.244.0.1", 8443)), RealServer(RealKey("10.244.0.2", 8443), 3)


@pytest.fixture
def ipvs() -> FakeIpvs:
    made = FakeIpvs()
    assert made.apply([Operation(Verb.ADD_SERVER, WEB), Operation(Verb.ADD_REAL, WEB, ONE)]) == {}
    return made


REFUSED = {
    "a server that is there": (Operation(Verb.ADD_SERVER, WEB), errno.EEXIST),
    "a scheduler it has not": (Operation(Verb.ADD_SERVER, DNS._replace(scheduler="best")), errno.ENOENT),
    "an edit to a scheduler it has not": (Operation(Verb.EDIT_SERVER, WEB._replace(scheduler="x")), errno.ENOENT),
    "no port": (Operation(Verb.ADD_SERVER, WEB._replace(key=WEB.key._replace(port=0))), errno.EINVAL),
    "no address": (Operation(Verb.ADD_SERVER, WEB._replace(key=WEB.key._replace(address="10.96"))), errno.EINVAL),
    "an edit of no server": (Operation(Verb.EDIT_SERVER, DNS), errno.ESRCH),
    "a real server of no server": (Operation(Verb.ADD_REAL, DNS, ONE), errno.ESRCH),
    "a real server that is there": (Operation(Verb.ADD_REAL, WEB, ONE), errno.EEXIST),
    "an edit of no real server": (Operation(Verb.EDIT_REAL, WEB, TWO), errno.ENOENT),
    "a negative weight": (Operation(Verb.EDIT_REAL, WEB, ONE._replace(weight=-1)), errno.ERANGE),
    "a multicast real server": (Operation(Verb.ADD_REAL, WEB, RealServer(RealKey("224.0.0.1", 1))), errno.EINVAL),
    "a real server of IPv6": (Operation(Verb.ADD_REAL, WEB, RealServer(RealKey("fd00::1", 1))), errno.EINVAL),
    "nothing to add": (Operation(Verb.ADD_REAL, WEB), errno.EINVAL),
}


class TestIpvs:
    @pytest.mark.parametrize(("operation", "number"), REFUSED.values(), ids=REFUSED)
    def test_wrong_operations_are_refused_and_the_others_done(
        self, ipvs: FakeIpvs, operation: Operation, number: int
    ) -> None:
        before = ipvs.servers(Family.IPV4)
        refused = ipvs.apply([operation, Operation(Verb.EDIT_REAL, WEB, ONE._replace(weight=7))])
        assert {index: error.errno for index, error in refused.items()} == {0: number}
        assert before != ipvs.servers(Family.IPV4)
        assert ipvs.reals(WEB.key) == {ONE.key: RealState(7)}
        assert str(operation) in str(refused[0])

    def test_what_is_gone_already_may_be_deleted(self, ipvs: FakeIpvs) -> None:
        operations = [
            Operation(Verb.DELETE_SERVER, DNS),
            Operation(Verb.DELETE_REAL, WEB, TWO),
            Operation(Verb.DELETE_REAL, DNS, ONE),
        ]
        assert ipvs.apply(operations) == {}

    def test_a_deleted_server_takes_its_real_servers_along(self, ipvs: FakeIpvs) -> None:
        ipvs.connect(WEB.key, ONE.key, active=1)
        ipvs.apply([Operation(Verb.DELETE_SERVER, WEB), Operation(Verb.ADD_SERVER, WEB)])
        assert ipvs.reals(WEB.key) == {}
        assert ipvs.servers(Family.IPV4)[WEB.key].server == WEB

    def test_edits_keep_real_servers_and_connections(self, ipvs: FakeIpvs) -> None:
        ipvs.connect(WEB.key, ONE.key, 2, 1)
        edited = WEB._replace(scheduler="sh", flags=PERSISTENT | HASHED, timeout=60)
        real = ONE._replace(weight=0)
        assert ipvs.apply([Operation(Verb.EDIT_SERVER, edited), Operation(Verb.EDIT_REAL, WEB, real)]) == {}
        held = ipvs.servers(Family.IPV4)[WEB.key]
        assert held.server == edited._replace(flags=PERSISTENT)
        assert held.reals == {ONE.key: RealState(0, 2, 1)}
        assert not held.reals[ONE.key].idle


SPECS = {
    spec.type: spec
    for spec in (
        SetSpec("KUBE-IPS", SetType.HASH_IP, Family.IPV4),
        SetSpec("KUBE-CLUSTER-IP", SetType.HASH_IP_PORT, Family.IPV4),
        SetSpec("KUBE-LOOP-BACK", SetType.HASH_IP_PORT_IP, Family.IPV4),
        SetSpec("KUBE-SOURCES", SetType.HASH_IP_PORT_NET, Family.IPV6),
        SetSpec("KUBE-NODE-PORT", SetType.BITMAP_PORT, Family.IPV4),
    )
}
ENTRIES = {
    SetType.HASH_IP: (["10.0.0.1"], ["fd00::1", "10.0.0.01", "10.0.0.0/8", "10.0.0.1,tcp:1", ""]),
    SetType.HASH_IP_PORT: (["10.0.0.1,tcp:80", "10.0.0.1,sctp:65535"], ["10.0.0.1,80", "10.0.0.1,tcp:65536", "tcp:80"]),
    SetType.HASH_IP_PORT_IP: (["10.0.0.1,udp:53,10.0.0.2"], ["10.0.0.1,udp:53", "10.0.0.1,udp:53,fd00::1"]),
    SetType.HASH_IP_PORT_NET: (
        ["fd00::1,tcp:80,fd01::/64", "fd00::1,tcp:80,fd01::1"],
        ["fd00::1,tcp:80,fd01::1/64", "fd00::1,tcp:80,fd01::1/128", "fd00::1,tcp:80,::/0"],
    ),
    SetType.BITMAP_PORT: (["0", "30080"], ["65536", "080", "tcp:80", ""]),
}


@pytest.fixture
def sets() -> FakeIpSets:
    made = FakeIpSets()
    made.create(SPECS.values())
    return made


class TestIpSets:
    @pytest.mark.parametrize("type_", SetType)
    def test_only_entries_of_the_sets_type_are_accepted(self, sets: FakeIpSets, type_: SetType) -> None:
        name, (good, bad) = SPECS[type_].name, ENTRIES[type_]
        changes = [Change(name, entry, True) for entry in (*good, *bad)]
        refused = sets.apply(changes)
        assert {change.entry: error.errno for change, error in refused.items()} == dict.fromkeys(bad, errno.EINVAL)
        assert sets.held([name])[name].entries == set(good)

    def test_what_is_there_may_be_added_and_what_is_gone_deleted(self, sets: FakeIpSets) -> None:
        add = Change("KUBE-NODE-PORT", "30080", True)
        assert sets.apply([add, add, add._replace(add=False), add._replace(add=False)]) == {}
        [error] = sets.apply([add._replace(set="KUBE-NONE")]).values()
        assert error.errno == errno.ENOENT

    def test_a_full_hash_takes_no_more(self, sets: FakeIpSets) -> None:
        sets.most = 1
        changes = [Change("KUBE-IPS", f"10.0.0.{n}", True) for n in (1, 1, 2)]
        assert {change.entry: error.errno for change, error in sets.apply(changes).items()} == {
            "10.0.0.2": errno.ENOSPC
        }

    def test_a_set_exists_once(self, sets: FakeIpSets) -> None:
        sets.apply([Change("KUBE-IPS", "10.0.0.1", True)])
        sets.create(SPECS.values())
        sets.create([SPECS[SetType.BITMAP_PORT]._replace(family=Family.IPV6)])
        assert sets.held(["KUBE-IPS", "KUBE-NODE-PORT", "KUBE-NONE"]) == {
            "KUBE-IPS": HeldSet("hash:ip", Family.IPV4, 0, frozenset({"10.0.0.1"})),
            "KUBE-NODE-PORT": HeldSet("bitmap:port", None, 0, frozenset()),
        }
        for other in (
            SetSpec("KUBE-IPS", SetType.HASH_IP, Family.IPV6),
            SetSpec("KUBE-IPS", SetType.BITMAP_PORT, Family.IPV4),
        ):
            with pytest.raises(NetlinkError, match="KUBE-IPS"):
                sets.create([other])
        with pytest.raises(NetlinkError):
            sets.create([SetSpec("K" * 32, SetType.HASH_IP, Family.IPV4)])

    def test_a_set_that_a_rule_matches_on_stays(self, sets: FakeIpSets) -> None:
        sets.users.append(SavedTables(lambda: "-A IN -m set --match-set KUBE-IPS dst -j ACCEPT\n"))
        stay = sets.destroy(["KUBE-IPS", "KUBE-CLUSTER-IP", "KUBE-NONE"])
        assert {name: error.errno for name, error in stay.items()} == {"KUBE-IPS": errno.EBUSY}
        assert sets.held(["KUBE-IPS"])["KUBE-IPS"].references == 1
        assert sets.names() == {spec.name for spec in SPECS.values()} - {"KUBE-CLUSTER-IP"}
        assert sets.unknown("-m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT")
        assert not sets.unknown("-m set --match-set KUBE-IPS dst -j ACCEPT")


class TestAddresses:
    def test_addresses_are_added_and_removed(self) -> None:
        device = FakeAddresses()
        with pytest.raises(NetlinkError) as missing:
            device.change(["10.96.0.1"], ())
        assert missing.value.errno == errno.ENODEV
        assert device.change((), ["10.96.0.1"]) == {}
        device.ensure()
        errors = device.change(["10.96.0.1", "10.96.0.1", "fd00::1", "10.96.0", "fd00::01"], ["10.96.9.9"])
        assert {address: error.errno for address, error in errors.items()} == dict.fromkeys(
            ["10.96.0", "fd00::01"], errno.EINVAL
        )
        device.ensure()
        assert [set(device.held(family)) for family in Family] == [{"10.96.0.1"}, {"fd00::1"}]
        device.flush(Family.IPV6)
        assert [set(device.held(family)) for family in Family] == [{"10.96.0.1"}, set()]
        assert (device.remove(), device.remove(), device.held(Family.IPV4)) == (True, False, frozenset())
