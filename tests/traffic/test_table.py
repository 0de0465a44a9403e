"""Every scenario of the traffic table, with real packets."""

from __future__ import annotations

import json

import pytest

from kproxy.lab import probes
from kproxy.lab.clusters import node_address
from kproxy.lab.deployment import Deployment
from kproxy.lab.proxies import wait_for
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import PODS, Scenario
from kproxy.model.plans import Family

FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda f: f.value)


@FAMILIES
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_every_probe_meets_what_it_must(running: Deployment, scenario: Scenario, family: Family) -> None:
    assert running.faults(scenario, family) == {}


@FAMILIES
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.health], ids=lambda s: s.name)
def test_health_check_node_port(running: Deployment, scenario: Scenario, family: Family) -> None:
    nodes = {pod.name: pod.node for pod in PODS}
    local = sum(nodes[end.pod] == 1 for end in scenario.ends)

    def get() -> tuple[int, dict[str, str], str]:
        return running.cluster.spaces["client"].call(
            probes.http_status, node_address(1, family), scenario.health_port, "/"
        )

    assert wait_for(lambda: get()[0] == scenario.health, 10), get()
    _, headers, body = get()
    assert json.loads(body)["localEndpoints"] == local
    assert headers["x-load-balancing-endpoint-weight"] == str(local)
