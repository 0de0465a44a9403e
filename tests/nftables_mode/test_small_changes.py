"""A change costs what it changes; a large one is written in portions, each of which leaves a working table."""

from __future__ import annotations

import pytest

from kproxy.model.plans import Endpoint, Family, Protocol, ServicePlan
from kproxy.modes.nftables.delta import Delta, transactions
from kproxy.modes.nftables.names import TABLE, Balancer, Kind
from kproxy.modes.nftables.render import lay_out, render_base, render_port
from kproxy.netfilter.objects import Verdict
from kproxy.netfilter.operations import AddElements, AddTable, DeleteElements, Operation
from tests.nftables.plans import build_plan, settings
from tests.nftables_mode.rigs import Rig, comparison

WEB = build_plan("web", cluster=(1, 2, 3))
KUBE_PROXY = (AddTable("kube-proxy"),)


def many(number: int) -> list[ServicePlan]:
    """So many Services with three endpoints each."""
    ends = tuple(Endpoint(f"10.244.9.{n}", 80) for n in (1, 2, 3))
    return [
        build_plan(f"other-{n}", cluster_ip=f"10.97.{n >> 8}.{n & 255}", cluster=(), reachable=ends, has_endpoints=True)
        for n in range(number)
    ]


def elements_in(operations: tuple[Operation, ...]) -> int:
    return sum(len(op.elements) for op in operations if isinstance(op, AddElements | DeleteElements))


@pytest.mark.parametrize(
    ("old", "new", "most"),
    [
        pytest.param([WEB], [build_plan("web", cluster=(1, 2, 9))], 4, id="an endpoint is replaced"),
        pytest.param([WEB], [build_plan("web", cluster=(1, 2))], 4, id="an endpoint goes"),
        pytest.param([], [WEB], 8, id="a Service comes"),
        pytest.param([WEB], [], 8, id="a Service goes"),
        pytest.param([WEB], [build_plan("web", cluster=(1, 2, 3), affinity_seconds=9)], 5, id="affinity"),
    ],
)
def test_a_change_costs_the_same_in_any_cluster(old: list[ServicePlan], new: list[ServicePlan], most: int) -> None:
    costs = set()
    for number in (1, 300):
        rig = Rig()
        rig.plans = {plan.key: plan for plan in (*many(number), *old)}
        rig.check()
        listings, before = rig.kernel.listings, len(rig.kernel.applied)
        outcome = rig.want(*new, gone=[plan for plan in old if not new])
        (operations,) = rig.kernel.applied[before:]
        costs.add((len(operations), elements_in(operations), outcome.bytes_written))
        assert (outcome.transactions, rig.kernel.listings) == (1, listings)
        assert elements_in(operations) <= most
        assert rig.held() == rig.wanted()
    assert len(costs) == 1


def test_a_plan_that_does_not_differ_is_not_written() -> None:
    rig = Rig()
    rig.check()
    rig.want(WEB)
    before = rig.kernel.applies
    assert rig.want(WEB).transactions == 0
    assert rig.kernel.applies == before


def test_others_transactions_on_other_tables_cost_no_listing() -> None:
    rig = Rig()
    rig.check()
    other = Rig(rig.kernel, settings(Family.IPV6))
    other.check()
    listings = rig.kernel.listings
    rig.want(WEB)
    other.want(build_plan("web", family=Family.IPV6))
    rig.want(build_plan("web", cluster=(4,)))
    assert rig.kernel.listings == listings
    assert rig.held() == rig.wanted()
    assert other.held() == other.wanted()


def test_a_shared_chain_comes_with_its_first_frontend_and_goes_with_its_last() -> None:
    rig = Rig()
    rig.check()
    name = Balancer(Kind.CLUSTER, 3).name
    for plans, there in (([WEB], True), (many(1), True)):
        rig.want(*plans)
        assert (name in rig.held()[1]) is there
    rig.want(gone=[WEB])
    rig.want(*[build_plan("other-0", cluster_ip="10.97.0.0", cluster=(1,))])
    assert name not in rig.held()[1]


@pytest.mark.parametrize("old", [[], [WEB, build_plan("gone", node_port=30001)]], ids=["from nothing", "changed"])
def test_portions_are_small_and_every_verdict_has_its_endpoints_at_every_moment(old: list[ServicePlan]) -> None:
    rig = Rig()
    rig.plans = {plan.key: plan for plan in old}
    rig.check()
    chosen = rig.settings
    new = [build_plan("web", cluster=(1, 2, 3, 4, 5)), build_plan("more", cluster=(1, 2, 3)), *many(20)]
    layout = lay_out(render_base(chosen), [(p.key, render_port(p, chosen)) for p in new])
    listing = rig.kernel.listing(Family.IPV4, TABLE)
    assert listing is not None
    delta = comparison(listing, layout)
    pieces = transactions(delta, layout.sets, most=3)
    assert len(pieces) > 5
    for piece in pieces:
        assert elements_in(tuple(piece)) <= 4  # three, or two pairs of a former and a new one
        assert rig.kernel.apply(Family.IPV4, piece) == {}
        _, _, elements = rig.held()
        slots = {element.key for element in elements.get("endpoints", ())}
        for element in elements.get("services", ()):
            assert isinstance(element.data, Verdict)
            if element.data.chain.startswith("cluster-"):
                count = int(element.data.chain.removeprefix("cluster-"))
                assert {(*element.key, slot) for slot in range(count)} <= slots
    rig.plans = {plan.key: plan for plan in new}
    assert rig.held() == rig.wanted()


def test_a_table_is_replaced_in_one_transaction() -> None:
    layout = lay_out(render_base(settings()), [(WEB.key, render_port(WEB, settings()))])
    delta = Delta(
        replace=True, sets=list(layout.sets.values()), missing={n: list(e) for n, e in layout.elements.items()}
    )
    assert len(transactions(delta, layout.sets, most=2)) == 1


def test_abandoned_udp_frontends_are_reported() -> None:
    rig = Rig()
    dns = build_plan("dns", protocol=Protocol.UDP, node_port=30053)
    rig.plans = {plan.key: plan for plan in (WEB, dns)}
    rig.check()
    heir = Rig(rig.kernel)
    outcome = heir.check()
    assert {(f.ip, f.port, f.protocol) for f in outcome.abandoned} == {
        (dns.cluster_ip, 80, Protocol.UDP),
        ("", 30053, Protocol.UDP),
    }
