"""On every shared case packets meet what the plans say: by our rules in each mode, and by kube-proxy's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kproxy.config.fields import KubeProxyConfiguration
from kproxy.config.files import from_text
from kproxy.model.plans import Family
from kproxy.sync.preview import Preview, load
from kproxy.walk.iptables import IptablesWalker
from tests.parity.conftest import Case
from tests.walk.differences import DIFFERENCES, difference, meant
from tests.walk.differences import Case as Packet
from tests.walk.oracle import Node, expected, probes
from tests.walk.worlds import WALKERS, Walk

SHARES = 4  # so that a failure shows early
MANY = 1500  # probes in each share


def world(case: Case, family: Family) -> tuple[Preview, Node]:
    state, problems = load(case.raw["node"], case.kinds(case.raw["final"]))
    assert not problems
    preview = Preview(state, configuration(case), case.host)
    return preview, Node.of(preview.settings(family), case.host.addresses, state.service_cidrs)


def configuration(case: Case) -> KubeProxyConfiguration:
    """That of the case, where nftables mode masquerades as iptables mode does."""
    raw = dict(case.raw["config"])
    raw["nftables"] = {"masqueradeAll": raw["iptables"].get("masqueradeAll", False)}
    return from_text(json.dumps(raw))


def faults(case: Case, family: Family, preview: Preview, node: Node, mode: str, walk: Walk) -> Iterator[str]:
    """What packets meet that they must not, one line each; "" for each that meets what it must."""
    plans = list(preview.book.pages[family].plans.values())
    for probe in probes(plans, node, family):
        found, must = walk(probe, None), expected(plans, node, probe)
        assert sum(branch.probability for branch in found.branches) == 1
        must = meant(mode, plans, node, probe, must)
        yield "" if found.chances == must else f"{case.raw['id']}: {probe}: {found.chances}, not {must}"


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("mode", WALKERS)
def test_packets_meet_what_the_plans_say(all_cases: tuple[Case, ...], mode: str, family: Family, share: int) -> None:
    asked: list[str] = []
    for case in all_cases[share::SHARES]:
        preview, node = world(case, family)
        asked += faults(case, family, preview, node, mode, WALKERS[mode](preview, family, node.host))
    assert [fault for fault in asked if fault] == []
    assert len(asked) > MANY


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("family", list(Family))
def test_by_kube_proxys_rules_they_meet_the_same(all_cases: tuple[Case, ...], family: Family, share: int) -> None:
    asked: list[str] = []
    for case in all_cases[share::SHARES]:
        preview, node = world(case, family)
        theirs = case.raw["expect"]["iptables"][family.value.lower()]["rules"]
        walk = IptablesWalker(theirs, family, node.host).walk
        asked += faults(case, family, preview, node, "iptables", walk)
    assert [fault for fault in asked if fault] == []
    assert len(asked) > MANY


def test_every_listed_difference_is_met(all_cases: tuple[Case, ...]) -> None:
    """Some of them in the range of cluster IPs, which no case has."""
    met: Counter[str] = Counter()
    for case in all_cases[::SHARES]:
        for family in Family:
            preview, node = world(case, family)
            node = replace(node, service_cidrs=("10.96.0.0/16", "fd00:96::/64"))
            plans = tuple(preview.book.pages[family].plans.values())
            for probe in probes(plans, node, family):
                must = expected(plans, node, probe)
                found = difference("nftables", Packet(plans, node, probe, must))
                met[found.reason if found and found.instead != must else ""] += 1
    assert set(met) == {"", *(d.reason for d in DIFFERENCES["nftables"])}
