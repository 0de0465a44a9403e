"""Rendering a cluster state at once gives what kube-proxy programmed for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType

import pytest

from kproxy.model.plans import Family
from tests.parity.conftest import Case

SHORT = {"ipv4": Family.IPV4, "ipv6": Family.IPV6}


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_iptables_rules_equal_kube_proxys(case: Case, family: str, compare: ModuleType) -> None:
    assert compare.check(case.raw, "iptables", family, case.preview.iptables(SHORT[family])) == []


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_ipvs_equals_kube_proxys(case: Case, family: str, compare: ModuleType) -> None:
    """Virtual servers, ipsets, addresses and rules."""
    ours = json.dumps(case.preview.ipvs(SHORT[family]).json())
    assert compare.check(case.raw, "ipvs", family, ours) == []


def test_health_check_node_ports_equal_kube_proxys(case: Case) -> None:
    """kube-proxy counts ready local endpoints family by family."""
    families = case.preview.families
    for family, page in ((name, families[f]) for name, f in SHORT.items()):
        counted: dict[str, tuple[int, set[str]]] = {}
        for key, plan in page.checks.items():
            service = f"{key.namespace}/{key.name}"
            counted.setdefault(service, (plan.health_check_node_port, set()))[1].update(plan.ready_local_ips)
        found = {name: {"localEndpoints": len(ips), "port": port} for name, (port, ips) in counted.items()}
        assert found == case.raw["expect"]["iptables"][family]["healthCheckNodePorts"]


MAPS = ("services", "node-ports")
THEIR_MAPS = ("service-ips", "service-nodeports", "no-endpoint-services", "no-endpoint-nodeports")


def test_nftables_mode_serves_every_way_that_kube_proxy_serves(case: Case) -> None:
    """It has rules of its own."""
    for short, family in SHORT.items():
        layout = case.preview.nftables_layout(family)
        ours = {" . ".join(map(str, e.key)) for name in MAPS for e in layout.elements.get(name, ())}
        assert ours == set(theirs(case.raw["expect"]["nftables"][short]["rules"]))


def theirs(rules: str) -> Iterator[str]:
    """The keys of kube-proxy's verdict maps."""
    for line in rules.splitlines():
        words = line.split()
        if words[:2] == ["add", "element"] and words[4] in THEIR_MAPS:
            yield line.partition("{ ")[2].partition(" : ")[0].partition(" comment ")[0]
