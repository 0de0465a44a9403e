"""On every shared case, what packets meet is what the plans say: by our rules and by kube-proxy's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.model.plans import Family
from kproxy.sync.preview import Preview, load
from kproxy.walk.iptables import IptablesWalker
from kproxy.walk.verdicts import Probe
from tests.parity.conftest import Case
from tests.walk.oracle import Chances, Node, expected, probes

SHARES = 4  # so that a failure shows early
MANY = 2000  # probes in each share


def answers(case: Case, family: Family) -> Iterator[tuple[Probe, Chances, dict[str, Chances]]]:
    """Each probe of a case, what it must meet, and what it meets by whose rules."""
    state, problems = load(case.raw["node"], case.kinds(case.raw["final"]))
    assert not problems
    preview = Preview(state, case.config, case.host)
    settings = preview.settings(family)
    node = Node.of(settings, case.host.addresses)
    plans = list(preview.book.pages[family].plans.values())
    texts = {
        "ours": preview.iptables(family),
        "theirs": case.raw["expect"]["iptables"][family.value.lower()]["rules"],
    }
    walkers = {whose: IptablesWalker(text, family, node.host) for whose, text in texts.items()}
    for probe in probes(plans, node, family):
        yield probe, expected(plans, node, probe), {whose: w.walk(probe).chances for whose, w in walkers.items()}


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("family", list(Family))
def test_packets_meet_what_the_plans_say(all_cases: tuple[Case, ...], family: Family, share: int) -> None:
    faults, asked = [], 0
    for case in all_cases[share::SHARES]:
        for probe, must, meets in answers(case, family):
            asked += 1
            for whose, found in meets.items():
                assert sum(found.values()) == 1
                if found != must:
                    faults.append(f"{case.raw['id']}: {probe}: {whose} {found}, not {must}")
    assert faults == []
    assert asked > MANY
