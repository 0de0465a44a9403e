"""The distribution of connections over endpoints, by scheduler."""

from __future__ import annotations

import json
import socket
from collections import Counter
from contextlib import ExitStack

import pytest

from kproxy.model.plans import Family, Protocol, ServicePlan
from tests.ipvs.nodes import CLIENTS, PATIENCE, Node

pytestmark = pytest.mark.ipvs_kernel

FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda f: f.value)


def held_open(node: Node, plan: ServicePlan, connections: int) -> Counter[str]:
    """Where so many connections lead that stay open all at the same time."""
    with ExitStack() as stack:
        return Counter(stack.enter_context(node.held(plan))[0] for _ in range(connections))


@FAMILIES
def test_rr_takes_turns(node: Node, family: Family) -> None:
    tcp, udp = node.plan(family), node.plan(family, Protocol.UDP)
    node.serve(family, tcp, udp)
    for plan in (tcp, udp):
        answers = node.ask(plan, 6)
        assert sorted(answers[:3]) == ["a", "b", "c"]
        assert answers[3:] == answers[:3], node.retries()


@FAMILIES
def test_wrr_respects_weights_and_edited_weights_are_repaired(node: Node, family: Family) -> None:
    plan = node.plan(family)
    node.serve(family, plan, scheduler="wrr")
    assert node.counts(plan, 6) == {"a": 2, "b": 2, "c": 2}
    assert not node.notices(family, 1)
    node.set_weights(plan, a=3, b=2)
    assert node.counts(plan, 12) == {"a": 6, "b": 4, "c": 2}
    assert node.notices(family, 1)
    assert node.check(family).repaired
    assert node.counts(plan, 6) == {"a": 2, "b": 2, "c": 2}


@FAMILIES
@pytest.mark.parametrize(
    ("scheduler", "weights", "expected"),
    [
        ("lc", {}, {"a": 2, "b": 2, "c": 2}),
        ("wlc", {"a": 2}, {"a": 4, "b": 2, "c": 2}),
    ],
)
def test_connections_are_scheduled_to_the_endpoint_with_the_fewest(
    node: Node, family: Family, scheduler: str, weights: dict[str, int], expected: dict[str, int]
) -> None:
    plan = node.plan(family)
    node.serve(family, plan, scheduler=scheduler)
    node.set_weights(plan, **weights)
    assert held_open(node, plan, sum(expected.values())) == expected


@FAMILIES
def test_sh_keeps_a_client_where_it_is(node: Node, family: Family) -> None:
    plan = node.plan(family)
    node.serve(family, plan, scheduler="sh")
    answers = [node.ask(plan, 4, client) for client in range(len(CLIENTS[family]))]
    assert [len(set(each)) for each in answers] == [1] * len(answers)
    assert len({each[0] for each in answers}) > 1


@FAMILIES
def test_mh_maps_a_client_port_to_the_same_endpoint_of_every_service(node: Node, family: Family) -> None:
    """As it would on every node: what it chooses depends on nothing else."""
    one, other = (node.plan(family, Protocol.UDP) for _ in range(2))
    node.serve(family, one, other, scheduler="mh")
    ports = range(40000, 40012)

    def ask(plan: ServicePlan) -> list[str]:
        answers = []
        for port in ports:
            kind = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
            with socket.socket(kind, socket.SOCK_DGRAM) as client:
                client.bind((CLIENTS[family][0], port))
                client.connect((plan.cluster_ip, plan.port))
                client.settimeout(PATIENCE)
                client.send(b"who\n")
                answers.append(json.loads(client.recv(4096))["pod"])
        return answers

    answers = node.client.call(ask, one)
    assert node.client.call(ask, other) == answers
    assert set(answers) == {"a", "b", "c"}
