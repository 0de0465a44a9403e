"""Both families write at the same time, each in its own thread: neither waits for the other nor takes it for others."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from kproxy.errors import NetlinkError
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.model.plans import Family, ServicePlan
from kproxy.modes.nftables.names import TABLE
from kproxy.netfilter.changes import OwnTransactions
from kproxy.netfilter.kernel import Expected, KernelNftables
from kproxy.netfilter.objects import Element
from kproxy.netfilter.operations import AddElements, Operation
from tests.fakes.nftables import FakeNftables
from tests.nftables.plans import address, build_plan, settings
from tests.nftables_mode.rigs import Rig
from tests.nftables_mode.test_real_kernel import Rig as RealRig

V4, V6 = Family
DEADLINE = 120.0  # seconds; only a family that waits for the other reaches it
in_kernel = pytest.mark.skipif(bool(unavailable(("nft",))), reason=unavailable(("nft",)))


def plans(family: Family, number: int, ends: int = 8) -> list[ServicePlan]:
    cluster = range(1, ends + 1)
    return [
        build_plan(f"s{n}", family=family, cluster_ip=address(family, 96, n), cluster=cluster)
        for n in range(1, number + 1)
    ]


class Pair:
    """A dataplane for each family over one kernel in memory; `hang` makes the transactions of IPv6 hang."""

    def __init__(self, listening: bool) -> None:
        self.kernel, self.own = FakeNftables(), OwnTransactions()
        self.rigs = {family: Rig(self.kernel, settings(family), self.own, listening) for family in Family}
        self.hanging, self.release = threading.Event(), threading.Event()

    def cold_start(self) -> None:
        for family, rig in self.rigs.items():
            rig.plans = {plan.key: plan for plan in plans(family, 20)}
        with ThreadPoolExecutor(2) as pool:
            for outcome in pool.map(Rig.check, self.rigs.values()):
                assert not outcome.repaired

    def hang(self, where: str) -> None:
        def wait(family: Family) -> None:
            if family is V6 and not self.release.is_set():
                self.hanging.set()
                assert self.release.wait(DEADLINE)

        setattr(self.kernel, where, wait)

    def as_wanted(self) -> bool:
        return all(rig.held() == rig.wanted() for rig in self.rigs.values())


@pytest.mark.parametrize("listening", [False, True])
def test_cold_starts_do_not_disturb_each_other(listening: bool) -> None:
    pair = Pair(listening)
    pair.cold_start()
    assert (pair.kernel.listings, pair.kernel.late) == (2, 0)
    assert [rig.dataplane.drifted() for rig in pair.rigs.values()] == [False, False]
    assert pair.as_wanted()


@pytest.mark.parametrize("where", ["meanwhile", "unanswered"])
@pytest.mark.parametrize("listening", [False, True])
def test_a_family_whose_transaction_hangs_does_not_hold_up_the_other(where: str, listening: bool) -> None:
    pair = Pair(listening)
    pair.cold_start()
    listings = pair.kernel.listings
    pair.hang(where)
    changed = plans(V6, 2, ends=3)
    with ThreadPoolExecutor(2) as pool:
        hung = pool.submit(pair.rigs[V6].want, *changed)
        assert pair.hanging.wait(DEADLINE)
        for ends in (3, 4, 5):
            pool.submit(pair.rigs[V4].want, *plans(V4, 5, ends)).result(DEADLINE)
        drifted = pool.submit(pair.rigs[V4].dataplane.drifted).result(DEADLINE)
        assert not hung.done()
        pair.release.set()
        hung.result(DEADLINE)
    assert pair.as_wanted()
    assert not drifted
    # A family that does not listen yet cannot tell who wrote, and reads its table once.
    assert pair.kernel.listings - listings <= (0 if listening else 1)
    assert not any(rig.dataplane.drifted() for rig in pair.rigs.values())


@pytest.mark.parametrize("listening", [False, True])
def test_what_others_do_while_the_other_family_writes_is_noticed_in_the_end(listening: bool) -> None:
    pair = Pair(listening)
    pair.cold_start()
    pair.hang("unanswered")
    rig = pair.rigs[V4]
    sets, _, _ = rig.held()
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(pair.rigs[V6].want, *plans(V6, 2, ends=3))
        assert pair.hanging.wait(DEADLINE)
        assert not rig.dataplane.drifted()
        stray = Element("cluster-ips", ("10.9.9.9",))
        pair.kernel.edit(V4, AddElements(TABLE, sets["cluster-ips"], [stray]))
        assert rig.dataplane.drifted() is listening
        pair.release.set()
        hung.result(DEADLINE)
    assert rig.dataplane.drifted()
    assert rig.check().repaired
    assert pair.as_wanted()


# ---------------------------------------------------------------- in the kernel


class Gated(KernelNftables):
    """Hangs with a transaction whose generation is known, until it may go on."""

    def __init__(self, hanging: threading.Event, release: threading.Event) -> None:
        super().__init__()
        self._hanging, self._release = hanging, release

    def apply(
        self, family: Family, operations: Sequence[Operation], expected: Expected = None
    ) -> dict[int, NetlinkError]:
        def asked() -> int | None:
            number = expected() if callable(expected) else expected
            if not self._release.is_set():
                self._hanging.set()
                assert self._release.wait(DEADLINE)
            return number

        return super().apply(family, operations, asked)


@pytest.fixture
def netns() -> Iterator[Namespace]:
    space = Namespace("both-families")
    try:
        yield space
    finally:
        space.close()


@pytest.mark.root
@in_kernel
def test_cold_starts_in_the_kernel_do_not_disturb_each_other(netns: Namespace) -> None:
    """While one starts, the other asks all the time whether others wrote; both change their own tables on and on."""

    def start() -> list[tuple[bool, bool, int]]:
        own = OwnTransactions()
        rigs = [RealRig(settings(family), own) for family in Family]

        def run(rig: RealRig) -> bool:
            family = rig.settings.family
            rig.plans = {plan.key: plan for plan in plans(family, 200)}
            repaired, drifted = rig.check().repaired, False
            for ends in range(1, 30):
                drifted |= rig.dataplane.drifted()
                repaired |= rig.want(*plans(family, 40, ends)).repaired
            return repaired or drifted

        try:
            with ThreadPoolExecutor(2) as pool:  # its threads are in the namespace of the one that starts them
                disturbed = list(pool.map(run, rigs))
            return [(d, r.dataplane.drifted(), len(r.differs())) for d, r in zip(disturbed, rigs, strict=True)]
        finally:
            for rig in rigs:
                rig.close()

    assert netns.call(start) == [(False, False, 0)] * 2


@pytest.mark.root
@in_kernel
def test_a_family_that_hangs_in_the_kernel_does_not_hold_up_the_other(netns: Namespace) -> None:
    def run() -> list[tuple[int, bool]]:
        own, hanging, release = OwnTransactions(), threading.Event(), threading.Event()
        release.set()
        rigs = {V4: RealRig(settings(V4), own), V6: RealRig(settings(V6), own, Gated(hanging, release))}
        try:
            for family, rig in rigs.items():
                rig.plans = {plan.key: plan for plan in plans(family, 20)}
                rig.check()
                assert not rig.dataplane.drifted()
            release.clear()
            with ThreadPoolExecutor(2) as pool:
                hung = pool.submit(rigs[V6].want, *plans(V6, 2, 3))
                assert hanging.wait(DEADLINE)
                for ends in (3, 4, 5):
                    pool.submit(rigs[V4].want, *plans(V4, 5, ends)).result(DEADLINE)
                assert not rigs[V4].dataplane.drifted()
                release.set()
                hung.result(DEADLINE)
            return [(len(rig.differs()), rig.dataplane.drifted()) for rig in rigs.values()]
        finally:
            for rig in rigs.values():
                rig.close()

    assert netns.call(run) == [(0, False)] * 2
