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


def rules(deployed: Deployment) -> dict[Family, list[str]]:
    """All that iptables holds, without counters and times."""
    node = deployed.cluster.spaces["node1"]
    texts = {family: node.run([f"{name}-{deployed.backend}-save"]) for family, name in TOOLS.items()}
    return {
        family: [re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines() if not line.startswith("#")]
        for family, text in texts.items()
    }


def unserved(deployed: Deployment, scenario: Scenario) -> dict[Family, dict[str, str]]:
    return {family: dict(faults) for family in Family if (faults := deployed.faults(scenario, family))}


def hold(deployed: Deployment, scenario: Scenario) -> list[probes.Held]:
    """Connections that stay open: from a pod, the node and outside, in both families."""
    return [
        deployed.cluster.spaces[source].call(probes.Held, scenario.address(via, family), scenario.port(via, port))
        for family in Family
        for port in scenario.ports[:1]
        for source, via in (("caller", Via.CLUSTER_IP), ("node1", Via.CLUSTER_IP), ("client", Via.CLUSTER_IP))
    ]


@ENDINGS
def test_a_restart_loses_no_connection_and_writes_nothing(watched: Watched, ending: signal.Signals) -> None:
    deployed, scenario = watched.deployed, BY_NAME["cluster-ip"]
    assert watched.written(), "the first start must have programmed something"
    before = rules(deployed)
    held = hold(deployed, scenario)
    try:
        status = deployed.proxy.stop(ending)
        assert status == (0 if ending is signal.SIGTERM else -signal.SIGKILL), deployed.proxy.tail()
        assert rules(deployed) == before
        assert unserved(deployed, scenario) == {}
        watched.restart()
        assert watched.written() == []
        assert rules(deployed) == before
        assert unserved(deployed, scenario) == {}
        assert all(each.alive() for each in held)
    finally:
        for each in held:
            each.close()


@ENDINGS
def test_a_udp_flow_outlives_a_restart(watched: Watched, ending: signal.Signals) -> None:
    deployed, scenario = watched.deployed, BY_NAME["several-ports"]
    dns = scenario.ports[2]
    context = probes.udp_client(scenario.address(Via.CLUSTER_IP, Family.IPV4), dns.port)
    client = deployed.cluster.spaces["caller"].call(context.__enter__)
    try:
        first = client.ask()
        assert isinstance(first, Answered)
        deployed.proxy.stop(ending)
        assert client.ask() == first
        watched.restart()
        # Of two endpoints either might answer a new flow; the old one must stay where it is, port and all.
        assert [client.ask() for _ in range(5)] == [first] * 5
    finally:
        context.__exit__(None, None, None)


@ENDINGS
def test_what_changed_meanwhile_is_all_that_is_written(watched: Watched, ending: signal.Signals) -> None:
    deployed, changed, other = watched.deployed, BY_NAME["several-ports"], BY_NAME["cluster-ip"]
    held = hold(deployed, other)
    context = probes.udp_client(changed.address(Via.CLUSTER_IP, Family.IPV6), changed.ports[2].port)
    client = deployed.cluster.spaces["caller"].call(context.__enter__)
    try:
        assert isinstance(client.ask(), Answered)
        deployed.proxy.stop(ending)
        deployed.manifests.put(changed.name, changed.objects((End("b"),)))
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
    deployed, gone = watched.deployed, BY_NAME["several-ports"]
    deployed.proxy.stop()
    deployed.manifests.remove(gone.name)
    watched.restart()
    assert not any("several-ports" in line for lines in rules(deployed).values() for line in lines)
    assert unserved(deployed, BY_NAME["cluster-ip"]) == {}
