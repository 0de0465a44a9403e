"""Graceful termination of endpoints with open connections, as the kernel and the clients see it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import pytest

from kproxy.lab import probes
from kproxy.lab.probes import Answered, Nothing
from kproxy.model.plans import Family, Protocol
from kproxy.modes.ipvs.graceful_termination import GRACE
from tests.ipvs.nodes import CLIENTS, PATIENCE, Node, soon, with_pods

pytestmark = pytest.mark.ipvs_kernel

FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda f: f.value)


@FAMILIES
def test_its_connection_continues_new_ones_are_scheduled_elsewhere_and_it_may_return(
    node: Node, family: Family
) -> None:
    plan = node.plan(family, pods=("a", "b"))
    node.serve(family, plan)
    with node.held(plan) as (left, connection):
        stays = "b" if left == "a" else "a"
        node.change(with_pods(plan, [stays]))
        assert node.weights(plan) == {stays: 1, left: 0}
        assert node.ask(plan, 4) == [stays] * 4
        node.housekeeping(family, after=GRACE - 1)
        assert connection.alive(PATIENCE)

        assert node.restart(family).transactions == 0, "a new dataplane finds it as it should be"
        node.housekeeping(family, after=GRACE - 1)
        assert node.weights(plan) == {stays: 1, left: 0}
        assert connection.alive(PATIENCE)

        node.change(plan)
        assert node.weights(plan) == {stays: 1, left: 1}
        assert sorted(node.ask(plan, 4)) == ["a", "a", "b", "b"]
        node.housekeeping(family, after=GRACE + 1)
        assert node.weights(plan) == {stays: 1, left: 1}
        assert connection.alive(PATIENCE)


def test_it_is_deleted_when_its_last_connection_has_ended(node: Node) -> None:
    """Of both families at once: the kernel takes ten seconds to forget a connection that was reset."""
    plans = [node.plan(family, pods=["a"]) for family in Family]
    for plan in plans:
        node.serve(plan.family, plan)
    with ExitStack() as stack:
        for plan in plans:
            stack.enter_context(node.held(plan))
            node.change(with_pods(plan, ["b"]))
            node.housekeeping(plan.family, after=1)
            assert node.weights(plan) == {"a": 0, "b": 1}
            node.restart(plan.family)  # which does not keep it from being looked after
            assert not node.idle(plan, "a")
    for plan in plans:
        assert soon(partial(node.idle, plan, "a"))
        node.housekeeping(plan.family, after=1)
        assert node.weights(plan) == {"b": 1}


@FAMILIES
def test_after_fifteen_minutes_its_connections_are_reset(node: Node, family: Family) -> None:
    plan = node.plan(family, pods=["a"])
    node.serve(family, plan)
    with node.held(plan) as (_, connection):
        node.change(with_pods(plan, ["b"]))
        node.housekeeping(family, after=15 * 60 - 1)
        assert node.weights(plan) == {"a": 0, "b": 1}
        node.housekeeping(family, after=1)
        assert node.weights(plan) == {"b": 1}
        assert connection.failure(PATIENCE) is Nothing.CUT, "it must not hang"
        assert node.ask(plan) == ["b"]


@FAMILIES
def test_with_udp_it_is_deleted_at_once_and_its_clients_are_scheduled_elsewhere(node: Node, family: Family) -> None:
    plan = node.plan(family, Protocol.UDP, pods=["a"])
    node.serve(family, plan)

    def pods() -> list[str]:
        outcomes = []
        with probes.udp_client(plan.cluster_ip, plan.port, CLIENTS[family][0]) as client:
            outcomes.append(client.ask(PATIENCE))
            node.change(with_pods(plan, ["b"]))
            outcomes += [client.ask(1) for _ in range(4)]
        return [each.pod if isinstance(each, Answered) else each.value for each in outcomes]

    answers = node.client.call(pods)
    assert node.weights(plan) == {"b": 1}
    assert answers[0] == "a"
    assert answers[-1] == "b"
    assert answers.count("a") == 1, "the port of a client that goes on is no reason to lead it to a pod that left"
