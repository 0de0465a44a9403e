"""Session affinity: a client that was led somewhere is led there again, as long as it is remembered."""

from __future__ import annotations

from collections.abc import Callable

from kproxy.model.plans import Protocol
from kproxy.trace.outcome import Probe
from tests.model.builders import endpoint, service, slice_
from tests.trace.worlds import Client, World, to

POD, OTHER = Client("10.244.1.50", "veth5"), Client("10.244.1.51", "veth6")
ENDS = ("10.244.1.7:8080", "10.244.1.8:8080", "10.244.2.9:8080")
SLICE = slice_("web-1", [endpoint(e.partition(":")[0]) for e in ENDS])
VIP = "10.96.0.1"


def remembering(world: Callable[..., World]) -> World:
    config = {"clientIP": {"timeoutSeconds": 60}}
    return world((service(sessionAffinity="ClientIP", sessionAffinityConfig=config), SLICE))


def test_a_new_client_is_led_anywhere_and_remembered(world: Callable[..., World]) -> None:
    outcome = remembering(world).trace(Probe(POD.ip, VIP, Protocol.TCP, 80, POD.interface), None)
    assert outcome.chances == to(*ENDS)
    assert all(memory.client == POD.ip for branch in outcome.branches for memory in branch.remembers)
    assert len({branch.remembers for branch in outcome.branches}) == len(ENDS)


def test_a_client_that_is_remembered_goes_where_it_went(world: Callable[..., World]) -> None:
    node = remembering(world)
    for branch in node.trace(Probe(POD.ip, VIP, Protocol.TCP, 80, POD.interface), None).branches:
        for age, meets in ((0, to(branch.verdict.endpoint)), (59, to(branch.verdict.endpoint)), (61, to(*ENDS))):
            assert node.ask(POD, VIP, affinity=dict.fromkeys(branch.remembers, age)) == meets
        assert node.ask(OTHER, VIP, affinity=dict.fromkeys(branch.remembers, 0)) == to(*ENDS)


def test_without_affinity_nothing_is_remembered(world: Callable[..., World]) -> None:
    outcome = world((service(), SLICE)).trace(Probe(POD.ip, VIP, Protocol.TCP, 80, POD.interface), None)
    assert {branch.remembers for branch in outcome.branches} == {frozenset()}
