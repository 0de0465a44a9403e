"""The difference between two states of the table, and the order of writing it that breaks nothing. Pure.

First come sets and chains that nothing refers to yet, then elements of data, then the verdicts that send packets there;
then what nothing refers to any more is deleted; and last come the base chains, which bring packets to it all.

Elements of data are most of a table. Where many ports come at once they are encoded straight away, into the bytes that
the kernel takes and that a listing is compared with: that takes a fifth of the time that values take.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kproxy.modes.nftables.fragments import Claim
from kproxy.modes.nftables.names import TABLE
from kproxy.modes.nftables.ownership import Change, Needs, Place
from kproxy.netfilter.element_codec import Encoded, coder
from kproxy.netfilter.objects import Chain, Element, Set, SetKind
from kproxy.netfilter.operations import (
    ELEMENTS_AT_ONCE,
    AddChain,
    AddElements,
    AddRules,
    AddSet,
    AddTable,
    DeleteChain,
    DeleteElements,
    DeleteSet,
    DeleteTable,
    FillSet,
    FlushChain,
    Operation,
)


@dataclass(slots=True)
class Filling:
    """All elements for one set: their number, and their bytes as FillSet takes them."""

    number: int = 0
    encoded: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Delta:
    """What has to be changed in the table.

    sets, chains: to add. changed: chains that exist with other rules. surplus, missing: elements by the name of their
    set; the same key in both means other data. filled: sets, of data and not of verdicts, that get these elements in
    place of all others. former_chains, former_sets: names of what has to be deleted.
    new: the table has to be added. replace: whatever table exists has to be deleted first, in the same transaction.
    """

    sets: list[Set] = field(default_factory=list)
    chains: list[Chain] = field(default_factory=list)
    changed: list[Chain] = field(default_factory=list)
    surplus: Mapping[str, Sequence[Element]] = field(default_factory=dict)
    missing: Mapping[str, Sequence[Element]] = field(default_factory=dict)
    filled: dict[str, Filling] = field(default_factory=dict)
    former_chains: list[str] = field(default_factory=list)
    former_sets: list[str] = field(default_factory=list)
    new: bool = False
    replace: bool = False

    @property
    def places(self) -> Iterator[Place | str]:
        """Everything that differs: places of elements, names of sets and chains."""
        yield from (found.name for found in self.sets)
        yield from (chain.name for chain in (*self.chains, *self.changed))
        yield from (*self.former_chains, *self.former_sets)
        yield from ((name, e.key) for side in (self.surplus, self.missing) for name, some in side.items() for e in some)


class _Step(NamedTuple):
    """Operations that cannot be separated, and how many elements they have."""

    elements: int
    operations: Sequence[Operation]


def by_set(elements: Iterable[Element]) -> dict[str, list[Element]]:
    """ELEMENTS by the name of their set."""
    found: dict[str, list[Element]] = {}
    for element in elements:
        found.setdefault(element.set, []).append(element)
    return found


def difference(change: Change) -> Delta:
    """The Delta for a change of some ports."""
    (old_sets, old_chains, old_elements), (new_sets, new_chains, new_elements) = change
    return Delta(
        sets=[found for name, found in new_sets.items() if name not in old_sets],
        chains=[chain for name, chain in new_chains.items() if name not in old_chains],
        changed=[chain for name, chain in new_chains.items() if old_chains.get(name, chain) != chain],
        former_chains=[name for name in old_chains if name not in new_chains],
        former_sets=[name for name in old_sets if name not in new_sets],
        surplus=by_set(element for place, element in old_elements.items() if new_elements.get(place) != element),
        missing=by_set(element for place, element in new_elements.items() if old_elements.get(place) != element),
    )


def transactions(
    delta: Delta, sets: Mapping[str, Set], last: Sequence[Operation] = (), most: int = ELEMENTS_AT_ONCE
) -> list[list[Operation]]:
    """DELTA as transactions of at most MOST elements each, except where elements cannot be separated.

    sets: by name, all that have elements in DELTA. last: operations at the end of the last transaction.
    """
    steps = [
        _Step(0, _made(delta)),
        *_elements(delta, sets, verdicts=False, most=most),
        *_elements(delta, sets, verdicts=True, most=most),
        *_removed(delta, sets, most),
        _Step(0, [*_cleared(delta), *_hooked(delta), *last]),
    ]
    done: list[list[Operation]] = []
    room = 0
    for elements, operations in steps:
        if not done or (elements > room and not delta.replace):
            done.append([])
            room = most
        done[-1] += operations
        room -= elements
    return [operations for operations in done if operations]


def _made(delta: Delta) -> list[Operation]:
    """The operations that make sets and chains: all chains before any rules, as rules of one may jump to another."""
    chains = [chain for chain in delta.chains if chain.base is None]
    return [
        *([AddTable(TABLE)] if delta.replace else []),  # so that there is a table to delete
        *([DeleteTable(TABLE)] if delta.replace else []),
        *([AddTable(TABLE)] if delta.new or delta.replace else []),
        *(AddSet(TABLE, found) for found in delta.sets),
        *(AddChain(TABLE, chain.name) for chain in chains),
        *(FlushChain(TABLE, chain.name) for chain in delta.changed),
        *(AddRules(TABLE, chain.name, chain.rules) for chain in (*chains, *delta.changed) if chain.rules),
    ]


def _hooked(delta: Delta) -> Iterator[Operation]:
    for chain in delta.chains:
        if chain.base is not None:
            yield AddChain(TABLE, chain.name, chain.base)
            yield AddRules(TABLE, chain.name, chain.rules)


def _cleared(delta: Delta) -> Iterator[Operation]:
    """The operations that delete chains and sets: chains may jump to each other, so all are flushed first."""
    yield from (FlushChain(TABLE, name) for name in delta.former_chains)
    yield from (DeleteChain(TABLE, name) for name in delta.former_chains)
    yield from (DeleteSet(TABLE, name) for name in delta.former_sets)


def _elements(delta: Delta, sets: Mapping[str, Set], verdicts: bool, most: int) -> Iterator[_Step]:
    """Added elements, each after the deletion of the one that it replaces; and deleted verdicts."""
    if not verdicts:
        for name, filling in delta.filled.items():
            yield _Step(filling.number, [FillSet(TABLE, sets[name], filling.encoded, filling.number)])
    for name in dict.fromkeys((*delta.missing, *delta.surplus)):
        found, missing, surplus = sets[name], delta.missing.get(name, []), delta.surplus.get(name, [])
        if (found.kind is SetKind.VERDICTS) is not verdicts:
            continue
        if found.interval and missing:  # one may overlap another
            yield _Step(len(missing) + len(surplus), [*_deleted(found, surplus), AddElements(TABLE, found, missing)])
            continue
        leaving = {element.key: element for element in surplus}
        for at in range(0, len(missing), most):
            some = missing[at : at + most]
            replaced = [leaving.pop(element.key) for element in some if element.key in leaving] if leaving else []
            yield _Step(len(some) + len(replaced), [*_deleted(found, replaced), AddElements(TABLE, found, some)])
        if verdicts:
            yield from _without(found, list(leaving.values()), most)


def _removed(delta: Delta, sets: Mapping[str, Set], most: int) -> Iterator[_Step]:
    """Deleted data, which no verdict refers to any more."""
    for name, surplus in delta.surplus.items():
        found, missing = sets[name], delta.missing.get(name, [])
        if found.kind is SetKind.VERDICTS or (found.interval and missing):
            continue
        replaced = {element.key for element in missing}
        yield from _without(found, [element for element in surplus if element.key not in replaced], most)


def _without(found: Set, surplus: Sequence[Element], most: int) -> Iterator[_Step]:
    for at in range(0, len(surplus), most):
        some = surplus[at : at + most]
        yield _Step(len(some), _deleted(found, some))


def _deleted(found: Set, surplus: Sequence[Element]) -> list[Operation]:
    return [DeleteElements(TABLE, found, surplus)] if surplus else []


# ---------------------------------------------------------------- many ports at once


def elements(needs: Needs, sets: Mapping[str, Set]) -> dict[str, Sequence[Element]]:
    """The elements for NEEDS, by the name of their set. sets: of the base, by name."""
    found: dict[str, list[Element]] = {}
    for claim in needs.claims:
        found.setdefault(claim.verdict.set, []).append(claim.verdict)
        if claim.sources:
            found.setdefault(claim.sources[0].set, []).extend(claim.sources)
        for element in claim.loopback:
            found.setdefault(element.set, []).append(element)
    try:
        return {**found, **_encoded_targets(needs.claims, sets), **_encoded_shared(needs.shared, sets)}
    except ValueError:  # one of them is invalid; of values it can be told which
        return {**found, **_as_values(needs, sets)}


def _encoded_targets(claims: Iterable[Claim], sets: Mapping[str, Set]) -> dict[str, Encoded]:
    """Raises ValueError."""
    coders = {name: coder(found) for name, found in sets.items()}
    data: dict[str, list[bytes]] = {}
    for claim in claims:
        if (targets := claim.targets) is not None:
            data.setdefault(targets.set, []).extend(coders[targets.set].slots(targets.key, targets.ends))
    return {name: Encoded(sets[name], encoded) for name, encoded in data.items()}


def _encoded_shared(shared: Mapping[str, Sequence[str]], sets: Mapping[str, Set]) -> dict[str, Encoded]:
    """Raises ValueError."""
    data = {name: coder(sets[name]).repeated(addresses) for name, addresses in shared.items() if addresses}
    return {name: Encoded(sets[name], encoded) for name, encoded in data.items()}


def _as_values(needs: Needs, sets: Mapping[str, Set]) -> dict[str, list[Element]]:
    found: dict[str, list[Element]] = {}
    for claim in needs.claims:
        if claim.targets is not None:
            found.setdefault(claim.targets.set, []).extend(claim.targets.elements)
    for name, addresses in needs.shared.items():
        if addresses:
            found[name] = [Element(name, (address,) * len(sets[name].key)) for address in addresses]
    return found
