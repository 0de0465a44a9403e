"""nftables mode on Debian's kernel: refusals, listings and packets are as on the newest kernel."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from kproxy.lab.deployment import Deployment
from kproxy.lab.namespaces import Namespace
from kproxy.model.plans import Family
from kproxy.netfilter.kernel import KernelNftables
from kproxy.netfilter.support import missing
from tests.netfilter.test_semantics import CASES, V4, numbers
from tests.netfilter.values import TABLE, difference, elements, everything, sets
from tests.nftables.plans import build_plan, settings
from tests.nftables_guest.conftest import CHOSEN, SERVED
from tests.nftables_mode.test_real_kernel import Rig

pytestmark = pytest.mark.ipvs_kernel

WIDE, NARROW = ("10.0.0.0/8",), ("10.9.0.0/16", "192.0.2.0/24")


@pytest.fixture
def space() -> Iterator[Namespace]:
    with closing(Namespace("nftables")) as made:
        yield made


@pytest.fixture
def kernel(space: Namespace) -> Iterator[KernelNftables]:
    with space.call(KernelNftables) as found:
        yield found


def test_nothing_is_missing(kernel: KernelNftables) -> None:
    assert [line for family in Family for line in missing(kernel, family, platform.release())] == []
    assert kernel.generation() == 1


def test_the_same_is_refused(kernel: KernelNftables) -> None:
    assert kernel.apply(V4, everything(V4)) == {}
    found = {name: numbers(kernel.check(V4, case.operations)) for name, case in CASES.items()}
    assert found == {name: case.wrong for name, case in CASES.items()}


@pytest.mark.parametrize("family", Family)
def test_what_was_made_is_listed(kernel: KernelNftables, family: Family) -> None:
    assert kernel.apply(family, everything(family)) == {}
    listing = kernel.listing(family, TABLE)
    assert listing is not None
    assert {name: listed.spec for name, listed in listing.sets.items()} == sets(family)
    assert all(difference(listing.sets[name], wanted) == ([], []) for name, wanted in elements(family).items())


def test_source_ranges_become_wider_and_narrower_in_one_transaction(space: Namespace) -> None:
    """Old kernels do not add a network that overlaps another, and do not report it."""
    with ExitStack() as stack:
        rig = space.call(Rig, settings())
        stack.callback(space.call, rig.close)
        for ranges in (WIDE, NARROW, WIDE, (), NARROW):
            plan = build_plan("web", load_balancer_ips=("203.0.113.5",), source_ranges=ranges)
            assert not space.call(rig.want, plan).rejected
            assert space.call(rig.differs) == []


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("name", CHOSEN)
def test_packets_are_treated_as_required(running: Deployment, name: str, family: Family) -> None:
    scenario = next(scenario for scenario in SERVED if scenario.name == name)
    assert running.faults(scenario, family) == {}
