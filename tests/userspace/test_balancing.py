"""Round-robin and affinity, without a socket."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.modes.userspace.balancer import Affinity, Balancer, RoundRobinCounter, Target

A, B, C, D = (("10.0.0.1", port) for port in (1, 2, 3, 4))
TARGETS = st.lists(st.sampled_from([("10.0.0.1", port) for port in range(8)]), min_size=1, unique=True).map(tuple)
CLIENTS = st.sampled_from([f"192.0.2.{i}" for i in range(6)])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pick"), CLIENTS, st.integers(0, 40)),
        st.tuples(st.just("change"), TARGETS, st.sampled_from([0, 10, 100])),
    ),
    max_size=60,
)


def balancer(*targets: Target, seconds: float = 0, affinity: Affinity | None = None) -> Balancer:
    counter = RoundRobinCounter([0], 0, True)
    return Balancer(targets, seconds, Affinity() if affinity is None else affinity, counter)


def picks(one: Balancer, number: int, client: str = "c", now: float = 0) -> list[Target | None]:
    return [one.pick(client, now) for _ in range(number)]


def test_each_has_its_turn() -> None:
    assert picks(balancer(A, B, C), 7) == [A, B, C, A, B, C, A]


@pytest.mark.parametrize(
    ("before", "after", "then"),
    [
        pytest.param((A, B, C), (A, B, C, D), [B, C, D, A], id="one is added"),
        pytest.param((A, B, C), (A, C), [C, A], id="the next one leaves"),
        pytest.param((A, B, C), (B, C), [B, C], id="one that had its turn leaves"),
        pytest.param((A, B, C), (A,), [A, A], id="only that one stays"),
        pytest.param((A, B, C), (D,), [D, D], id="all are new"),
        pytest.param((A, B, C), (D, A, B, C), [B, C, D, A], id="one is put in front"),
    ],
)
def test_the_turn_is_kept_through_changes(
    before: tuple[Target, ...], after: tuple[Target, ...], then: list[Target]
) -> None:
    one = balancer(*before)
    assert one.pick("c", 0) == A
    one.change(after, 0)
    assert picks(one, len(then)) == then


@given(TARGETS, st.integers(1, 50))
def test_turns_are_even(targets: tuple[Target, ...], number: int) -> None:
    taken = Counter(picks(balancer(*targets), number))
    assert max(taken.values()) - min(taken.get(target, 0) for target in targets) <= 1


@given(TARGETS, st.sampled_from([0, 10]))
def test_no_endpoint_is_tried_twice_for_one_connection(targets: tuple[Target, ...], seconds: int) -> None:
    one = balancer(*targets, seconds=seconds)
    tried: list[Target] = []
    while (target := one.pick("c", 0, tried)) is not None:
        tried.append(target)
    assert sorted(tried) == sorted(targets)


@given(TARGETS, STEPS)
def test_affinity_holds_within_its_time_and_never_beyond_the_list(
    targets: tuple[Target, ...], steps: list[tuple[str, str | tuple[Target, ...], int]]
) -> None:
    seconds, now = 10.0, 0.0
    one = balancer(*targets, seconds=seconds)
    last: dict[str, tuple[Target, float]] = {}
    for what, argument, number in steps:
        if what == "change" and not isinstance(argument, str):
            targets, seconds = argument, float(number)
            one.change(targets, seconds)
        elif isinstance(argument, str):
            now += number
            target = one.pick(argument, now)
            assert target in targets
            had, until = last.get(argument, (None, 0.0))
            if seconds and now < until and had in targets:
                assert target == had
            if seconds:
                assert target is not None
                last[argument] = target, now + seconds


def test_the_time_of_a_client_begins_anew_with_each_connection() -> None:
    one = balancer(A, B, seconds=10)
    assert [one.pick("c", now) for now in (0, 9, 18, 28)] == [A, A, A, B]


def test_a_client_whose_endpoint_failed_gets_another_for_good() -> None:
    one = balancer(A, B, C, seconds=10)
    assert one.pick("c", 0) == A
    assert one.pick("c", 1, (A,)) == B
    assert one.pick("c", 2) == B


def test_both_lists_of_a_port_remember_together() -> None:
    shared = Affinity()
    cluster = balancer(A, B, C, seconds=10, affinity=shared)
    local = balancer(B, C, seconds=10, affinity=shared)
    assert (cluster.pick("x", 0), cluster.pick("y", 0)) == (A, B)
    assert local.pick("y", 1) == B
    # x has an endpoint that is not local, so it gets a local one and keeps it everywhere.
    assert local.pick("x", 1) == B
    assert cluster.pick("x", 2) == B


def test_clients_whose_time_is_over_are_let_go() -> None:
    table = Affinity()
    one = balancer(A, B, seconds=10, affinity=table)
    for client in range(100):
        one.pick(str(client), client / 10)
    assert len(table) == 100
    one.pick("late", 15.01)
    assert len(table) == 50


def test_who_came_longest_ago_is_let_go_when_there_are_too_many() -> None:
    table = Affinity(limit=3)
    one = balancer(A, B, C, D, seconds=100, affinity=table)
    for client, now in zip("abcad", count(), strict=False):
        one.pick(client, now)
    assert len(table) == 3
    assert {client for client in "abcd" if table.get(client, 5)} == {"a", "c", "d"}


def test_nothing_is_picked_where_there_is_nothing() -> None:
    assert balancer().pick("c", 0) is None
    assert balancer(A, seconds=5).pick("c", 0, (A,)) is None
