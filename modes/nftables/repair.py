"""Undoes what others did to the table, as far as the kernel's notifications tell what it was. Pure.

What the table held before the edits is what it should hold. So a notification tells what is there now, and nothing has
to be read. What cannot be followed in this way is left to a comparison of the whole table: sets that come or go, other
hooks, sets of intervals that the kernel keeps as boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import msgspec

from kproxy.model.plans import PortKey
from kproxy.modes.nftables.chains import balancer_chain
from kproxy.modes.nftables.delta import Delta, by_set
from kproxy.modes.nftables.fragments import Base, Fragment
from kproxy.modes.nftables.ownership import Ownership, Place, frontend_of
from kproxy.netfilter.element_codec import coder
from kproxy.netfilter.notifications import Event
from kproxy.netfilter.objects import Chain, Element, Set


class Wanted:
    """What each place of the table should hold, whichever port needs it. Valid until one of its sources changes."""

    def __init__(
        self,
        base: Base,
        ownership: Ownership,
        fragment: Callable[[PortKey], Fragment],
        with_chains: Iterable[PortKey],
    ) -> None:
        """fragment: renders a port. with_chains: the ports that have chains of their own."""
        self._base, self._ownership, self._fragment, self._with_chains = base, ownership, fragment, with_chains
        self._fragments: dict[PortKey, Fragment] = {}
        self._fixed = {(element.set, element.key): element for element in base.elements}

    def element(self, place: Place) -> Element | None:
        """The element at `place`, None when there should be none."""
        if (fixed := self._fixed.get(place)) is not None:
            return fixed
        if (frontend := frontend_of(place)) is None:
            shared = Element(*place)
            return shared if self._ownership.shares(shared) else None
        if (key := self._ownership.first(frontend)) is None:
            return None
        if key not in self._fragments:
            self._fragments[key] = self._fragment(key)
        claims = (claim for claim in self._fragments[key].claims if claim.frontend == frontend)
        return next((e for claim in claims for e in claim.elements if (e.set, e.key) == place), None)

    def chain(self, name: str) -> Chain | None:
        """The chain of that name, None when there should be none."""
        return self._chains.get(name)

    @cached_property
    def _chains(self) -> dict[str, Chain]:
        chains = {b.name: balancer_chain(b, self._base.settings) for b in self._ownership.balancers()}
        chains.update((chain.name, chain) for chain in self._base.chains)
        chains.update((chain.name, chain) for key in self._with_chains for chain in self._fragment(key).chains)
        return chains


def repair(events: Iterable[Event], sets: Mapping[str, Set], wanted: Wanted) -> Delta | None:
    """What restores the table to what is `wanted` after `events`; None when they do not tell. sets: our own, by
    name."""
    elements: dict[Place, Element | None] = {}
    chains: dict[str, bool] = {}  # by name: does it exist
    for event in events:
        match event.kind:
            case "element" if event.name in sets and _followed(sets[event.name]):
                try:
                    elements.update(_elements(event, sets[event.name]))
                except ValueError:
                    return None
            case "rule":
                chains.setdefault(event.name, True)
            case "chain" if event.deleted or (found := wanted.chain(event.name)) is None or found.base is None:
                chains[event.name] = not event.deleted
            case _:
                return None
    asked = {place: wanted.element(place) for place in elements}
    wrong = [place for place, there in elements.items() if there != asked[place]]
    delta = Delta(
        surplus=by_set(there for place in wrong if (there := elements[place]) is not None),
        missing=by_set(element for place in wrong if (element := asked[place]) is not None),
    )
    _compare_chains(chains, wanted, delta)
    return delta


def _followed(spec: Set) -> bool:
    return not spec.timeout and not (spec.interval and len(spec.key) == 1)


def _elements(event: Event, spec: Set) -> dict[Place, Element | None]:
    code = coder(spec)
    found: dict[Place, Element | None] = {}
    for element in map(code.decode, code.listed(event.elements)):
        if spec.interval:  # an address is listed as a range of one; only the last field of ours is a network
            *fields, network = element.key
            key = (*(str(field).partition("/")[0] if isinstance(field, str) else field for field in fields), network)
            element = msgspec.structs.replace(element, key=key)
        found[event.name, element.key] = None if event.deleted else element
    return found


def _compare_chains(chains: Mapping[str, bool], wanted: Wanted, delta: Delta) -> None:
    for name, there in chains.items():
        chain = wanted.chain(name)
        if chain is None:
            delta.former_chains += [name] if there else []
        elif there:
            delta.changed.append(chain)
        else:
            delta.chains.append(chain)
