"""On the shared cases preflight finds the differences that docs/modes.md lists, all of them and no others."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

from msgspec.structs import replace

from kproxy.model.plans import Family
from kproxy.modes.preview import Preview, load
from kproxy.preflight.classes import classes
from kproxy.preflight.differences import Places, change
from tests.parity.conftest import Case, cases
from tests.preflight.nodes import space_of, tracer_of
from tests.trace.differences import DIFFERENCES, difference
from tests.trace.differences import Case as Packet
from tests.trace.oracle import Node, expected

STEP = 3  # of the cases; all of them take 12 s
CIDRS = ("10.96.0.0/16", "fd00:10:96::/64")
MODES = (Path(__file__).parents[2] / "docs" / "modes.md").read_text()


def modes(case: Case) -> tuple[Preview, Preview]:
    """The node in iptables and in nftables mode, which masquerade alike."""
    state, problems = load(case.raw["node"], case.kinds(case.raw["final"]))
    assert not problems
    iptables = Preview(state, case.config, case.host)
    iptables.node = dataclasses.replace(iptables.node, service_cidrs=CIDRS)  # no case has any
    masquerades = replace(case.config.nftables, masquerade_all=case.config.iptables.masquerade_all)
    return iptables, iptables.of(replace(case.config, nftables=masquerades))


def test_differences_are_those_that_are_listed() -> None:
    listed = DIFFERENCES["nftables"]
    met: set[str] = set()
    for case, family in product(cases()[::STEP], Family):
        iptables, nftables = modes(case)
        node = Node.of(iptables.settings(family), case.host.addresses, CIDRS)
        plans = tuple(iptables.families[family].plans.values())
        before, after = (
            tracer_of(iptables, "iptables", family, node.host),
            tracer_of(nftables, "nftables", family, node.host),
        )
        places = Places(plans, node.host.addresses, CIDRS)
        for each in classes(space_of(iptables, family, node.host), before, after):
            must = expected(plans, node, each.probe)
            found = difference("nftables", Packet(plans, node, each.probe, must))
            assert each.before.chances == must, (case.raw["id"], each.probe)
            assert each.after.chances == (found.instead if found else must), (case.raw["id"], each.probe)
            if each.differs:
                assert found is not None
                met.add(found.reason)
                assert found.documented[1] in places.kind(each.probe), (each.probe, change(each, places))
    assert met == {each.reason for each in listed}
    flat = " ".join(MODES.partition("## nftables")[2].split())
    assert [each.documented[0] for each in listed if each.documented[0] not in flat] == []
