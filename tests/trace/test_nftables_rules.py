"""The trace through nftables mode's table: what it tells of the way, and tables that make no sense."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest

from kproxy.errors import InvalidInput
from kproxy.model.plans import Family, Protocol
from kproxy.modes.nftables.render import Layout
from kproxy.netfilter import objects
from kproxy.netfilter.objects import BaseChain, Chain, Element, Field, Hook, Rule, Set, SetKind, Type
from kproxy.trace.nftables import NftablesTracer
from kproxy.trace.outcome import Affinity, AffinityEntry, Fate, Host, Outcome, Probe, Verdict

HOST = Host(frozenset({"172.18.0.2"}))
PACKET = Probe("192.0.2.1", "10.96.0.1", Protocol.TCP, 80, "eth0")
DROPPED, UNTOUCHED, REJECTED = Verdict(Fate.DROPPED), Verdict(Fate.UNTOUCHED), Verdict(Fate.REJECTED)
KEY = (Field.DADDR, Field.PROTO, Field.DPORT)
FRONTEND = (Type.IPV4, Type.PROTO, Type.PORT)
VMAP = Set("services", FRONTEND, SetKind.VERDICTS)
SLOTS = Set("endpoints", (*FRONTEND, Type.SLOT), SetKind.MAP, (Type.IPV4, Type.PORT))
CLIENTS = Set("clients", (Type.IPV4,), timeout=60, size=2)
ANYTHING = Set("sources", (Type.IPV4,), interval=True)
SETS = {s.name: s for s in (VMAP, SLOTS, CLIENTS, ANYTHING)}


def traced(
    *rules: Rule,
    probe: Probe = PACKET,
    elements: Sequence[Element] = (),
    chains: Sequence[Chain] = (),
    hook: Hook = Hook.PREROUTING,
    affinity: Affinity | None = None,
) -> Outcome:
    """A table with these rules in one base chain, and further CHAINS."""
    based = Chain("base", tuple(rules), BaseChain("nat", hook, -100))
    by_set = {name: tuple(e for e in elements if e.set == name) for name in dict.fromkeys(e.set for e in elements)}
    layout = Layout(Family.IPV4, SETS, {c.name: c for c in (based, *chains)}, by_set)
    return NftablesTracer(layout, HOST).trace(probe, affinity)


def test_the_path_names_rules_and_elements() -> None:
    outcome = traced(
        (objects.Lookup(KEY, "services"),),
        (objects.Drop(),),
        elements=(
            Element("services", ("10.96.0.1", "tcp", 80), objects.Verdict("two"), "default/web"),
            *(Element("endpoints", ("10.96.0.1", "tcp", 80, n), (f"10.0.0.{n}", 8080)) for n in (0, 1)),
        ),
        chains=(Chain("two", ((objects.DnatByMap((*KEY, objects.Random(2)), "endpoints"),),)),),
    )
    assert outcome.chances == {Verdict(Fate.DELIVERED, f"10.0.0.{n}:8080"): Fraction(1, 2) for n in (0, 1)}
    assert [str(step.rule) for step in outcome.branches[0].steps] == [
        'ip daddr . meta l4proto . th dport vmap @services { 10.96.0.1 . tcp . 80 comment "default/web" : goto two }',
        "dnat ip addr . port to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints"
        " { 10.96.0.1 . tcp . 80 . 0 : 10.0.0.0 . 8080 }",
    ]


def test_slots_without_an_element_go_on_with_the_next_rule() -> None:
    outcome = traced(
        (objects.DnatByMap((*KEY, objects.Random(4, 1)), "endpoints"),),
        (objects.Drop(),),
        elements=[Element("endpoints", ("10.96.0.1", "tcp", 80, 4), ("10.0.0.4", 1))],
    )
    assert outcome.chances == {Verdict(Fate.DELIVERED, "10.0.0.4:1"): Fraction(1, 4), DROPPED: Fraction(3, 4)}


def test_an_element_may_drop() -> None:
    dropping = Element("services", ("10.96.0.1", "tcp", 80), objects.Verdict())
    assert traced((objects.Lookup(KEY, "services"),), elements=[dropping]).chances == {DROPPED: 1}


@pytest.mark.parametrize(("final", "meets"), [(objects.Jump("one"), DROPPED), (objects.Goto("one"), UNTOUCHED)])
def test_a_jump_comes_back_and_a_goto_does_not(final: objects.Final, meets: Verdict) -> None:
    assert traced((final,), (objects.Drop(),), chains=[Chain("one")]).chances == {meets: 1}


@pytest.mark.parametrize(
    ("statement", "holds"),
    [
        (objects.AddressIn(Field.SADDR, "192.0.2.0/24"), True),
        (objects.AddressIn(Field.DADDR, "10.96.0.0/16", negate=True), False),
        (objects.InterfaceIs("eth", prefix=True), True),
        (objects.InterfaceIs("eth"), False),
        (objects.InterfaceIs("veth", prefix=True, negate=True), True),
        (objects.ProtocolIs("udp"), False),
        (objects.FibLocal(Field.DADDR), False),
        (objects.InSet((Field.SADDR,), "sources"), True),
        (objects.InSet((Field.DADDR,), "sources"), False),
        (objects.InSet((Field.DADDR,), "sources", negate=True), True),
        (objects.CtInvalid(), False),
        (objects.CtTranslated(), False),
        (objects.MarkHas(0x4000), False),
    ],
)
def test_what_a_statement_matches(statement: objects.Match, holds: bool) -> None:
    found = traced((statement, objects.Drop()), elements=[Element("sources", ("192.0.2.0/25",))])
    assert found.chances == {DROPPED if holds else UNTOUCHED: 1}


def test_marks_are_set_and_cleared() -> None:
    mark, clear, has = objects.MarkSet(0x4000), objects.MarkClear(0x4000), objects.MarkHas(0x4000)
    assert traced((mark,), (has, objects.Reject())).chances == {REJECTED: 1}
    assert traced((mark,), (clear,), (has, objects.Reject())).chances == {UNTOUCHED: 1}


def test_a_full_set_ends_the_rule() -> None:
    remember = (objects.Update("clients", (Field.SADDR,)), objects.Drop())
    others = {AffinityEntry("clients", f"192.0.2.{n}"): 1 for n in (7, 8)}
    assert traced(remember).chances == {DROPPED: 1}
    assert traced(remember, affinity=others).chances == {UNTOUCHED: 1}
    assert traced(remember, affinity=dict.fromkeys(others, 61)).chances == {DROPPED: 1}
    known = {AffinityEntry("clients", PACKET.source): 1, AffinityEntry("clients", "192.0.2.7"): 1}
    assert traced(remember, affinity=known).chances == {DROPPED: 1}


def test_what_the_node_sends_to_itself_meets_nat_once() -> None:
    own = Probe("172.18.0.2", "172.18.0.2", Protocol.TCP, 80)
    assert traced((objects.Drop(),), probe=own).chances == {UNTOUCHED: 1}
    assert traced((objects.Drop(),), probe=own, hook=Hook.OUTPUT).chances == {DROPPED: 1}


def test_masquerading() -> None:
    outcome = traced((objects.Masquerade(),), hook=Hook.POSTROUTING)
    assert outcome.chances == {Verdict(Fate.UNTOUCHED, masqueraded=True): 1}


def test_of_several_chains_at_a_hook_the_lowest_priority_is_first() -> None:
    early = Chain("z", ((objects.Reject(),),), BaseChain("filter", Hook.PREROUTING, -200))
    assert traced((objects.Drop(),), chains=[early]).chances == {REJECTED: 1}


@pytest.mark.parametrize(
    ("rule", "elements", "why"),
    [
        ((objects.Jump("nowhere"),), (), "chain nowhere"),
        ((objects.Goto("base"),), (), "nested too deeply"),
        ((objects.Lookup(KEY, "none"),), (), "set none"),
        ((objects.Drop(),), (Element("none", ("10.96.0.1",)),), "set none"),
        ((objects.Drop(),), (Element("services", ("10.96.0.1", "tcp", 80), objects.Verdict()),) * 2, "given twice"),
        ((objects.Lookup(KEY, "services"),), (Element("services", ("10.96.0.1", "tcp", 80)),), "no verdict"),
        (
            (objects.DnatByMap((*KEY, objects.Random(1)), "endpoints"),),
            (Element("endpoints", ("10.96.0.1", "tcp", 80, 0)),),
            "no address and port",
        ),
    ],
)
def test_a_table_that_makes_no_sense_is_an_error(rule: Rule, elements: Sequence[Element], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        traced(rule, elements=elements)


def test_a_probe_of_another_family_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="IPv4"):
        traced(probe=Probe("fd00::1", "fd00::2", Protocol.TCP, 80))
