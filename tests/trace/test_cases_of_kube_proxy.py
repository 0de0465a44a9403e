"""On every shared case packets meet what the plans say: by our rules in each mode, and by kube-proxy's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from msgspec.structs import replace as replace_fields

from kproxy.config.fields import KubeProxyConfiguration
from kproxy.config.files import from_text
from kproxy.model.plans import Family
from kproxy.modes.preview import Preview, load
from kproxy.trace.iptables import IptablesTracer
from tests.parity.conftest import Case
from tests.trace.differences import DIFFERENCES, difference, meant
from tests.trace.differences import Case as Packet
from tests.trace.oracle import Node, expected, probes
from tests.trace.worlds import TRACERS, Trace

SHARES = 4  # so that a failure shows early
MANY = 1500  # probes in each share


def world(case: Case, family: Family) -> tuple[Preview, Node]:
    state, problems = load(case.raw["node"], case.kinds(case.raw["final"]))
    assert not problems
    preview = Preview(state, configuration(case), case.host)
    return preview, Node.of(preview.settings(family), case.host.addresses, state.service_cidrs)


def configuration(case: Case) -> KubeProxyConfiguration:
    """That of the case, where nftables mode masquerades as iptables mode does."""
    config = from_text(json.dumps(case.raw["config"]))  # which leaves out the sections of other modes
    return replace_fields(
        config, nftables=replace_fields(config.nftables, masquerade_all=config.iptables.masquerade_all)
    )


def tracers(case: Case, family: Family, preview: Preview, node: Node) -> Iterator[tuple[str, str, Trace]]:
    """Whose rules, the mode that they are in, and the way to trace them."""
    for mode, walker in TRACERS.items():
        yield "ours", mode, walker(preview, family, node.host)
    theirs = case.raw["expect"]["iptables"][family.value.lower()]["rules"]
    yield "kube-proxy's", "iptables", IptablesTracer(theirs, family, node.host).trace


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("family", list(Family))
def test_packets_meet_what_the_plans_say(all_cases: tuple[Case, ...], family: Family, share: int) -> None:
    faults, asked = [], 0
    for case in all_cases[share::SHARES]:
        preview, node = world(case, family)
        plans = list(preview.families[family].plans.values())
        ways = list(tracers(case, family, preview, node))
        for probe in probes(plans, node, family):
            asked += 1
            always = expected(plans, node, probe)
            for whose, mode, trace in ways:
                found, must = trace(probe, None).chances, meant(mode, plans, node, probe, always)
                assert sum(found.values()) == 1
                if found != must:
                    faults.append(f"{case.raw['id']}: {probe}: {whose}, {mode}: {found}, not {must}")
    assert faults == []
    assert asked > MANY


def test_every_listed_difference_is_met(all_cases: tuple[Case, ...]) -> None:
    """Some of them in the range of cluster IPs, which no case has."""
    met: Counter[str] = Counter()
    for case in all_cases[::SHARES]:
        for family in Family:
            preview, node = world(case, family)
            node = replace(node, service_cidrs=("10.96.0.0/16", "fd00:96::/64"))
            plans = tuple(preview.families[family].plans.values())
            for probe in probes(plans, node, family):
                must = expected(plans, node, probe)
                found = difference("nftables", Packet(plans, node, probe, must))
                met[found.reason if found and found.instead != must else ""] += 1
    assert set(met) == {"", *(d.reason for d in DIFFERENCES["nftables"])}
