"""Removed endpoints keep their connections for 15 minutes at most; those that return serve again."""

from __future__ import annotations

import errno

import pytest

from kproxy.errors import KernelError
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.kernel.virtual_servers import RealServer
from kproxy.model.plans import Protocol
from tests.ipvs_mode.rigs import SETTINGS, Rig, real, server
from tests.plans import Plans, build_plan, by_key

BOTH, ONE = build_plan(cluster=(1, 2)), build_plan(cluster=(1,))
WEB = server(BOTH)
QUARTER = 15 * 60.0


def left(rig: Rig, active: int = 1, inactive: int = 0) -> None:
    """Endpoint 2 leaves while connections lead to it."""
    rig.apply(by_key(BOTH))
    rig.ipvs.connect(WEB, real(2), active, inactive)
    rig.apply(by_key(ONE), [ONE.key])


def wait(rig: Rig, seconds: float) -> list[float]:
    """Let time pass, looking after what leaves whenever that is asked for; when it was, in seconds from now."""
    start, times = rig.clock.monotonic(), []
    while (pause := rig.dataplane.housekeeping()) is not None:
        passed = rig.clock.monotonic() - start
        times.append(passed)
        if passed + pause > seconds:
            rig.clock.advance(seconds - passed)
            break
        rig.clock.advance(pause)
    return times


@pytest.mark.parametrize(("active", "inactive"), [(1, 0), (0, 1), (3, 4)])
def test_an_endpoint_with_connections_gets_weight_zero_and_stays(active: int, inactive: int) -> None:
    rig = Rig()
    left(rig, active, inactive)
    assert rig.reals(WEB) == {real(1): 1, real(2): 0}
    wait(rig, QUARTER - 1)
    assert rig.reals(WEB) == {real(1): 1, real(2): 0}


def test_an_endpoint_without_connections_is_deleted_at_the_first_check() -> None:
    rig = Rig()
    left(rig, 0)
    assert rig.dataplane.housekeeping() is None
    assert rig.reals(WEB) == {real(1): 1}


def test_it_is_deleted_soon_after_its_last_connection() -> None:
    rig = Rig()
    left(rig)
    wait(rig, 300)
    rig.ipvs.connect(WEB, real(2), 0, 0)
    wait(rig, 31)
    assert rig.reals(WEB) == {real(1): 1}
    assert rig.dataplane.housekeeping() is None


def test_it_is_deleted_with_its_connections_after_a_quarter_of_an_hour() -> None:
    rig = Rig()
    left(rig)
    times = wait(rig, QUARTER)
    rig.dataplane.housekeeping()
    assert rig.reals(WEB) == {real(1): 1}
    assert len(times) < 60, "looking costs time"


def test_syncs_meanwhile_do_not_start_its_time_anew() -> None:
    rig = Rig()
    left(rig)
    for _ in range(3):
        wait(rig, QUARTER / 3)
        rig.apply(by_key(ONE))
    rig.dataplane.housekeeping()
    assert rig.reals(WEB) == {real(1): 1}


@pytest.mark.parametrize("full", [True, False])
def test_one_that_returns_serves_again(full: bool) -> None:
    rig = Rig()
    left(rig)
    wait(rig, 100)
    asked = rig.asked()
    rig.apply(by_key(BOTH), None if full else [BOTH.key])
    assert rig.reals(WEB) == {real(1): 1, real(2): 1}
    assert rig.asked() - asked == 1, "edited, not made anew"
    assert rig.servers()[WEB][1][real(2)].active == 1
    assert rig.dataplane.housekeeping() is None
    wait(rig, QUARTER + 60)
    assert rig.reals(WEB) == {real(1): 1, real(2): 1}


def test_one_that_is_removed_again_has_its_whole_grace_again() -> None:
    rig = Rig()
    left(rig)
    wait(rig, QUARTER - 10)
    rig.apply(by_key(BOTH), [BOTH.key])
    rig.apply(by_key(ONE), [ONE.key])
    wait(rig, QUARTER - 10)
    assert rig.reals(WEB) == {real(1): 1, real(2): 0}


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.SCTP])
def test_endpoints_of_other_protocols_are_deleted_at_once(protocol: Protocol) -> None:
    rig = Rig()
    both, one = build_plan(protocol=protocol, cluster=(1, 2)), build_plan(protocol=protocol, cluster=(1,))
    rig.apply(by_key(both))
    rig.ipvs.connect(server(both), real(2), 3)
    rig.apply(by_key(one), [one.key])
    assert rig.reals(server(both)) == {real(1): 1}
    assert rig.dataplane.housekeeping() is None


def test_with_the_last_endpoint_gone_the_server_stays_and_ends_its_connections() -> None:
    rig = Rig()
    none = build_plan(cluster=())
    rig.apply(by_key(ONE))
    rig.ipvs.connect(WEB, real(1), 1)
    rig.apply(by_key(none), [none.key])
    assert rig.reals(WEB) == {real(1): 0}
    rig.ipvs.connect(WEB, real(1))
    wait(rig, 60)
    assert rig.reals(WEB) == {}


@pytest.mark.parametrize("full", [True, False])
def test_a_deleted_port_deletes_its_server_at_once(full: bool) -> None:
    rig = Rig()
    left(rig)
    nothing: Plans = {}
    rig.apply(nothing, None if full else [ONE.key])
    assert WEB not in rig.servers()
    assert rig.dataplane.housekeeping() is None
    rig.assert_holds(nothing)


def test_after_a_restart_the_time_begins_anew() -> None:
    rig = Rig()
    left(rig)
    wait(rig, QUARTER - 10)
    rig.restarted()
    asked = rig.asked()
    rig.apply(by_key(ONE))
    assert rig.asked() == asked
    wait(rig, QUARTER - 10)
    assert rig.reals(WEB) == {real(1): 1, real(2): 0}
    wait(rig, 11)
    rig.dataplane.housekeeping()
    assert rig.reals(WEB) == {real(1): 1}


def test_a_check_costs_one_query_a_server() -> None:
    rig = Rig()
    plans = by_key(*(build_plan(f"s{n}") for n in range(20)))
    rig.apply(plans)
    gone = build_plan("s7", cluster=(1,))
    rig.ipvs.connect(server(gone), real(2), 1)
    rig.apply(plans | by_key(gone), [gone.key])
    reads, lists = rig.ipvs.reads, rig.ipvs.lists
    pause = rig.dataplane.housekeeping()
    assert (rig.ipvs.reads, rig.ipvs.lists) == (reads + 1, lists)
    assert pause
    rig.dataplane.housekeeping()
    assert rig.ipvs.reads == reads + 1, "not before it is due"


def test_very_many_are_checked_a_few_at_a_time() -> None:
    rig = Rig()
    names = [f"s{n}" for n in range(200)]
    plans = {p.key: p for n, name in enumerate(names) for p in [build_plan(name, cluster_ip=f"10.97.0.{n}")]}
    fewer = {key: build_plan(key.name, cluster_ip=p.cluster_ip, cluster=(1,)) for key, p in plans.items()}
    rig.apply(plans)
    rig.apply(fewer, fewer.keys())
    rounds = 1
    while (pause := rig.dataplane.housekeeping()) is not None:
        assert pause == 0.0
        rounds += 1
    assert rounds > 2
    assert not any(0 in rig.reals(server(p)).values() for p in fewer.values())


def test_a_kernel_that_does_not_answer_is_asked_again() -> None:
    rig = Rig()
    left(rig, 0)
    rig.ipvs.unreadable = True
    with pytest.raises(KernelError):
        rig.dataplane.housekeeping()
    rig.ipvs.unreadable = False
    wait(rig, 5)
    assert rig.reals(WEB) == {real(1): 1}


def test_one_that_the_kernel_keeps_is_tried_again() -> None:
    rig = Rig()
    left(rig, 0)
    rig.ipvs.refuse = lambda operation: errno.ENOMEM
    assert rig.dataplane.housekeeping()
    assert rig.reals(WEB) == {real(1): 1, real(2): 0}
    rig.ipvs.refuse = lambda operation: 0
    wait(rig, 5)
    assert rig.reals(WEB) == {real(1): 1}


def test_what_others_deleted_or_revived_is_left_to_the_next_check() -> None:
    rig = Rig()
    left(rig)
    key = rig.servers()[WEB][0]
    rig.ipvs.edit(Operation(Verb.EDIT_REAL, key, RealServer(real(2), 5)))
    assert rig.dataplane.housekeeping() is None
    rig.apply(by_key(ONE))
    assert rig.reals(WEB) == {real(1): 1, real(2): 0}
    rig.ipvs.edit(Operation(Verb.DELETE_REAL, key, RealServer(real(2))))
    assert rig.dataplane.housekeeping() is None
    rig.apply(by_key(BOTH), [BOTH.key])
    assert rig.reals(WEB) == {real(1): 1, real(2): 1}
    assert rig.settings == SETTINGS


def test_a_server_that_others_took_away_is_not_asked_about() -> None:
    rig = Rig()
    left(rig)
    rig.ipvs.edit(Operation(Verb.DELETE_SERVER, rig.servers()[WEB][0]))
    rig.apply({})
    reads = rig.ipvs.reads
    assert rig.dataplane.housekeeping() is None
    assert rig.ipvs.reads == reads
