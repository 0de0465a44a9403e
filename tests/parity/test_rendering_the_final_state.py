"""Rendering a cluster state at once gives what kube-proxy programmed for it."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest

from kproxy.model.plans import Family
from kproxy.modes.preview import Preview, load

SHORT = {"ipv4": Family.IPV4, "ipv6": Family.IPV6}


def preview(case: Any) -> Preview:
    state, problems = load(case.raw["node"], case.kinds(case.raw["final"]))
    assert not problems
    return Preview(state, case.config, case.host)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_iptables_rules_equal_kube_proxys(case: Any, family: str, compare: ModuleType) -> None:
    assert compare.check(case.raw, "iptables", family, preview(case).iptables(SHORT[family])) == []


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_ipvs_equals_kube_proxys(case: Any, family: str, compare: ModuleType) -> None:
    """Virtual servers, ipsets, addresses and rules."""
    ours = json.dumps(preview(case).ipvs(SHORT[family]).json())
    assert compare.check(case.raw, "ipvs", family, ours) == []


def test_health_check_node_ports_equal_kube_proxys(case: Any) -> None:
    """kube-proxy counts ready local endpoints family by family."""
    families = preview(case).families
    for family, page in ((name, families[f]) for name, f in SHORT.items()):
        counted: dict[str, tuple[int, set[str]]] = {}
        for key, plan in page.checks.items():
            service = f"{key.namespace}/{key.name}"
            counted.setdefault(service, (plan.health_check_node_port, set()))[1].update(plan.ready_local_ips)
        found = {name: {"localEndpoints": len(ips), "port": port} for name, (port, ips) in counted.items()}
        assert found == case.raw["expect"]["iptables"][family]["healthCheckNodePorts"]
