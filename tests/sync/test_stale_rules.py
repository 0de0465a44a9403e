"""What an earlier mode left is removed once every family stands in the new one, and no sooner."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from kproxy.clocks import SystemClock
from kproxy.config.fields import ProxyMode
from kproxy.containment import Containment
from kproxy.errors import KernelError
from kproxy.lab.proxies import wait_for
from kproxy.model.plans import Family
from kproxy.sync.stale_rules import ModeRules, StaleRules


class Kernel:
    """What a mode left. busy: whether connections use it. wrong: what removing it fails with, in order.

    While `open` is not set, a removal hangs, as a command may that gets no answer.
    """

    def __init__(self) -> None:
        self.there, self.busy, self.removals = True, False, 0
        self.wrong: list[list[str] | Exception] = []
        self.open = threading.Event()
        self.open.set()

    def remove(self) -> list[str]:
        self.removals += 1
        assert self.open.wait(60)
        wrong = self.wrong.pop(0) if self.wrong else []
        if isinstance(wrong, Exception):
            raise wrong
        self.there = bool(wrong)
        return wrong


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.open.set()


Make = Callable[..., StaleRules]


@pytest.fixture
def containment() -> Containment:
    return Containment(SystemClock())


@pytest.fixture
def stale_rules(kernel: Kernel, containment: Containment) -> Make:
    def make(mode: ProxyMode = ProxyMode.IPTABLES, linger: float = 60.0) -> StaleRules:
        left = ModeRules(kernel.remove, lambda: kernel.busy)
        return StaleRules(mode, {ProxyMode.IPVS: left}, list(Family), containment, linger)

    return make


def sync_all(found: StaleRules) -> None:
    for family in Family:
        found.synced(family)


def test_they_are_removed_when_all_families_stand(kernel: Kernel, stale_rules: Make) -> None:
    found = stale_rules()
    found.synced(Family.IPV4)
    found.synced(Family.IPV4)
    assert kernel.there
    assert not found.established
    found.synced(Family.IPV6)
    assert found.established
    assert wait_for(lambda: not kernel.there, 30)


def test_a_modes_own_rules_stay(kernel: Kernel, stale_rules: Make) -> None:
    found = stale_rules(ProxyMode.IPVS)
    sync_all(found)
    assert found.stop(30)
    assert kernel.there


def test_connections_that_still_use_them_are_waited_for(kernel: Kernel, stale_rules: Make) -> None:
    kernel.busy = True
    sync_all(stale_rules())
    assert not wait_for(lambda: not kernel.there, 0.3)
    kernel.busy = False
    assert wait_for(lambda: not kernel.there, 30)


def test_connections_are_not_waited_for_for_ever(kernel: Kernel, stale_rules: Make) -> None:
    kernel.busy = True
    sync_all(stale_rules(linger=0.5))
    assert wait_for(lambda: not kernel.there, 30)


def test_stopping_ends_the_wait_and_they_are_removed_after_resuming(kernel: Kernel, stale_rules: Make) -> None:
    kernel.busy = True
    found = stale_rules()
    sync_all(found)
    assert found.stop(30)
    kernel.busy = False
    sync_all(found)
    assert found.stop(30)
    assert (kernel.there, kernel.removals) == (True, 0)
    found.resume()
    found.synced(Family.IPV6)
    assert wait_for(lambda: not kernel.there, 30)


def test_stopping_waits_for_a_removal_under_way_no_longer_than_asked(kernel: Kernel, stale_rules: Make) -> None:
    kernel.open.clear()
    found = stale_rules()
    sync_all(found)
    assert wait_for(lambda: kernel.removals == 1, 30)
    assert not found.stop(0.05)
    kernel.open.set()
    assert found.stop(30)
    assert not kernel.there


@pytest.mark.parametrize(
    "wrong",
    [["set in use"], KernelError("no answer"), ZeroDivisionError("division by zero")],
    ids=["left", "failed", "failed unexpectedly"],
)
def test_what_could_not_be_removed_is_tried_again_after_the_next_full_sync(
    kernel: Kernel, stale_rules: Make, containment: Containment, wrong: list[str] | Exception
) -> None:
    kernel.wrong = [wrong]
    found = stale_rules()
    sync_all(found)
    assert wait_for(lambda: not kernel.wrong, 30)

    def again() -> bool:
        found.synced(Family.IPV4)
        return not kernel.there

    assert wait_for(again, 30)
    assert found.stop(30)
    assert containment.counts()["stale-rules"] == isinstance(wrong, ZeroDivisionError)
    assert containment.failing() == []
