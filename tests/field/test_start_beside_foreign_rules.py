"""Rules that iptables cannot read are in its tables before the start: Services work, and what is not checked is said.

Reports: cloudnativelabs/kube-router#1777, #1588, squat/kilo#402 (rules of nft's own in table ip filter or ip nat).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from kproxy.config.defaults import HEALTHZ_PORT, METRICS_PORT
from kproxy.errors import KernelError
from kproxy.lab import probes
from kproxy.lab.deployment import Deployment, deployment
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.lab.proxies import wait_for
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import Scenario
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings
from kproxy.modes.xtables.cleanup import clean
from kproxy.modes.xtables.names import PORT_CHAINS
from kproxy.modes.xtables.saved import Saved
from tests.fakes.iptables import FakeTables
from tests.ipvs_mode.rigs import Rig
from tests.plans import build_plan, by_key

SOON = 120  # seconds; it takes less than one, but legacy may notice a flush on a busy machine at its next look alone
FIRST, LATER = [s for s in SCENARIOS if s.name in ("cluster-ip", "node-port-local")]
PERIODS = ("--iptables-sync-period", "1h", "--iptables-min-sync-period", "50ms")
UNREAD = "kproxy_unreadable_kernel_objects"
CHAINS = {"filter": ("INPUT", "FORWARD", "OUTPUT"), "nat": ("PREROUTING", "OUTPUT", "POSTROUTING")}
PRIORITY = {"filter": {}, "nat": {"PREROUTING": "dstnat", "OUTPUT": "-100", "POSTROUTING": "srcnat"}}
BOTH = tuple(Family)
FOREIGN = "ct mark set numgen inc mod 2"  # iptables cannot read it, and nobody depends on it


class Case(NamedTuple):
    """mode, backend: of the proxy. families, tables: that hold something foreign. builtin: in every built-in chain,
    else in a chain of its own."""

    mode: str
    backend: str
    families: Collection[Family]
    tables: tuple[str, ...] = ("filter", "nat")
    builtin: bool = False


CASES = {
    "iptables, a chain in ip6 filter": Case("iptables", "nft", (Family.IPV6,), ("filter",)),
    "iptables, built-in chains": Case("iptables", "nft", BOTH, builtin=True),
    "iptables, a match that is not installed": Case("iptables", "legacy", BOTH, builtin=True),
    "userspace, a chain of its own": Case("userspace", "nft", BOTH),
    "ipvs, built-in chains": Case("ipvs", "nft", BOTH, builtin=True),
}
PARAMS = [
    pytest.param(case, id=name, marks=pytest.mark.ipvs_kernel if case.mode == "ipvs" else ())
    for name, case in CASES.items()
]


def add_foreign(space: Namespace, case: Case) -> None:
    for family in case.families:
        for table in case.tables:
            chains = CHAINS[table] if case.builtin else ("MINE",)
            if case.backend == "legacy":
                command = ("iptables-legacy" if family is Family.IPV4 else "ip6tables-legacy", "-w", "-t", table)
                for chain in chains:
                    space.run([*command, "-A", chain, "-m", "time", "--timestart", "10:00", "-j", "RETURN"])
                continue
            at = f"{'ip' if family is Family.IPV4 else 'ip6'} {table}"
            lines = [f"add table {at}"]
            for chain in chains:
                hook = f"type {table} hook {chain.lower()} priority {PRIORITY[table].get(chain, 'filter')};"
                lines += [f"add chain {at} {chain} {{ {hook if case.builtin else ''} }}"]
                lines += [f"add rule {at} {chain} {FOREIGN}"]
            space.run(["nft", "-f", "-"], "\n".join(lines))


def remove_foreign(space: Namespace, case: Case) -> None:
    for family in case.families:
        if case.backend == "legacy":
            for table in case.tables:
                for chain in CHAINS[table]:
                    command = ("iptables-legacy" if family is Family.IPV4 else "ip6tables-legacy", "-w", "-t", table)
                    space.run([*command, "-D", chain, "-m", "time", "--timestart", "10:00", "-j", "RETURN"])
            continue
        for table in case.tables:
            at = f"{'ip' if family is Family.IPV4 else 'ip6'} {table}"
            listed = space.run(["nft", "-a", "list", "table", *at.split()])
            chain, found = "", []
            for line in listed.splitlines():
                if opened := re.match(r"\s*chain (\S+) \{", line):
                    chain = opened[1]
                elif handle := re.search(rf"{FOREIGN} # handle (\d+)", line):
                    found.append(f"delete rule {at} {chain} handle {handle[1]}")
            assert found
            space.run(["nft", "-f", "-"], "\n".join(found))


def dump(space: Namespace, case: Case, family: Family) -> str:
    """The tables, of another program with all libraries, in words that neither counters nor handles change."""
    if case.backend == "legacy":
        return space.run(["iptables-legacy-save" if family is Family.IPV4 else "ip6tables-legacy-save"])
    return space.run(["nft", "-s", "list", "ruleset", "ip" if family is Family.IPV4 else "ip6"])


def jumps(space: Namespace, case: Case, family: Family) -> list[str]:
    """The jumps of built-in chains to ours."""
    found, chain = [], ""
    for line in dump(space, case, family).splitlines():
        if opened := re.match(r"\s*chain (\S+) \{|(?=-A (\S+))", line):
            chain = opened[1] or opened[2]
        if (target := re.search(r"(?:jump|-j) (KUBE-\S+)", line)) and not chain.startswith("KUBE-"):
            found.append(f"{chain} {line.strip() if case.backend == 'legacy' else target[1]}")
    return sorted(found)


def get(deployed: Deployment, port: int, path: str) -> tuple[int, str]:
    status, _, body = deployed.cluster.spaces["node1"].call(probes.http_status, "127.0.0.1", port, path, 10.0)
    return status, body


def unread(deployed: Deployment) -> dict[str, float]:
    """How much cannot be read, by family, where it is anything."""
    _, text = get(deployed, METRICS_PORT, "/metrics")
    samples = [sample for metric in text_string_to_metric_families(text) for sample in metric.samples]
    return {s.labels["ip_family"]: s.value for s in samples if s.name == UNREAD and s.value}


def works(deployed: Deployment, scenario: Scenario) -> bool:
    return all(deployed.serves(scenario) and not deployed.faults(scenario, family) for family in Family)


@pytest.fixture(scope="module", params=PARAMS)
def beside(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, Case]]:
    case: Case = request.param
    if reason := unavailable(("nft", f"iptables-{case.backend}-restore", f"ip6tables-{case.backend}-restore")):
        pytest.skip(reason)
    folder: Path = tmp_path_factory.mktemp(case.backend)
    with deployment(folder, case.backend, PERIODS, [FIRST], start=False, mode=case.mode) as under_way:
        add_foreign(under_way.cluster.spaces["node1"], case)
        if case.backend == "legacy":
            under_way.proxy.environment["XTABLES_LIBDIR"] = str(without_library(folder / "libraries"))
        under_way.proxy.start()
        under_way.proxy.await_ready(lambda: under_way.proxy.synced() == len(Family) and under_way.serves(FIRST))
        yield under_way, case
        assert under_way.proxy.running(), under_way.proxy.tail()


def without_library(folder: Path) -> Path:
    """The libraries of iptables in `folder`, but for that of the foreign match."""
    source = next(Path("/usr").glob("lib*/**/xtables/libxt_time.so")).parent
    folder.mkdir()
    for library in source.iterdir():
        if library.name != "libxt_time.so":
            os.symlink(library, folder / library.name)
    return folder


def test_services_work_and_it_is_said(beside: tuple[Deployment, Case]) -> None:
    deployed, case = beside
    assert works(deployed, FIRST)
    expected = {family.value: float(len(case.tables)) for family in case.families}
    assert unread(deployed) == expected
    status, body = get(deployed, HEALTHZ_PORT, "/healthz")
    health = json.loads(body)
    assert (status, health["healthy"]) == (200, True)
    assert {family for family, state in health["status"].items() if state.get("degraded")} == expected.keys()
    shown = json.loads(get(deployed, METRICS_PORT, "/status.json")[1])["unreadable"]
    assert sorted({row["what"] for row in shown}) == sorted(f"table {table}" for table in case.tables)
    assert deployed.proxy.tail(1_000_000).count("Degraded: ") == len(case.families) * len(case.tables)


def test_changes_flushes_and_restarts(beside: tuple[Deployment, Case]) -> None:
    """One after the other: a Service comes, the rules of all are flushed, the proxy starts anew, and nothing of others
    is there any more. At no time is a jump missing or there twice."""
    deployed, case = beside
    space = deployed.cluster.spaces["node1"]
    before = {family: jumps(space, case, family) for family in Family}
    assert all(before.values())
    deployed.manifests.put(LATER.name, LATER.objects())
    assert wait_for(lambda: works(deployed, LATER), SOON), deployed.proxy.tail()

    for family in Family:
        flush(space, case, family)
    assert wait_for(lambda: works(deployed, FIRST), SOON), deployed.proxy.tail()
    assert works(deployed, LATER)
    assert {family: jumps(space, case, family) for family in Family} == before

    deployed.proxy.stop()
    deployed.proxy.start()
    deployed.proxy.await_ready(lambda: deployed.proxy.synced() == len(Family) and deployed.serves(FIRST))
    assert works(deployed, LATER)
    assert {family: jumps(space, case, family) for family in Family} == before

    remove_foreign(space, case)
    assert wait_for(lambda: not unread(deployed), SOON), deployed.proxy.tail()
    assert "degraded" not in get(deployed, HEALTHZ_PORT, "/healthz")[1]
    assert {family: jumps(space, case, family) for family in Family} == before
    assert works(deployed, FIRST)
    assert works(deployed, LATER)


def flush(space: Namespace, case: Case, family: Family) -> None:
    """Empty all chains of ours in all tables, as another program might."""
    for table in CHAINS:
        if case.backend == "legacy":
            command = "iptables-legacy" if family is Family.IPV4 else "ip6tables-legacy"
            names = re.findall(r"^:(KUBE-\S+)", space.run([f"{command}-save", "-t", table]), re.MULTILINE)
            lines = [f":{name} - [0:0]" for name in names if name != "KUBE-FIREWALL"]
            space.run([f"{command}-restore", "--noflush", "-w", "5"], "\n".join([f"*{table}", *lines, "COMMIT\n"]))
        else:
            at = f"{'ip' if family is Family.IPV4 else 'ip6'} {table}"
            names = re.findall(r"chain (KUBE-\S+) \{", space.run(["nft", "list", "table", *at.split()]))
            space.run(["nft", "-f", "-"], "\n".join(f"flush chain {at} {name}" for name in names))


# ---------------------------------------------------------------- in memory: any chains, any plans, any failure

HIDDEN = (
    ("filter", "INPUT"),
    ("filter", "KUBE-FIREWALL"),
    ("filter", "KUBE-SERVICES"),
    ("nat", "MINE"),
    ("nat", "PREROUTING"),
    ("nat", "KUBE-POSTROUTING"),
    ("nat", "KUBE-SERVICES"),
    ("nat", "KUBE-MARK-MASQ"),
)
SETTINGS = Settings(Family.IPV4)
KUBELET = "*filter\n:KUBE-FIREWALL - [0:0]\n-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP\nCOMMIT\n"
PORTS = [
    build_plan(name, node_port=30000 + n, cluster=cluster)
    for n, name in enumerate("abc")
    for cluster in ((), (1, 2), (2, 3))
]
PLANS = st.lists(st.sampled_from(PORTS), max_size=3, unique_by=lambda p: p.key).map(lambda ps: {p.key: p for p in ps})


def meaning(tables: FakeTables) -> dict[tuple[str, str], list[str]]:
    saved = Saved(tables.save())
    return {(t, c): sorted(saved.rules(t, c)) for t in saved.tables for c in saved.chains(t) if c != "KUBE-MARK-DROP"}


def fresh(plans: dict[PortKey, ServicePlan]) -> dict[tuple[str, str], list[str]]:
    tables = FakeTables()
    tables.restore(KUBELET)
    IptablesDataplane(SETTINGS, tables).apply(plans, None)
    return meaning(tables)


@given(before=PLANS, at_start=PLANS, later=PLANS, hidden=st.sets(st.sampled_from(HIDDEN), min_size=1))
def test_any_unreadable_chains_end_in_the_same_rules(
    before: dict[PortKey, ServicePlan],
    at_start: dict[PortKey, ServicePlan],
    later: dict[PortKey, ServicePlan],
    hidden: set[tuple[str, str]],
) -> None:
    """A start, a flush that is noticed and changes, beside what another program has in these chains."""
    tables = FakeTables()
    tables.restore(KUBELET)
    IptablesDataplane(SETTINGS, tables).apply(before, None)
    tables.hidden = set(hidden)
    dataplane = IptablesDataplane(SETTINGS, tables)
    for plans in (at_start, later):
        outcome = dataplane.apply(plans, None)
        assert not outcome.rejected
        assert outcome.unreadable.keys() == {f"table {table}" for table, _ in hidden}
        tables.hidden |= hidden  # as soon as a chain of ours was written anew, it is there again
        assert serving(tables, plans)
    writes = len(tables.restores)
    dataplane.apply(later, None)
    if hidden <= {("filter", "INPUT"), ("nat", "MINE"), ("nat", "PREROUTING"), ("filter", "KUBE-FIREWALL")}:
        assert len(tables.restores) == writes, "written again although nobody changed anything"
    tables.hidden.clear()
    assert not dataplane.apply(later, None).unreadable
    assert meaning(tables) == fresh(later)


def serving(tables: FakeTables, plans: dict[PortKey, ServicePlan]) -> bool:
    """Whether all rules are there, and besides them nothing but chains that nothing leads to."""
    hidden, tables.hidden = tables.hidden, set()
    held, wanted = meaning(tables), fresh(plans)
    tables.hidden = hidden
    return all(held.get(where) == rules for where, rules in wanted.items()) and all(
        chain.startswith(PORT_CHAINS) for _, chain in held.keys() - wanted.keys()
    )


@pytest.mark.parametrize("call", ["chains", "list_chain", "holds"])
def test_a_failing_reader_is_retried(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Nothing is guessed about a built-in chain; a chain of ours is written anew."""
    tables = FakeTables()
    tables.restore(KUBELET)
    IptablesDataplane(SETTINGS, tables).apply({}, None)
    tables.hidden = {("filter", "INPUT"), ("nat", "MINE")}

    def fail(*_: str) -> None:
        raise KernelError("no")

    monkeypatch.setattr(tables, call, fail)
    dataplane, plans = IptablesDataplane(SETTINGS, tables), {p.key: p for p in PORTS[1:2]}
    if call == "list_chain":
        dataplane.apply(plans, None)
    else:
        with pytest.raises(KernelError, match=r"^no$"):
            dataplane.apply(plans, None)
    monkeypatch.undo()
    dataplane.apply(plans, None)
    assert serving(tables, plans)


@pytest.mark.parametrize("hidden", [set(), {("filter", "INPUT")}, {("nat", "MINE"), ("filter", "KUBE-FIREWALL")}])
def test_a_cleanup_leaves_nothing_that_acts(hidden: set[tuple[str, str]]) -> None:
    """Where a jump cannot be deleted, what it leads to is emptied, and the table is named."""
    tables = FakeTables()
    tables.restore(KUBELET)
    kubelets = meaning(tables)
    IptablesDataplane(SETTINGS, tables).apply({p.key: p for p in PORTS[1::3]}, None)
    tables.hidden = set(hidden)
    named = clean(tables).unreadable
    tables.hidden.clear()
    left = {where: rules for where, rules in meaning(tables).items() if rules and where not in kubelets}
    assert left == {}
    assert named.keys() == ({"table filter"} if ("filter", "INPUT") in hidden else set())


@pytest.mark.parametrize("name", ["KUBE-CLUSTER-IP", "KUBE-LOOP-BACK"])
def test_an_ipset_that_cannot_be_decoded_is_made_anew(name: str) -> None:
    rig = Rig()
    wanted = by_key(build_plan("web", local=(1,)))
    rig.apply(wanted)
    rig.sets.garbled = {name}
    rig.restarted()
    rig.apply(wanted)
    rig.assert_holds(wanted)
    assert not rig.sets.garbled
