"""What others flush or edit is noticed soon, by checks that cost little."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kproxy.kernel.ipset import Change
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.kernel.virtual_servers import RealServer
from tests.ipvs_mode.rigs import Rig, real, server
from tests.plans import Plans, build_plan, by_key

POLL = 0.2
PLANS: Plans = by_key(
    *(build_plan(f"s{n}", cluster_ip=f"10.96.0.{n}", load_balancer_ips=("203.0.113.5",)) for n in range(40))
)
LAST = list(PLANS.values())[-1]


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    made.apply(PLANS)
    assert not seconds_until_seen(made, 100), "no drift of its own"
    return made


def seconds_until_seen(rig: Rig, most: float) -> float | None:
    start = rig.clock.monotonic()
    while rig.clock.monotonic() - start < most:
        rig.clock.advance(POLL)
        if rig.dataplane.drifted():
            return rig.clock.monotonic() - start
    return None


def device_gone(rig: Rig) -> None:
    rig.addresses.remove()


def real_edited(rig: Rig) -> None:
    rig.ipvs.edit(Operation(Verb.EDIT_REAL, rig.servers()[server(LAST)][0], RealServer(real(1), 5)))


EDITS: dict[str, tuple[Callable[[Rig], None], float]] = {
    "ipvsadm -C": (lambda rig: rig.ipvs.clear(), 2),
    "ip addr flush": (lambda rig: rig.addresses.flush(), 2),
    "one address": (lambda rig: rig.addresses.edit(remove=[LAST.cluster_ip]), 2),
    "the device": (device_gone, 2),
    "ipset flush": (lambda rig: rig.sets.flush(), 2),
    "ipset flush KUBE-LOAD-BALANCER": (lambda rig: rig.sets.flush("KUBE-LOAD-BALANCER"), 10),
    "one entry": (lambda rig: rig.sets.edit(Change("KUBE-CLUSTER-IP", "10.96.0.9,tcp:80", False)), 10),
    "one weight": (real_edited, 30),
}


@pytest.mark.parametrize(("edit", "seconds"), EDITS.values(), ids=EDITS)
def test_edits_are_seen_and_healed(rig: Rig, edit: Callable[[Rig], None], seconds: float) -> None:
    edit(rig)
    assert seconds_until_seen(rig, seconds)
    assert rig.apply(PLANS).repaired
    assert not seconds_until_seen(rig, 60)


def test_own_changes_are_no_drift(rig: Rig) -> None:
    rig.ipvs.connect(server(LAST), real(2), 1)
    less = build_plan(LAST.key.name, cluster_ip=LAST.cluster_ip, cluster=(1,))
    rig.apply(PLANS | by_key(less), [less.key])
    assert not seconds_until_seen(rig, 60)
    rig.ipvs.connect(server(LAST), real(2))
    rig.dataplane.housekeeping()
    assert not seconds_until_seen(rig, 60)
    rig.apply({}, PLANS.keys())
    assert not seconds_until_seen(rig, 60)


def test_a_check_does_not_grow_with_the_number_of_services(rig: Rig) -> None:
    reads, lists = rig.ipvs.reads, rig.ipvs.lists
    seconds_until_seen(rig, 10)
    assert rig.ipvs.lists == lists
    assert rig.ipvs.reads - reads <= 11 * 8


def test_what_takes_long_to_read_is_read_less_often(rig: Rig) -> None:
    lists = rig.addresses.lists
    seconds_until_seen(rig, 20)
    often = rig.addresses.lists - lists
    slow, held = 0.5, rig.addresses.held

    def slowly(family: object) -> frozenset[str]:
        rig.clock.advance(slow)
        return held(rig.settings.family)

    rig.addresses.held = slowly  # type: ignore[method-assign]
    seconds_until_seen(rig, 100)
    seldom = rig.addresses.lists - lists - often
    assert often >= 18
    assert seldom <= 4


def test_before_the_first_apply_and_after_a_failure_nothing_is_asked() -> None:
    rig = Rig()
    assert not rig.dataplane.drifted()
    assert (rig.ipvs.reads, rig.sets.lists, rig.addresses.lists) == (0, 0, 0)
