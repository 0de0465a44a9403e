"""Every row of the traffic table, with real packets."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from kproxy.lab import probes
from kproxy.lab.clusters import node_address
from kproxy.lab.proxies import wait_for
from kproxy.lab.scenarios import SCENARIOS, Scenario
from kproxy.model.plans import Family

FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda f: f.value)


@FAMILIES
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_every_probe_meets_what_it_must(running, scenario: Scenario, family: Family) -> None:
    # At once, as some refusals are only noticed when the kernel sends its first segment again, a second later.
    with ThreadPoolExecutor(16) as crowd:
        verdicts = {
            f"{probe.source} by {probe.via.value}, {port.name}": crowd.submit(
                running.verify, probe, scenario, family, port
            )
            for probe in scenario.probes
            for port in scenario.ports
            if family in probe.families
        }
    assert {name: verdict.result() for name, verdict in verdicts.items() if verdict.result()} == {}


@FAMILIES
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.health], ids=lambda s: s.name)
def test_health_check_node_port(running, scenario: Scenario, family: Family) -> None:
    local = sum(e.pod in ("a", "b") for e in scenario.ends)

    def get() -> tuple[int, dict[str, str], str]:
        return running.cluster.spaces["client"].call(
            probes.http_status, node_address(1, family), scenario.health_port, "/"
        )

    assert wait_for(lambda: get()[0] == scenario.health, 10), get()
    status, headers, body = get()
    assert status == scenario.health
    assert json.loads(body)["localEndpoints"] == local
    assert headers["x-load-balancing-endpoint-weight"] == str(local)
