"""What a trace says of the live kernel's rules is what it says of the same rules as they were rendered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.model.plans import Family
from kproxy.netfilter.ruleset import Ruleset
from kproxy.trace.iptables_parser import Tables
from kproxy.trace.live import Live, trace_live
from kproxy.trace.outcome import Host
from tests.parity.conftest import Case
from tests.parity.test_real_kernel import loadable
from tests.trace.oracle import probes
from tests.trace.test_cases_of_kube_proxy import tracers, world

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))]
EVERY = 15
TOOLS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}


@contextmanager
def kernel(family: Family, host: Host, *commands: tuple[tuple[str, ...], str]) -> Iterator[Callable[[], Live]]:
    """A namespace in which COMMANDS (argv, standard input) were run; reads what it holds."""
    with closing(Namespace("traced")) as space:
        for argv, given in commands:
            space.run(argv, given)

        def read(rules: Ruleset) -> Live:
            by_nft = space.run([f"{TOOLS[family]}-nft-save"])
            legacy = space.run([f"{TOOLS[family]}-legacy-save"])
            return Live(family, host, rules, Tables(by_nft, family), Tables(legacy, family))

        with closing(space.call(Ruleset)) as rules:
            yield lambda: read(rules)


def load(family: Family, mode: str, text: str) -> tuple[tuple[str, ...], str]:
    if mode == "nftables":
        return ("nft", "-f", "-"), text
    return (f"{TOOLS[family]}-{'legacy' if mode == 'legacy' else 'nft'}-restore", "--noflush"), loadable(text)


@pytest.mark.parametrize("family", list(Family))
def test_the_live_kernel_is_traced_as_the_rendered_rules_are(all_cases: tuple[Case, ...], family: Family) -> None:
    faults, asked = [], 0
    for case in all_cases[::EVERY]:
        preview, node = world(case, family)
        plans = list(preview.families[family].plans.values())
        for whose, mode, trace in tracers(case, family, preview, node):
            theirs = case.raw["expect"]["iptables"][family.value.lower()]["rules"]
            text = preview.nftables(family) if mode == "nftables" else preview.iptables(family)
            with kernel(family, node.host, load(family, mode, text if whose == "ours" else theirs)) as read:
                live = read()
                for probe in probes(plans, node, family):
                    if probe.port > 65535:
                        continue
                    asked += 1
                    found = trace_live(live, probe)
                    must = trace(probe, None).chances
                    if found.unknown or found.outcome.chances != must:
                        faults.append(f"{case.raw['id']}: {probe}: {whose}, {mode}: {found}, not {must}")
    assert faults[:3] == []
    assert asked > 1000
