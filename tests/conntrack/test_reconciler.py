"""The table is read when something changed, and what a failure left undone stays due."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.conntrack import table as conntrack_table
from kproxy.conntrack.reconciler import Reconciled, Reconciler
from kproxy.conntrack.stale_flows import Flow
from kproxy.conntrack.table import KernelConntrack
from kproxy.errors import KernelError, NetlinkError
from kproxy.kernel import netlink
from kproxy.model.plans import Endpoint, Family, Frontend, PortKey, Protocol, ServicePlan
from tests.fakes.conntrack import FakeConntrack

UDP, TCP = Protocol.UDP, Protocol.TCP
KEY = PortKey("default", "dns", "", UDP)
NODE_IPS = {"192.168.0.1"}
OLD, NEW = "10.244.0.1", "10.244.0.2"


def plan(*endpoints: str, key: PortKey = KEY, cluster_ip: str = "10.96.0.10", node_port: int = 0) -> ServicePlan:
    reachable = tuple(Endpoint(ip, 53) for ip in endpoints)
    return ServicePlan(
        key=key, family=Family.IPV4, cluster_ip=cluster_ip, port=53, node_port=node_port, reachable=reachable
    )


def flow(answers: str, source_port: int = 4000, to: str = "10.96.0.10", port: int = 53) -> Flow:
    return Flow(UDP, "10.244.9.9", source_port, to, port, answers, 53)


@pytest.fixture
def table() -> FakeConntrack:
    return FakeConntrack()


@pytest.fixture
def reconciler(table: FakeConntrack) -> Reconciler:
    ticks: Iterator[int] = count()
    return Reconciler(Family.IPV4, table, clock=lambda: next(ticks) / 4)


def left(table: FakeConntrack) -> list[str]:
    return [f.reply_source for f in table.flows(Family.IPV4)]


def test_a_restart_keeps_the_flows_to_serving_endpoints(table: FakeConntrack, reconciler: Reconciler) -> None:
    table.add(flow(NEW, 1))
    table.add(flow(OLD, 2))
    done = reconciler.reconcile({KEY: plan(NEW)}, None, NODE_IPS)
    assert done == Reconciled(ran=True, seen=2, deleted=1, seconds=0.25)
    assert left(table) == [NEW]


@pytest.mark.parametrize(
    ("after", "survivors"),
    [
        pytest.param({KEY: plan(NEW)}, [NEW], id="an endpoint stops serving"),
        pytest.param({KEY: plan()}, [], id="no endpoint is left"),
        pytest.param({}, [], id="the Service is deleted"),
        pytest.param({KEY: plan(OLD, NEW, cluster_ip="10.96.0.11")}, [], id="the cluster IP is another"),
        pytest.param({KEY: plan(OLD, NEW)}, [OLD, NEW], id="nothing changes"),
    ],
)
def test_a_change_of_one_port(
    table: FakeConntrack, reconciler: Reconciler, after: dict[PortKey, ServicePlan], survivors: list[str]
) -> None:
    reconciler.reconcile({KEY: plan(OLD, NEW)}, None, NODE_IPS)
    table.add(flow(OLD, 1))
    table.add(flow(NEW, 2))
    reconciler.reconcile(after, [KEY], NODE_IPS)
    assert left(table) == survivors


def test_a_lost_node_port_takes_its_flows_along(table: FakeConntrack, reconciler: Reconciler) -> None:
    reconciler.reconcile({KEY: plan(OLD, node_port=30053)}, None, NODE_IPS)
    table.add(flow(OLD, 1, "192.168.0.1", 30053))
    table.add(flow("192.168.0.2", 2, "192.168.0.2", 30053))
    assert reconciler.reconcile({KEY: plan(OLD)}, [KEY], NODE_IPS).deleted == 1
    assert left(table) == ["192.168.0.2"]


def test_the_table_is_not_read_when_no_flow_can_be_stale(table: FakeConntrack, reconciler: Reconciler) -> None:
    web = PortKey("default", "web", "", TCP)
    plans = {KEY: plan(OLD), web: plan(OLD, key=web)}
    reconciler.reconcile(plans, None, NODE_IPS)
    assert table.dumps == 1
    assert reconciler.reconcile(plans, [KEY], NODE_IPS) == Reconciled()
    assert reconciler.reconcile({KEY: plan(OLD), web: plan(NEW, key=web)}, [web], NODE_IPS) == Reconciled()
    assert reconciler.reconcile({KEY: plan(OLD)}, [web], NODE_IPS) == Reconciled()
    assert table.dumps == 1
    assert reconciler.reconcile(plans, None, NODE_IPS).ran
    assert table.dumps == 2


def test_a_node_without_udp_services_never_reads_the_table(table: FakeConntrack, reconciler: Reconciler) -> None:
    web = PortKey("default", "web", "", TCP)
    reconciler.reconcile({web: plan(OLD, key=web)}, None, NODE_IPS)
    assert table.dumps == 0


def test_what_the_mode_found_abandoned_is_cleaned(table: FakeConntrack, reconciler: Reconciler) -> None:
    table.add(flow(OLD, 1, "10.96.0.99"))
    table.add(flow(OLD, 2))
    abandoned = [Frontend("10.96.0.99", 53, UDP), Frontend("10.96.0.10", 53, UDP), Frontend("10.96.0.10", 80, TCP)]
    assert reconciler.reconcile({KEY: plan(OLD)}, None, NODE_IPS, abandoned).deleted == 1
    assert [f.destination for f in table.flows(Family.IPV4)] == ["10.96.0.10"]


def test_a_packet_under_way_during_the_change_is_caught_by_the_next_full_pass(
    table: FakeConntrack, reconciler: Reconciler
) -> None:
    reconciler.reconcile({KEY: plan(OLD)}, None, NODE_IPS)
    reconciler.reconcile({}, [KEY], NODE_IPS)
    table.add(flow(OLD))
    assert reconciler.reconcile({}, None, NODE_IPS).deleted == 1
    # From then on the address may be anybody's.
    table.add(flow(OLD))
    assert reconciler.reconcile({}, None, NODE_IPS).deleted == 0


@pytest.mark.parametrize("after", [{}, {KEY: plan(NEW)}])
def test_after_a_failure_the_same_pass_can_be_repeated_until_it_succeeds(
    table: FakeConntrack, reconciler: Reconciler, after: dict[PortKey, ServicePlan]
) -> None:
    reconciler.reconcile({KEY: plan(OLD)}, None, NODE_IPS)
    table.add(flow(OLD))
    assert not reconciler.due
    table.failure = NetlinkError("list conntrack entries", 105)
    reconciler.note(after, [KEY])
    for _ in range(2):
        with pytest.raises(KernelError, match="No buffer space"):
            reconciler.delete_stale(NODE_IPS)
        assert reconciler.due
    table.failure = None
    assert reconciler.delete_stale(NODE_IPS).deleted == 1
    assert not reconciler.due
    assert reconciler.delete_stale(NODE_IPS) == Reconciled()


STATES = st.dictionaries(st.sampled_from("ab"), st.sets(st.sampled_from([OLD, NEW])))


@given(st.lists(st.tuples(STATES, st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_passes_that_fail_lose_nothing(steps: list[tuple[dict[str, set[str]], bool, bool]]) -> None:
    """A pass that succeeds leaves what it would if none had failed, and flows to endpoints that have come back."""
    everything = [(answers, f"10.96.0.{ord(name)}") for name in "ab" for answers in (OLD, NEW)]
    flows = [flow(answers, 4000 + number, to) for number, (answers, to) in enumerate(everything)]
    steady, failing = FakeConntrack(), FakeConntrack()
    reconcilers = [(Reconciler(Family.IPV4, each), each) for each in (steady, failing)]
    before: dict[PortKey, ServicePlan] = {}
    for number, (state, full, fails) in enumerate([*steps, ({}, False, False)]):
        wanted = {
            key: plan(*endpoints, key=key, cluster_ip=f"10.96.0.{ord(name)}")
            for name, endpoints in state.items()
            for key in [PortKey("default", name, "", UDP)]
        }
        touched = None if full or not number else {*before, *wanted}
        for reconciler, table in reconcilers:
            table.failure = KernelError("no answer") if fails and table is failing else None
            if not number:
                for one in flows:
                    table.add(one)
            reconciler.note(wanted, touched)
            with contextlib.suppress(KernelError):  # without any UDP Service the table is not even read
                reconciler.delete_stale(NODE_IPS)
        before = wanted
        if not fails:
            served = {(f"10.96.0.{ord(name)}", ip) for name, endpoints in state.items() for ip in endpoints}
            kept = set(failing.flows(Family.IPV4)) - set(steady.flows(Family.IPV4))
            assert {(f.destination, f.reply_source) for f in kept} <= served


def test_a_plan_that_cannot_be_read_costs_no_other_port_and_is_tried_again(
    table: FakeConntrack, reconciler: Reconciler
) -> None:
    class Broken(dict[PortKey, ServicePlan]):
        def get(self, key: PortKey, default: object = None) -> ServicePlan | None:  # type: ignore[override]
            if key.name == "broken":
                raise ZeroDivisionError
            return super().get(key)

    broken = PortKey("default", "broken", "", UDP)
    good = {KEY: plan(OLD), broken: plan(OLD, key=broken, cluster_ip="10.96.0.11")}
    reconciler.reconcile(good, None, NODE_IPS)
    table.add(flow(OLD, 1))
    table.add(flow(OLD, 2, "10.96.0.11"))
    with pytest.raises(ZeroDivisionError):
        reconciler.note(Broken({KEY: plan(NEW)}), [KEY, broken])
    assert reconciler.delete_stale(NODE_IPS).deleted == 1
    assert [f.destination for f in table.flows(Family.IPV4)] == ["10.96.0.11"]
    assert reconciler.due
    assert reconciler.reconcile({KEY: plan(NEW)}, [], NODE_IPS).deleted == 1
    assert not reconciler.due


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0",
        b"\xff" * 40,
        netlink.message(1 << 8, 2, 1, netlink.netfilter(2) + b"\x03\0\1\0"),
        netlink.message(1 << 8, 2, 1, netlink.netfilter(2) + netlink.nested(1, netlink.nested(2, b"\5\0\1\0\x11"))),
    ],
)
@pytest.mark.parametrize("good", [0, 1])
def test_a_dump_that_breaks_off_is_a_kernel_error_and_deletes_nothing(
    monkeypatch: pytest.MonkeyPatch, garbage: bytes, good: int
) -> None:
    class Broken:
        """The kernel's side of a socket: GOOD dumps that are whole, then GARBAGE."""

        left = good
        deleted = 0

        def __init__(self, protocol: int) -> None: ...

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None: ...

        def dump(self, type: int, payload: bytes, request: str) -> list[bytes]:
            Broken.left -= 1
            return [] if Broken.left >= 0 else [garbage]

        def ask_many(self, *_: object, **__: object) -> list[object]:
            Broken.deleted += 1
            return []

    monkeypatch.setattr(conntrack_table, "Socket", Broken)
    sctp = PortKey("default", "sctp", "", Protocol.SCTP)
    reconciler = Reconciler(Family.IPV4, KernelConntrack())
    reconciler.note({KEY: plan(NEW), sctp: plan(NEW, key=sctp, cluster_ip="10.96.0.11")}, None)
    with pytest.raises(KernelError, match="cannot be decoded"):
        reconciler.delete_stale(NODE_IPS)
    assert reconciler.due
    assert Broken.deleted == 0


def test_the_families_are_apart(table: FakeConntrack) -> None:
    v6 = Reconciler(Family.IPV6, table)
    key = PortKey("default", "six", "", UDP)
    table.add(flow(OLD))
    table.add(Flow(UDP, "fd00::1", 1, "fd00::10", 53, "fd00::dead", 53))
    wanted = {
        key: ServicePlan(
            key=key, family=Family.IPV6, cluster_ip="fd00::10", port=53, reachable=(Endpoint("fd00::2", 53),)
        )
    }
    done = v6.reconcile(wanted, None, ())
    assert (done.seen, done.deleted) == (1, 1)
    assert left(table) == [OLD]
