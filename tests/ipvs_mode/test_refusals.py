"""What the kernel refuses is reported and tried again, and keeps nothing else out."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from kproxy.errors import KernelError
from kproxy.kernel.ipset_codec import SetSpec, SetType
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.kernel.virtual_servers import RealServer
from kproxy.model.plans import Family, Protocol
from kproxy.modes.ipvs.names import set_name
from tests.fakes import ipset, ipvs, service_device
from tests.ipvs_mode.rigs import Rig, real, server
from tests.plans import Plans, build_plan, by_key

A, B, C = (
    build_plan("a", cluster_ip="10.96.0.1"),
    build_plan("b", cluster_ip="10.96.0.2"),
    build_plan("c", cluster_ip="10.96.0.3"),
)
PLANS = by_key(A, B, C)


def refuse_server(rig: Rig) -> None:
    rig.ipvs.refuse = lambda op: errno.ENOMEM if op.server.key == server(B) and op.verb is Verb.ADD_SERVER else 0


def refuse_real(rig: Rig) -> None:
    rig.ipvs.refuse = lambda op: (
        errno.EINVAL
        if (op.server.key, op.verb) == (server(B), Verb.ADD_REAL) and op.real and op.real.key == real(2)
        else 0
    )


def refuse_address(rig: Rig) -> None:
    rig.addresses.refuse = lambda address: errno.EADDRNOTAVAIL if address == B.cluster_ip else 0


def refuse_entry(rig: Rig) -> None:
    rig.sets.refuse = lambda change: errno.ENOSPC if change.entry == f"{B.cluster_ip},tcp:80" else 0


def permit(rig: Rig) -> None:
    rig.ipvs.refuse, rig.sets.refuse, rig.addresses.refuse = ipvs.accept, ipset.accept, service_device.accept


REFUSALS: dict[str, tuple[Callable[[Rig], None], str]] = {
    "virtual server": (refuse_server, "TCP 10.96.0.2:80"),
    "real server": (refuse_real, "10.244.1.2:8080"),
    "address": (refuse_address, "10.96.0.2"),
    "entry": (refuse_entry, "10.96.0.2,tcp:80"),
}
EACH = pytest.mark.parametrize(("refuse", "named"), REFUSALS.values(), ids=REFUSALS)


@EACH
@pytest.mark.parametrize("full", [True, False])
def test_the_port_is_named_and_the_others_are_programmed(refuse: Callable[[Rig], None], named: str, full: bool) -> None:
    rig = Rig()
    rig.apply({})
    refuse(rig)
    outcome = rig.apply(PLANS, None if full else PLANS.keys())
    assert set(outcome.rejected) == {B.key}
    assert named in outcome.rejected[B.key]
    assert [named in line for line in outcome.refusals] == [True]
    assert "\n" not in outcome.rejected[B.key]
    for other in (A, C):
        assert rig.reals(server(other)) == {real(1): 1, real(2): 1}
        assert other.cluster_ip in rig.addresses.held(Family.IPV4)


@EACH
def test_it_is_not_tried_at_every_sync_but_by_a_full_check(refuse: Callable[[Rig], None], named: str) -> None:
    rig = Rig()
    refuse(rig)
    rig.apply(PLANS)
    asked = rig.asked()
    assert set(rig.apply(PLANS, [B.key]).rejected) == {B.key}, "still refused, and said so"
    assert rig.asked() == asked
    permit(rig)
    assert rig.apply(PLANS).rejected == {}
    rig.assert_holds(PLANS)


@EACH
def test_it_is_tried_when_its_plan_changes(refuse: Callable[[Rig], None], named: str) -> None:
    rig = Rig()
    refuse(rig)
    rig.apply(PLANS)
    permit(rig)
    other = build_plan("b", cluster_ip=B.cluster_ip, affinity_seconds=9)
    lists = rig.ipvs.lists
    assert rig.apply(PLANS | by_key(other), [B.key]).rejected == {}
    assert rig.ipvs.lists == lists, "what was refused is known to be missing"
    rig.assert_holds(PLANS | by_key(other))


@EACH
def test_a_refused_port_can_be_deleted(refuse: Callable[[Rig], None], named: str) -> None:
    rig = Rig()
    refuse(rig)
    rig.apply(PLANS)
    assert rig.apply(by_key(A, C), [B.key]).rejected == {}
    rig.assert_holds(by_key(A, C))


def test_all_ports_that_need_a_refused_address_are_named() -> None:
    rig = Rig()
    refuse_address(rig)
    second = build_plan("b", port=443, cluster_ip=B.cluster_ip)
    assert set(rig.apply(PLANS | by_key(second)).rejected) == {B.key, second.key}


def test_a_missing_scheduler_rejects_every_port() -> None:
    rig = Rig()
    rig.ipvs.schedulers = {"wlc"}
    assert set(rig.apply(PLANS).rejected) == set(PLANS)
    rig.ipvs.schedulers = {"rr"}
    assert rig.apply(PLANS).rejected == {}
    rig.assert_holds(PLANS)


def test_an_edit_that_is_refused_leaves_what_was_there() -> None:
    rig = Rig()
    rig.apply(PLANS)
    rig.ipvs.refuse = lambda op: errno.ENOMEM if op.verb is Verb.EDIT_SERVER else 0
    sticky = build_plan("b", cluster_ip=B.cluster_ip, affinity_seconds=9)
    assert set(rig.apply(PLANS | by_key(sticky), [B.key]).rejected) == {B.key}
    assert rig.servers()[server(B)][0].timeout == 0
    rig.ipvs.refuse = ipvs.accept
    asked = rig.asked()
    rig.apply(PLANS | by_key(sticky))
    assert rig.asked() == asked + 1
    rig.assert_holds(PLANS | by_key(sticky))


def test_what_could_not_be_removed_is_tried_by_the_next_check() -> None:
    rig = Rig()
    rig.apply(PLANS)
    rig.ipvs.refuse = lambda op: errno.EPERM
    outcome = rig.apply(by_key(A, C), [B.key])
    assert (outcome.rejected, len(outcome.refusals)) == ({}, 1)
    assert server(B) in rig.servers()
    rig.ipvs.refuse = ipvs.accept
    rig.apply(by_key(A, C))
    rig.assert_holds(by_key(A, C))


def device_gone(rig: Rig) -> None:
    rig.addresses.remove()


def rules_and_sets_gone(rig: Rig) -> None:
    for table in ("nat", "filter"):
        rig.tables.flush(table)
    rig.sets.destroy(rig.sets.names())


def server_gone(rig: Rig) -> None:
    rig.ipvs.edit(Operation(Verb.DELETE_SERVER, rig.servers()[server(B)][0]))


def real_there(rig: Rig) -> None:
    rig.ipvs.edit(Operation(Verb.ADD_REAL, rig.servers()[server(B)][0], RealServer(real(3), 9)))


SURPRISES = [device_gone, rules_and_sets_gone, server_gone, real_there]


@pytest.mark.parametrize("surprise", SURPRISES)
def test_a_kernel_in_an_unexpected_state_is_compared_whole(surprise: Callable[[Rig], None]) -> None:
    rig = Rig()
    rig.apply(PLANS)
    surprise(rig)
    wanted: Plans = PLANS | by_key(
        build_plan("b", cluster_ip=B.cluster_ip, cluster=(1, 2, 3), load_balancer_ips=("203.0.113.5",))
    )
    outcome = rig.apply(wanted, [B.key])
    assert (outcome.rejected, outcome.repaired) == ({}, False)
    rig.assert_holds(wanted)


@pytest.mark.parametrize("kernel", ["ipvs", "sets", "addresses", "tables"])
@pytest.mark.parametrize("full", [True, False])
def test_after_a_failure_everything_is_compared(kernel: str, full: bool) -> None:
    rig = Rig()
    rig.apply({})
    failing = getattr(rig, kernel)
    failing.fail_at = set(range(100))
    with pytest.raises(KernelError):
        rig.apply(PLANS, None if full else PLANS.keys())
    failing.fail_at = set()
    lists = rig.ipvs.lists
    assert rig.apply(PLANS, ()).rejected == {}
    assert rig.ipvs.lists == lists + 1
    rig.assert_holds(PLANS)


@pytest.mark.parametrize("kernel", ["ipvs", "sets", "addresses"])
def test_a_kernel_that_cannot_be_read_is_an_error(kernel: str) -> None:
    rig = Rig()
    getattr(rig, kernel).unreadable = True
    with pytest.raises(KernelError):
        rig.apply(PLANS, None)


class TestSetsOfAnotherType:
    NAME = set_name("CLUSTER-IP", Family.IPV4)

    def test_they_are_made_anew(self) -> None:
        rig = Rig()
        rig.sets.create([SetSpec(self.NAME, SetType.HASH_IP, Family.IPV4)])
        rig.apply(PLANS)
        rig.assert_holds(PLANS)

    def test_rules_that_use_them_are_deleted_first(self) -> None:
        rig = Rig()
        rig.sets.create([SetSpec(self.NAME, SetType.HASH_IP_PORT, Family.IPV6)])
        rig.tables.restore(
            f"*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -m set --match-set {self.NAME} dst,dst\nCOMMIT\n"
        )
        rig.apply(PLANS)
        rig.assert_holds(PLANS)

    def test_one_that_others_hold_is_an_error(self) -> None:
        rig = Rig()
        rig.sets.create([SetSpec(self.NAME, SetType.HASH_IP_PORT, Family.IPV6)])
        rig.tables.restore(f"*nat\n:MINE - [0:0]\n-A MINE -m set --match-set {self.NAME} dst,dst\nCOMMIT\n")
        with pytest.raises(KernelError, match=self.NAME):
            rig.apply(PLANS)


def test_of_two_services_at_one_address_the_first_by_name_has_it() -> None:
    """The first by name has it, whoever came first; when it goes, the other one does."""
    rig = Rig()
    first = build_plan("a", external_ips=("203.0.113.9",), cluster=(1,))
    second = build_plan("b", external_ips=("203.0.113.9",), cluster=(2,))
    shared = server(first, "203.0.113.9")
    rig.apply(by_key(second))
    rig.apply(by_key(first, second), [first.key])
    rig.dataplane.housekeeping()
    assert rig.reals(shared) == {real(1): 1}
    asked = rig.asked()
    rig.apply(by_key(first, second))
    assert rig.asked() == asked
    rig.apply(by_key(second), [first.key])
    rig.dataplane.housekeeping()
    assert rig.reals(shared) == {real(2): 1}
    assert shared.protocol is Protocol.TCP
