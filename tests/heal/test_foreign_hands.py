"""Another program flushes or edits the rules: they are as before soon afterwards, and so is traffic."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from kproxy.lab.deployment import Deployment
from kproxy.lab.proxies import wait_for
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.model.plans import Family

SOON = 60  # seconds; it takes less than one, but the machine may be busy
TOOLS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda f: f.value)

# What a firewall's reload does to everybody's tables: all flushed and removed, its own rules instead.
FOREIGN = "-A FORWARD -p tcp -m tcp --dport 9 -j DROP"
RELOAD = f"*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n*filter\n:INPUT ACCEPT [0:0]\n{FOREIGN}\nCOMMIT\n"

EDITS = {
    "nat flushed": "-t nat -F",
    "filter flushed": "-t filter -F",
    "a rule for a Service deleted": "-t nat -D {services} 1",
    "the jump from a built-in chain deleted": "-t nat -D PREROUTING 1",
    "a chain of ours flushed": "-t nat -F {chain}",
    "a rule of ours added to": "-t nat -I {chain} 1 -j RETURN",
}
# Chains of each mode that the edits are about.
CHAINS = {
    "iptables": {"services": "KUBE-SERVICES", "chain": "KUBE-MARK-MASQ"},
    "userspace": {"services": "KUBE-PORTALS-CONTAINER", "chain": "KUBE-NODEPORT-CONTAINER"},
}


def run(deployed: Deployment, tool: str, *words: str, given: str = "") -> str:
    """A tool of iptables on the node, under the lock that the proxy takes as well."""
    return deployed.cluster.spaces["node1"].run([tool, *words], given, env=deployed.proxy.environment)


def tool(deployed: Deployment, family: Family, verb: str = "") -> str:
    return f"{TOOLS[family]}-{deployed.backend}{verb}"


def ours(deployed: Deployment, family: Family) -> list[str]:
    """kproxy's own rules and chains in one family, without counters. The order between chains has no meaning."""
    text = run(deployed, tool(deployed, family, "-save"))
    return sorted(
        re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines() if "KUBE" in line and "HINT" not in line
    )


def unserved(deployed: Deployment, family: Family) -> dict[str, dict[str, str]]:
    """The Services that do not do as the table says, and how."""
    alive = [s for s in SCENARIOS if (deployed.manifests.folder / f"{s.name}.yaml").exists()]
    with ThreadPoolExecutor(len(alive)) as crowd:
        found = crowd.map(lambda s: (s.name, dict(deployed.faults(s, family))), alive)
        return {name: faults for name, faults in found if faults}


def heals(deployed: Deployment, before: dict[Family, list[str]]) -> bool:
    return wait_for(lambda: all(ours(deployed, family) == lines for family, lines in before.items()), SOON)


@FAMILIES
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_healed(healing: Deployment, family: Family, edit: str) -> None:
    before = {each: ours(healing, each) for each in Family}
    run(healing, tool(healing, family), "-w", *EDITS[edit].format(**CHAINS[healing.mode]).split())
    assert heals(healing, before), healing.proxy.tail()
    assert unserved(healing, family) == {}


@FAMILIES
def test_a_firewall_that_loads_its_own_rules_whole(healing: Deployment, family: Family) -> None:
    before = {each: ours(healing, each) for each in Family}
    run(healing, tool(healing, family, "-restore"), "-w", given=RELOAD)
    assert heals(healing, before), healing.proxy.tail()
    assert FOREIGN in run(healing, tool(healing, family, "-save"), "-t", "filter")
    assert unserved(healing, family) == {}


@pytest.mark.parametrize("healing", ["nft"], indirect=True)
def test_nft_flush_ruleset_is_healed(healing: Deployment) -> None:
    before = {family: ours(healing, family) for family in Family}
    run(healing, "nft", "flush", "ruleset")
    assert heals(healing, before), healing.proxy.tail()
    assert {family: unserved(healing, family) for family in Family} == {family: {} for family in Family}
