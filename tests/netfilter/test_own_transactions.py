"""Counting our own transactions tells whether others wrote; families that write take turns without a lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from kproxy.netfilter.changes import GENERATIONS, STUCK, WAIT, OwnTransactions, Transaction, following

DEADLINE = 60.0  # seconds; only a deadlock reaches it


class World:
    """A kernel's generation, a clock, and what happens one after the other."""

    def __init__(self) -> None:
        self.generation, self.now = 41, 0.0
        self.own = OwnTransactions(lambda: self.now, self.pause)
        self.stack = ExitStack()
        self.transaction: Transaction | None = None

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def others_write(self) -> None:
        self.generation += 1

    def begin(self) -> None:
        self.transaction = self.stack.enter_context(self.own.under_way())

    def kernel_takes_it(self) -> None:
        self.generation += 1

    def end(self) -> None:
        assert self.transaction is not None
        self.transaction.ended(1)
        self.stack.close()

    def end_outdated(self) -> None:
        assert self.transaction is not None
        self.transaction.ended(0)
        self.stack.close()

    def fail(self) -> None:
        self.stack.close()

    def wait_long(self) -> None:
        self.now += STUCK + 1

    def others_wrote(self) -> bool | None:
        return self.own.others_wrote(lambda: self.generation)


STEPS = {
    "nothing": ([], False),
    "ours": (["begin", "kernel_takes_it", "end"], False),
    "two of ours": (["begin", "kernel_takes_it", "end"] * 2, False),
    "ours that was outdated": (["begin", "end_outdated"], False),
    "somebody else's": (["others_write"], True),
    "somebody else's beside ours": (["begin", "others_write", "kernel_takes_it", "end"], True),
    "ours is on its way": (["begin"], None),
    "ours is taken but not answered": (["begin", "kernel_takes_it"], None),
    "ours is under way, and somebody else wrote": (["begin", "others_write"], None),
    "ours does not return": (["begin", "wait_long"], True),
    "ours failed": (["begin", "fail"], True),
}


@pytest.mark.parametrize("name", STEPS)
def test_whether_others_wrote(name: str) -> None:
    steps, expected = STEPS[name]
    world = World()
    assert world.others_wrote() is True  # nobody counted yet
    world.own.begin(lambda: world.generation)
    for step in steps:
        getattr(world, step)()
    assert world.others_wrote() is expected
    patient = world.own.await_whether_others_wrote(lambda: world.generation)
    assert patient is (expected is not False)


def test_a_transaction_that_begins_during_the_question_leaves_it_open() -> None:
    world = World()
    world.own.begin(lambda: world.generation)

    def read() -> int:
        world.begin()
        world.kernel_takes_it()
        world.end()
        return world.generation

    assert world.own.others_wrote(read) is None
    assert world.others_wrote() is False


def test_patience_outlasts_an_answer_that_is_late_by_moments() -> None:
    world = World()
    world.own.begin(lambda: world.generation)
    world.begin()
    world.kernel_takes_it()
    answered: list[Callable[[], None]] = [world.end]
    world.own._pause = lambda seconds: answered.pop()()
    assert world.own.await_whether_others_wrote(lambda: world.generation) is False


def test_the_kernels_numbers_leave_out_zero() -> None:
    assert [following(GENERATIONS - 1, n) for n in range(4)] == [GENERATIONS - 1, GENERATIONS, 1, 2]


def test_turns_are_taken_in_order() -> None:
    own, order = OwnTransactions(lambda: 0.0), list[str]()
    inside, release = threading.Event(), threading.Event()

    def write(name: str) -> None:
        with own.turn():
            inside.set()
            release.wait(DEADLINE)
            order.append(name)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(write, "first")
        assert inside.wait(DEADLINE)
        second = pool.submit(write, "second")
        release.set()
        first.result(DEADLINE)
        second.result(DEADLINE)
    assert order == ["first", "second"]


def test_a_turn_that_does_not_end_is_waited_for_once_and_then_not_at_all() -> None:
    now = 0.0
    own = OwnTransactions(lambda: now)
    with own.turn():
        with ThreadPoolExecutor(1) as pool:  # waits WAIT seconds of real time
            pool.submit(lambda: own.turn().__enter__()).result(DEADLINE)
        now = WAIT
        for _ in range(1000):
            with own.turn():
                pass
