"""The proxy stops, dies and comes back: rules stay, no connection is lost, and nothing is written that is there."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest

from kproxy.lab import probes
from kproxy.lab.deployment import Deployment
from kproxy.lab.probes import Answered
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import End, Scenario, Via
from kproxy.model.plans import Family

if TYPE_CHECKING:
    from tests.restart.conftest import Watched

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
TOOLS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
ENDINGS = pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)


def rules(trial: Deployment) -> dict[Family, list[str]]:
    """All that iptables holds, without counters and times."""
    node = trial.cluster.spaces["node1"]
    texts = {family: node.run([f"{name}-{trial.backend}-save"]) for family, name in TOOLS.items()}
    return {
        family: [re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines() if not line.startswith("#")]
        for family, text in texts.items()
    }


def unserved(trial: Deployment, scenario: Scenario) -> dict[Family, dict[str, str]]:
    return {family: dict(faults) for family in Family if (faults := trial.faults(scenario, family))}


def hold(trial: Deployment, scenario: Scenario) -> list[probes.Held]:
    """Connections that stay open: from a pod, the node and outside, in both families."""
    return [
        trial.cluster.spaces[source].call(probes.Held, scenario.address(via, family), scenario.port(via, port))
        for family in Family
        for port in scenario.ports[:1]
        for source, via in (("caller", Via.CLUSTER_IP), ("node1", Via.CLUSTER_IP), ("client", Via.CLUSTER_IP))
    ]


@ENDINGS
def test_a_restart_loses_no_connection_and_writes_nothing(watched: Watched, ending: signal.Signals) -> None:
    trial, scenario = watched.trial, BY_NAME["cluster-ip"]
    assert watched.written(), "the first start must have programmed something"
    before = rules(trial)
    held = hold(trial, scenario)
    try:
        status = trial.proxy.stop(ending)
        assert status == (0 if ending is signal.SIGTERM else -signal.SIGKILL), trial.proxy.tail()
        assert rules(trial) == before
        assert unserved(trial, scenario) == {}
        watched.restart()
        assert watched.written() == []
        assert rules(trial) == before
        assert unserved(trial, scenario) == {}
        assert all(each.alive() for each in held)
    finally:
        for each in held:
            each.close()


@ENDINGS
def test_a_udp_flow_outlives_a_restart(watched: Watched, ending: signal.Signals) -> None:
    trial, scenario = watched.trial, BY_NAME["several-ports"]
    dns = scenario.ports[2]
    context = probes.udp_client(scenario.address(Via.CLUSTER_IP, Family.IPV4), dns.port)
    client = trial.cluster.spaces["caller"].call(context.__enter__)
    try:
        first = client.ask()
        assert isinstance(first, Answered)
        trial.proxy.stop(ending)
        assert client.ask() == first
        watched.restart()
        # Of two endpoints either might answer a new flow; the old one must stay where it is, port and all.
        assert [client.ask() for _ in range(5)] == [first] * 5
    finally:
        context.__exit__(None, None, None)


@ENDINGS
def test_what_changed_meanwhile_is_all_that_is_written(watched: Watched, ending: signal.Signals) -> None:
    trial, changed, other = watched.trial, BY_NAME["several-ports"], BY_NAME["cluster-ip"]
    held = hold(trial, other)
    context = probes.udp_client(changed.address(Via.CLUSTER_IP, Family.IPV6), changed.ports[2].port)
    client = trial.cluster.spaces["caller"].call(context.__enter__)
    try:
        assert isinstance(client.ask(), Answered)
        trial.proxy.stop(ending)
        trial.manifests.put(changed.name, changed.objects((End("b"),)))
        watched.written()
        watched.restart()
        answer = client.ask()
        assert isinstance(answer, Answered)
        assert answer.pod == "b"
        texts = watched.written()
        assert len(texts) == len(Family)
        assert all("several-ports" in text and "traffic/cluster-ip" not in text for text in texts)
        assert all(each.alive() for each in held)
    finally:
        context.__exit__(None, None, None)
        for each in held:
            each.close()


def test_a_service_deleted_meanwhile_is_gone(watched: Watched) -> None:
    trial, gone = watched.trial, BY_NAME["several-ports"]
    trial.proxy.stop()
    trial.manifests.remove(gone.name)
    watched.restart()
    assert not any("several-ports" in line for lines in rules(trial).values() for line in lines)
    assert unserved(trial, BY_NAME["cluster-ip"]) == {}
