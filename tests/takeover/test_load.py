"""The load that the other tests rely on: it keeps its pace, and it does see what users would."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from kproxy.lab.load import Rates, targets

if TYPE_CHECKING:
    from tests.takeover.stages import Stage

SHORT = Rates(patience=0.8)
BEFORE = 0.3  # seconds of load before and after what is done


def test_it_keeps_its_pace_over_all_ways_and_nothing_fails_by_itself(stage: Stage) -> None:
    stage.kube_proxy("iptables")
    start = time.monotonic()
    with stage.clients(Rates(rate=200)) as load:
        time.sleep(1.5)
    seconds = time.monotonic() - start
    made = load.results.made
    assert load.failures() == []
    assert made == load.results.answered
    assert 200 < sum(made.values()) <= 200 * seconds
    assert set(made) == {target.name for target in targets(stage.served)}
    assert max(made.values()) - min(made.values()) <= 1
    assert load.results.held == 60
    assert load.results.beats >= 100


REJECT = ["iptables-nft", "-w", "-t", "filter", "-I", "FORWARD", "-j", "REJECT"]
HARMS = {
    "the rules are flushed": (["iptables-nft", "-w", "-t", "nat", "-F", "KUBE-SERVICES"], {"timed out"}),
    "new connections are refused": (REJECT, {"Connection refused"}),
    "replies are lost": (["nft", "insert rule ip filter FORWARD ct direction reply drop"], {"timed out"}),
}


@pytest.mark.parametrize("harm", HARMS)
def test_it_sees_a_tenth_of_a_second(stage: Stage, harm: str) -> None:
    command, kinds = HARMS[harm]
    stage.kube_proxy("iptables")
    with stage.clients(SHORT) as load:
        time.sleep(BEFORE)
        load.mark(harm)
        stage.space.run(command)
        time.sleep(0.1)
        stage.empty()
        stage.kube_proxy("iptables")
        time.sleep(BEFORE)
    assert load.failures(), load.summary()
    found = {failure.why for failure in load.results.failures}
    assert kinds <= found
    assert any(harm in line for line in load.failures()), "some may have begun just before"


def test_it_sees_an_answer_from_the_wrong_endpoint(stage: Stage) -> None:
    stage.kube_proxy("iptables")
    rule = ["-p", "udp", "-d", "10.96.1.0/24", "-j", "DNAT", "--to-destination", "10.244.1.12:8080"]
    with stage.clients() as load:
        stage.space.run(["iptables-nft", "-w", "-t", "nat", "-I", "PREROUTING", *rule])
        time.sleep(BEFORE)
    assert {failure.why for failure in load.results.failures} == {"answered by b"}


def test_it_sees_lasting_connections_end_and_flows_move(stage: Stage) -> None:
    stage.kube_proxy("iptables")
    with stage.clients(Rates(rate=1, patience=0.8)) as load:
        stage.space.run(["conntrack", "-F"])
        stage.space.run([*REJECT, "--reject-with", "tcp-reset", "-p", "tcp"])
        time.sleep(1)
    found = {failure.why.split(" from ")[0] for failure in load.results.failures}
    assert "lasting: moved" in found
    assert "lasting: Connection reset by peer" in found
