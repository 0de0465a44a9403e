"""The whole table as one value: what a node and all its ports come to. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kproxy.model.plans import Family, Frontend, PortKey
from kproxy.modes.nftables.chains import balancer_chain
from kproxy.modes.nftables.fragments import Base, Fragment
from kproxy.modes.nftables.names import Balancer
from kproxy.netfilter.objects import Chain, Element, Set


class Layout(msgspec.Struct, frozen=True):
    """Sets and chains by name, and the elements of each set, in the order of their ports' names."""

    family: Family
    sets: dict[str, Set]
    chains: dict[str, Chain]
    elements: dict[str, tuple[Element, ...]]


def lay_out(base: Base, fragments: Iterable[tuple[PortKey, Fragment]]) -> Layout:
    """BASE and all FRAGMENTS together. Of two ports that claim one frontend the first by name has it."""
    sets = {s.name: s for s in base.sets}
    own: list[Chain] = []
    claimed: set[Frontend] = set()
    shared: dict[Element, None] = {}
    balancers: set[Balancer] = set()
    elements: dict[str, list[Element]] = {}
    for _, fragment in sorted(fragments, key=lambda pair: pair[0]):
        sets.update((s.name, s) for s in fragment.sets)
        own.extend(fragment.chains)
        shared.update(dict.fromkeys(fragment.shared))
        for claim in fragment.claims:
            if claim.frontend in claimed:
                continue
            claimed.add(claim.frontend)
            if claim.needs:
                balancers.add(claim.needs)
            for element in claim.elements:
                elements.setdefault(element.set, []).append(element)
    for element in (*base.elements, *shared):
        elements.setdefault(element.set, []).append(element)
    lent = [balancer_chain(b, base.settings) for b in sorted(balancers)]
    chains = {c.name: c for c in (*base.chains, *lent, *own)}
    return Layout(base.settings.family, sets, chains, {name: tuple(found) for name, found in elements.items()})
