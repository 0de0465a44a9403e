"""What the old mode left goes once every family stands in the new one, and no sooner."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kproxy.config.fields import ProxyMode
from kproxy.errors import KernelError
from kproxy.lab.proxies import wait_for
from kproxy.model.plans import Family
from kproxy.modes.base import Outcome
from kproxy.sync.proxier import Report
from kproxy.sync.schedule import Work
from kproxy.sync.stale_rules import ModeRules, StaleRules


class Kernel:
    """Something that a mode left. busy: whether connections use it; wrong: what removing it fails with, in order."""

    def __init__(self) -> None:
        self.there, self.busy = True, False
        self.wrong: list[list[str] | KernelError] = []

    def remove(self) -> list[str]:
        wrong = self.wrong.pop(0) if self.wrong else []
        if isinstance(wrong, KernelError):
            raise wrong
        self.there = bool(wrong)
        return wrong


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def leftovers(kernel: Kernel) -> Callable[..., StaleRules]:
    def make(mode: ProxyMode = ProxyMode.IPTABLES, linger: float = 60.0) -> StaleRules:
        left = ModeRules(kernel.remove, lambda: kernel.busy)
        return StaleRules(mode, {ProxyMode.IPVS: left}, list(Family), linger)

    return make


def synced(family: Family, work: Work = Work.EVERYTHING) -> Report:
    return Report(family, work, 0.0, Outcome())


def sync_all(found: StaleRules) -> None:
    for family in Family:
        found.synced(synced(family))


def test_it_goes_when_all_families_stand(kernel: Kernel, leftovers: Callable[..., StaleRules]) -> None:
    found = leftovers()
    found.synced(synced(Family.IPV4))
    found.synced(synced(Family.IPV6, Work.CHANGES))
    assert kernel.there
    assert not found.established
    found.synced(synced(Family.IPV6))
    assert found.established
    assert wait_for(lambda: not kernel.there, 30)


def test_a_modes_own_state_stays(kernel: Kernel, leftovers: Callable[..., StaleRules]) -> None:
    found = leftovers(ProxyMode.IPVS)
    sync_all(found)
    found.stop()
    assert kernel.there


def test_connections_that_still_go_through_it_are_waited_for(
    kernel: Kernel, leftovers: Callable[..., StaleRules]
) -> None:
    kernel.busy = True
    found = leftovers()
    sync_all(found)
    assert not wait_for(lambda: not kernel.there, 0.3)
    kernel.busy = False
    assert wait_for(lambda: not kernel.there, 30)


def test_they_are_not_waited_for_for_ever(kernel: Kernel, leftovers: Callable[..., StaleRules]) -> None:
    kernel.busy = True
    sync_all(leftovers(linger=0.5))
    assert wait_for(lambda: not kernel.there, 30)


def test_an_end_of_the_daemon_ends_the_waiting(kernel: Kernel, leftovers: Callable[..., StaleRules]) -> None:
    kernel.busy = True
    found = leftovers()
    sync_all(found)
    found.stop()
    assert kernel.there


@pytest.mark.parametrize("wrong", [["set in use"], KernelError("no answer")], ids=["left", "failed"])
def test_what_would_not_go_is_tried_again(
    kernel: Kernel, leftovers: Callable[..., StaleRules], wrong: list[str] | KernelError
) -> None:
    kernel.wrong = [wrong]
    found = leftovers()
    sync_all(found)
    assert wait_for(lambda: not kernel.wrong, 30)

    def again() -> bool:
        found.synced(synced(Family.IPV4))
        return not kernel.there

    assert wait_for(again, 30)
