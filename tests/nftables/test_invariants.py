"""Invariants of the layout for any Services and settings."""

from __future__ import annotations

import ipaddress
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from kproxy.model.plans import Family, ServicePlan
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.render import Layout, lay_out, render_base, render_port
from kproxy.modes.nftables.text import table_text
from kproxy.netfilter.objects import DnatByMap, InSet, Lookup, Random, SetKind, Update, Verdict
from tests.nftables.plans import any_plans, any_settings, destinations

STATES = st.sampled_from(Family).flatmap(lambda f: st.tuples(any_plans(f), any_settings(f)))
State = tuple[list[ServicePlan], Settings]


def whole(state: State) -> Layout:
    plans, settings = state
    return lay_out(render_base(settings), [(p.key, render_port(p, settings)) for p in plans])


@given(STATES)
def test_the_order_of_ports_has_no_meaning(state: State) -> None:
    plans, settings = state
    assert table_text(whole(state)) == table_text(whole((plans[::-1], settings)))


@given(STATES)
def test_elements_fit_their_set_have_keys_of_their_own_and_overlap_nowhere(state: State) -> None:
    layout = whole(state)
    for name, elements in layout.elements.items():
        found = layout.sets[name]
        assert not found.timeout
        assert len({e.key for e in elements}) == len(elements)
        for element in elements:
            assert len(element.key) == len(found.key)
            assert isinstance(element.data, Verdict) is (found.kind is SetKind.VERDICTS)
            if found.kind is SetKind.MAP:
                assert isinstance(element.data, tuple)
                assert len(element.data) == len(found.data)
    ranges: dict[tuple[str | int, ...], list[ipaddress.IPv4Network | ipaddress.IPv6Network]] = {}
    for element in layout.elements.get("sources", ()):
        ranges.setdefault(element.key[:-1], []).append(ipaddress.ip_network(str(element.key[-1])))
    for networks in ranges.values():
        assert not any(a.overlaps(b) for a, b in combinations(networks, 2))


@given(STATES)
def test_every_reference_exists_and_every_chain_is_referred_to(state: State) -> None:
    layout = whole(state)
    verdicts = {
        e.data.chain for es in layout.elements.values() for e in es if isinstance(e.data, Verdict) and e.data.chain
    }
    reached = {*destinations(layout.chains.values()), *verdicts}
    assert reached <= set(layout.chains)
    statements = [s for c in layout.chains.values() for rule in c.rules for s in rule]
    looked_up = {s.map for s in statements if isinstance(s, Lookup | DnatByMap)}
    matched = {s.set for s in statements if isinstance(s, InSet | Update)}
    assert {*looked_up, *matched} <= set(layout.sets)
    shared = {n for n, c in layout.chains.items() if c.base is None and not n.startswith("affinity-")}
    assert shared - {"refuse"} <= reached


@given(STATES)
def test_every_slot_that_a_chain_may_draw_has_an_endpoint(state: State) -> None:
    layout = whole(state)
    for verdicts, slots in (("services", "endpoints"), ("node-ports", "node-port-endpoints")):
        filled = {e.key for e in layout.elements.get(slots, ())}
        drawn = set()
        for element in layout.elements.get(verdicts, ()):
            assert isinstance(element.data, Verdict)
            if not element.data.chain:
                continue
            for rule in layout.chains[element.data.chain].rules:
                for statement in rule:
                    if isinstance(statement, DnatByMap):
                        random = statement.key[-1]
                        assert isinstance(random, Random)
                        assert statement.map == slots
                        first = random.offset
                        drawn |= {(*element.key, n) for n in range(first, first + random.modulus)}
        assert drawn == filled


@given(STATES)
def test_a_port_never_touches_what_is_another_ports(state: State) -> None:
    plans, settings = state
    without = whole((plans[1:], settings))
    with_it = whole(state)
    frontends = {c.frontend for p in plans[:1] for c in render_port(p, settings).claims}
    keys = {(f.ip, f.protocol.lower(), f.port) if f.ip else (f.protocol.lower(), f.port) for f in frontends}
    for name in ("services", "node-ports"):
        old = {e for e in without.elements.get(name, ()) if e.key not in keys}
        assert old <= {*with_it.elements.get(name, ())}
