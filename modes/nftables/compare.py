"""Compares the table as the kernel lists it with what it should hold. Pure.

What cannot be repaired piece by piece is replaced as a whole, in one transaction: a set or base chain of another form,
or elements that cannot be decoded. A set with more elements than can be listed in reasonable time is emptied and filled
again, in one transaction too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kproxy.model.plans import Family
from kproxy.modes.nftables.delta import Delta, Filling
from kproxy.modes.nftables.render import Layout
from kproxy.netfilter.element_codec import Coder, coder, packed
from kproxy.netfilter.kernel import ListedSet, Listing
from kproxy.netfilter.messages import ListedChain
from kproxy.netfilter.objects import Chain, Element, Set


class OtherForm(Exception):
    """Raised when the table cannot be repaired, only be replaced."""


def replacement(layout: Layout) -> Delta:
    """All of `layout`, in place of whatever table exists."""
    missing = {name: list(elements) for name, elements in layout.elements.items() if elements}
    sets, chains = list(layout.sets.values()), list(layout.chains.values())
    return Delta(sets=sets, chains=chains, missing=missing, replace=True)


class Comparison:
    """Takes piece by piece what the table should hold; returns what differs in the end."""

    def __init__(self, listing: Listing, family: Family, sure: bool = False) -> None:
        """sure: sets too large to be listed are known to be as they should be."""
        self._listing, self._family, self._sure = listing, family, sure
        self._there: dict[str, set[bytes]] = {}
        self._missing: dict[str, list[Element]] = {}
        self._filled: dict[str, Filling] = {}

    def want(self, elements: Mapping[str, Sequence[Element]], sets: Mapping[str, Set]) -> None:
        """Adds wanted elements, by the names of `sets`; each is given once. Raises OtherForm."""
        for name, some in elements.items():
            if missing := self._lacking(name, some, sets[name]):
                self._missing.setdefault(name, []).extend(missing)

    def delta(self, sets: Mapping[str, Set], chains: Mapping[str, Chain]) -> Delta:
        """The difference to all elements so far, to `sets` and to `chains`. Raises OtherForm."""
        listing = self._listing
        if any(_is_other_chain(listing.chains.get(name), chain) for name, chain in chains.items()):
            raise OtherForm
        delta = Delta(
            sets=[found for name, found in sets.items() if name not in listing.sets],
            chains=[chain for name, chain in chains.items() if name not in listing.chains],
            missing=self._missing,
            former_chains=[name for name in listing.chains if name not in chains],
            former_sets=[name for name in listing.sets if name not in sets],
        )
        for name, chain in chains.items():
            listed = listing.chains.get(name)
            if listed is not None and not _same(listed, self._family, chain):
                delta.changed.append(chain)
        surplus: dict[str, Sequence[Element]] = {}
        for name, spec in sets.items():
            if spec.timeout or name not in listing.sets:  # packets add the elements, or there are none
                continue
            if self._is_unlisted(name, spec):
                if not self._sure:
                    delta.filled[name] = self._filled.get(name, Filling())
            elif found := self._surplus(name, spec):
                surplus[name] = found
        delta.surplus = surplus
        return delta

    def _is_unlisted(self, name: str, spec: Set) -> bool:
        """Whether the set has the right form and more elements than could be listed."""
        listed = self._listing.sets[name]
        return listed.elements is None and listed.spec == spec

    def _surplus(self, name: str, spec: Set) -> list[Element]:
        try:
            return [coder(spec).decode(data) for data in self._of(name, self._listing.sets[name], spec)]
        except ValueError:
            raise OtherForm from None

    def _lacking(self, name: str, wanted: Sequence[Element], spec: Set) -> Sequence[Element]:
        listed = self._listing.sets.get(name)
        if listed is None:
            return wanted
        unlisted = self._is_unlisted(name, spec)
        if unlisted and self._sure:
            return []
        encoded = _encoded(coder(spec), wanted)
        if unlisted:
            filling = self._filled.setdefault(name, Filling())
            right = [data for data in encoded if data]
            filling.number += len(right)
            filling.encoded += packed(right)
            return [wanted[at] for at, data in enumerate(encoded) if not data]
        there = self._of(name, listed, spec)
        missing = [wanted[at] for at, data in enumerate(encoded) if data not in there]
        there.difference_update(encoded)
        return missing

    def _of(self, name: str, listed: ListedSet, spec: Set) -> set[bytes]:
        """The listed elements that were not wanted so far."""
        if name not in self._there:
            if listed.spec != spec or listed.elements is None:
                raise OtherForm
            self._there[name] = set(listed.elements)
        return self._there[name]


def _encoded(code: Coder, elements: Sequence[Element]) -> list[bytes]:
    """Their bytes; b"" for an invalid one, so that it is missing, written and refused by its port."""
    try:
        return code.encode(elements)
    except ValueError:
        return [_encoded_or_empty(code, element) for element in elements]


def _encoded_or_empty(code: Coder, element: Element) -> bytes:
    try:
        return code.encode([element])[0]
    except ValueError:
        return b""


def _same(listed: ListedChain, family: Family, chain: Chain) -> bool:
    try:
        return listed.same_as(family, chain)
    except ValueError:  # an invalid rule, which is refused when it is written
        return False


def _is_other_chain(listed: ListedChain | None, wanted: Chain) -> bool:
    return listed is not None and not (listed.ordinary and listed.base == wanted.base)
