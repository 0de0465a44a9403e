"""Sets and rules, as the real kernel's tools load and print them, equal the wanted ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.kernel.iptables import Backend
from kproxy.lab.namespaces import Namespace
from kproxy.model.node_info import DetectLocal, DetectLocalBy
from kproxy.model.plans import Family, Protocol
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.fragments import Settings
from kproxy.modes.ipvs.native import Outcome, outcome
from kproxy.modes.ipvs.render import render_port
from kproxy.modes.ipvs.rules import render_base
from kproxy.modes.xtables.node_rules import repair_base
from kproxy.modes.xtables.saved import Saved, as_saved
from tests.ipvs_rules.plans import node_settings, port
from tests.network_namespaces import fresh_namespace

SIZES = ("hashsize", "maxelem", "bucketsize", "initval")  # the kernel's own choice, or defaults that only some print
PODS = {Family.IPV4: "10.244.0.0/16", Family.IPV6: "fd00:244::/32"}
FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda f: f.value)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    tools = [f"{kind}-{backend}-restore" for kind in ("iptables", "ip6tables") for backend in Backend]
    with fresh_namespace("sets", "ipset", *tools) as space:
        yield space


def everything(family: Family) -> tuple[Settings, Outcome]:
    """Plans that fill every set of a family but those that need a rule on virtual servers."""
    four = family is Family.IPV4
    balancer, external = ("203.0.113.5", "198.51.100.7") if four else ("2001:db8::5", "2001:db8::7")
    node = "172.18.0.0/16" if four else "fd00:18::/64"
    plans = [
        port(
            protocol,
            family,
            name=f"{protocol.lower()}-{local}".lower(),
            port=80 + local,
            cluster=(1, 2),
            local=(1,),
            all_local=(1,),
            external_local=local,
            node_port=30080 + local,
            external_ips=(external,),
            load_balancer_ips=(balancer,),
            source_ranges=(node, "10.1.2.3/32" if four else "fd00:1::3/128"),
            node_in_source_ranges=True,
            health_check_node_port=32000 if local else 0,
        )
        for protocol in Protocol
        for local in (False, True)
    ]
    chosen = node_settings(family, detect_local=DetectLocal(DetectLocalBy.CIDR, PODS[family]))
    return chosen, outcome(((p.key, p) for p in plans), chosen)


def section(native: str, tool: str) -> str:
    """The text under one tool's header."""
    return native.partition(f"# {tool}\n")[2].partition("\n# ")[0] + "\n"


def without_sizes(text: str) -> list[str]:
    lines = []
    for line in text.splitlines():
        words = line.split()
        lines.append(
            " ".join(w for i, w in enumerate(words) if w not in SIZES and (i == 0 or words[i - 1] not in SIZES))
        )
    return sorted(lines)


@FAMILIES
def test_sets_are_saved_as_they_were_restored(family: Family, namespace: Namespace) -> None:
    _, wanted = everything(family)
    assert [name for name, entries in wanted.sets.items() if not entries] == []
    text = section(wanted.native(), "ipset restore")
    namespace.run(["ipset", "restore"], text)
    assert without_sizes(namespace.run(["ipset", "save"])) == without_sizes(text)


@FAMILIES
@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize("filled", [False, True])
def test_rules_need_no_repair_once_they_are_restored(
    family: Family,
    backend: Backend,
    filled: bool,
    namespace: Namespace,
) -> None:
    settings, wanted = everything(family)
    if not filled:
        wanted = outcome((), settings)
    namespace.run(["ipset", "restore"], section(wanted.native(), "ipset restore"))
    tool = f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-{backend}"
    namespace.run([f"{tool}-restore", "--noflush"], wanted.rules, env={"XTABLES_LOCKFILE": "/dev/null"})
    base = render_base(settings, {name for name, entries in wanted.sets.items() if entries})
    saved = Saved(namespace.run([f"{tool}-save"]))
    sections, bodies = repair_base(saved, base, family)
    assert sections == ()
    assert bodies == {("filter", names.IPVS_OUT_FILTER): []}
    for (table, chain), rules in base.owned.items():
        plain = [rule.replace("\\'", "'") for rule in saved.rules(table, chain)]
        assert plain == [as_saved(rule, family) for rule in rules], "text is equal, so nothing is taken apart"


@pytest.mark.ipvs_kernel
@FAMILIES
@pytest.mark.parametrize("scheduler", ["rr", "mh"])
def test_native_text_loads_and_is_saved_the_same(
    family: Family,
    scheduler: str,
    namespace: Namespace,
) -> None:
    """All four sections, and the rules that match on virtual servers."""
    external, balancer, source = ("198.51.100.7", "203.0.113.5", "10.0.0.0/8")
    if family is Family.IPV6:
        external, balancer, source = ("2001:db8::7", "2001:db8::5", "fd00:1::/32")
    plans = [
        port(
            protocol,
            family,
            name=protocol.lower(),
            cluster=(1, 2),
            all_local=(1,),
            node_port=30080,
            external_ips=(external,),
            load_balancer_ips=(balancer,),
            source_ranges=(source,),
            affinity_seconds=60 if protocol is Protocol.TCP else 0,
        )
        for protocol in sorted(Protocol)
    ]
    wanted = outcome(((p.key, p) for p in plans), node_settings(family, scheduler=scheduler))
    namespace.run(["ip", "link", "set", "lo", "up"])  # IPVS takes no IPv4 real server where nothing has an address
    parts = wanted.native().split("# ")[1:]
    for part in parts:
        tool, _, text = part.partition("\n")
        namespace.run(tool.split(), text)
    servers, sets, addresses, rules = (part.partition("\n")[2] for part in parts)
    assert sorted(line.strip() for line in namespace.run(["ipvsadm-save", "-n"]).splitlines()) == sorted(
        servers.splitlines()
    )
    assert without_sizes(namespace.run(["ipset", "save"])) == without_sizes(sets)
    held = namespace.run(["ip", "-o", "address", "show", "dev", "kube-ipvs0"])
    assert {line.split()[3] for line in held.splitlines()} == {line.split()[2] for line in addresses.splitlines()[1:]}
    saved = Saved(namespace.run(["iptables-save" if family is Family.IPV4 else "ip6tables-save"]))
    filters = saved.rules("filter", names.IPVS_OUT_FILTER)
    assert filters == [
        as_saved(rule.rule, family) for p in plans for rule in render_port(p, node_settings(family)).rules
    ]
    assert [len(saved.rules(table, chain)) for table, chain in written(rules)] == list(written(rules).values())


def written(rules: str) -> dict[tuple[str, str], int]:
    """How many rules each of our chains has in a text."""
    found = Saved(rules)
    return {(t, c): len(found.rules(t, c)) for t in found.tables for c in found.chains(t) if c.startswith("KUBE-")}
