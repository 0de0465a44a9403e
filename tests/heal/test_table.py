"""Another program edits nftables mode's table: it is as before soon afterwards, and so is traffic."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kproxy.config.defaults import METRICS_PORT
from kproxy.errors import KernelError
from kproxy.lab import probes
from kproxy.lab.deployment import Deployment, deployment
from kproxy.lab.namespaces import unavailable
from kproxy.lab.proxies import wait_for
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import Scenario
from kproxy.model.plans import Family

SOON = 60  # seconds; it takes less than one, but the machine may be busy
ALIVE = [s for s in SCENARIOS if s.name in ("cluster-ip", "node-port-local", "source-ranges", "no-endpoints")]
EDITS = {
    "everything is flushed": "flush ruleset",
    "the tables are deleted": "delete table ip kproxy; delete table ip6 kproxy",
    "a chain is flushed": "flush chain ip kproxy services; flush chain ip6 kproxy services",
    "a rule is inserted": "insert rule ip kproxy services drop; insert rule ip6 kproxy services drop",
    "a map is flushed": "flush map ip kproxy endpoints; flush map ip6 kproxy services",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """No tool of iptables or nftables can be found by the proxy, which needs none."""
    if reason := unavailable(("nft", "iptables-nft")):
        pytest.skip(reason)
    periods = ("--iptables-sync-period", "1h", "--iptables-min-sync-period", "50ms")
    folder: Path = tmp_path_factory.mktemp("nftables")
    with deployment(folder, "nft", periods, ALIVE, start=False, mode="nftables") as under_way:
        proxy = under_way.proxy
        tools = folder / "tools"
        tools.mkdir()
        (tools / "setpriv").symlink_to(shutil.which("setpriv") or "")  # the lab's own need
        proxy.environment["PATH"] = str(tools)
        proxy.start()
        proxy.await_ready(lambda: proxy.synced() == len(Family) and all(map(under_way.serves, ALIVE[:1])))
        assert "comparing everything" not in proxy.tail(100_000)  # neither family takes the other for somebody else
        yield under_way
        assert proxy.running(), proxy.tail()


def listed(deployed: Deployment) -> str:
    """The tables, of each set the elements in order."""
    lines = [
        line.strip().strip("{},")
        for family in ("ip", "ip6")
        for line in deployed.cluster.spaces["node1"].run(["nft", "-s", "list", "table", family, "kproxy"]).splitlines()
    ]
    words = " ".join(lines).replace(", ", " ").replace("elements = {", "").split()
    return " ".join(sorted(words))


def is_as(deployed: Deployment, before: str) -> bool:
    try:
        return listed(deployed) == before
    except KernelError:  # the table is not there
        return False


def faults(deployed: Deployment, scenario: Scenario) -> dict[str, dict[str, str]]:
    return {family.value: dict(found) for family in Family if (found := deployed.faults(scenario, family))}


def repairs(deployed: Deployment) -> dict[str, float]:
    """How often the proxy has put the table of a family right."""
    _, _, text = deployed.cluster.spaces["node1"].call(probes.http_status, "127.0.0.1", METRICS_PORT, "/metrics", 10.0)
    samples = [sample for metric in text_string_to_metric_families(text) for sample in metric.samples]
    return {s.labels["ip_family"]: s.value for s in samples if s.name == "kproxy_foreign_changes_repaired_total"}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_healed(served: Deployment, edit: str) -> None:
    """The counter proves that there was something to heal: the table may be whole again before anybody can list it."""
    before, repaired = listed(served), repairs(served)
    assert len(repaired) == len(Family)
    served.cluster.spaces["node1"].run(["nft", "-f", "-"], EDITS[edit])
    assert wait_for(lambda: all(repairs(served)[family] > repaired[family] for family in repaired), SOON, pause=0.1)
    assert wait_for(lambda: is_as(served, before), SOON, pause=0.1), served.proxy.tail()
    assert faults(served, ALIVE[0]) == {}
