"""Session affinity: a client keeps its endpoint as long as both exist."""

from __future__ import annotations

from functools import partial

import pytest

from kproxy.kernel.ipvs_codec import Timeouts
from kproxy.model.plans import Family, Protocol
from tests.ipvs.nodes import CLIENTS, Node, soon, with_pods

pytestmark = pytest.mark.ipvs_kernel

FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda f: f.value)


@FAMILIES
def test_each_client_stays_where_it_is(node: Node, family: Family) -> None:
    plan = node.plan(family, affinity_seconds=10800)
    node.serve(family, plan)
    clients = range(len(CLIENTS[family]))
    answers = [node.ask(plan, 3, client) for client in clients]
    assert [len(set(each)) for each in answers] == [1 for _ in clients]
    assert {each[0] for each in answers} == {"a", "b", "c"}
    assert [node.ask(plan, 1, client) for client in clients] == [each[:1] for each in answers]


@FAMILIES
def test_a_client_of_a_removed_endpoint_is_scheduled_anew_except_for_open_connections(
    node: Node, family: Family
) -> None:
    plan = node.plan(family, pods=("a", "b"), affinity_seconds=10800)
    node.serve(family, plan)
    with node.held(plan) as (left, connection):
        stays = "b" if left == "a" else "a"
        assert node.ask(plan, 2) == [left] * 2
        node.change(with_pods(plan, [stays]))
        assert node.weights(plan) == {stays: 1, left: 0}
        assert node.ask(plan, 2) == [stays] * 2
        assert connection.alive()
        node.change(plan)
        assert node.ask(plan, 2) == [stays] * 2, "it is there now"


def test_a_client_that_is_gone_for_long_enough_is_forgotten(node: Node) -> None:
    """Of both families at once, by UDP: the kernel remembers a client for as long as one of its connections."""
    node.ipvs.set_timeouts(Timeouts(udp=1))
    plans = [node.plan(family, Protocol.UDP, affinity_seconds=3) for family in Family]
    first: list[str] = []
    for plan in plans:
        node.serve(plan.family, plan)
    for plan in plans:
        first += node.ask(plan)
        assert node.ask(plan, 2) == first[-1:] * 2
        assert node.templates(plan) == 1
    for plan, before in zip(plans, first, strict=True):
        assert soon(partial(node.forgot, plan))
        assert node.ask(plan) != [before], "it took its turn among all"
