"""What leads from one state of the table to another, and the order of writing that breaks nothing. Pure.

First sets and chains to which nothing leads yet, then the elements of data, then the verdicts that send packets there,
then away with what nothing leads to any more, and last the base chains, which bring packets to it all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kproxy.modes.nftables.names import TABLE
from kproxy.modes.nftables.ownership import Change, Place
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
    """Elements of one set: how many, and as FillSet takes them."""

    number: int = 0
    encoded: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Delta:
    """What has to be done.

    sets, chains: to make. changed: chains that are there with other rules. surplus, missing: elements by the name of
    their set; the same key in both means other data. filled: sets, of data and not of verdicts, that get these elements
    in place of all others. former_chains, former_sets: names of what has to go.
    new: the table has to be made. replace: whatever table there is has to go first, in the same transaction.
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
        """Where anything differs: places of elements, names of sets and chains."""
        yield from (found.name for found in self.sets)
        yield from (chain.name for chain in (*self.chains, *self.changed))
        yield from (*self.former_chains, *self.former_sets)
        yield from ((name, e.key) for side in (self.surplus, self.missing) for name, some in side.items() for e in some)


class _Step(NamedTuple):
    """Operations that belong into one transaction, and how many elements they have."""

    elements: int
    operations: Sequence[Operation]


def by_set(elements: Iterable[Element]) -> dict[str, list[Element]]:
    """ELEMENTS by the name of their set."""
    found: dict[str, list[Element]] = {}
    for element in elements:
        found.setdefault(element.set, []).append(element)
    return found


def difference(change: Change) -> Delta:
    """What a change of some ports asks for."""
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
    """DELTA as transactions of at most MOST elements each, but for those that cannot be had apart.

    sets: by name, all that have elements in DELTA. last: goes into the last transaction, at its end.
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
    """All chains before any rules, as rules lead from one to another."""
    chains = [chain for chain in delta.chains if chain.base is None]
    return [
        *([AddTable(TABLE)] if delta.replace else []),  # so that there is one to delete
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
    """Chains may lead to each other, so all lose their rules first."""
    yield from (FlushChain(TABLE, name) for name in delta.former_chains)
    yield from (DeleteChain(TABLE, name) for name in delta.former_chains)
    yield from (DeleteSet(TABLE, name) for name in delta.former_sets)


def _elements(delta: Delta, sets: Mapping[str, Set], verdicts: bool, most: int) -> Iterator[_Step]:
    """Elements that come, each after the one whose place it takes; and the verdicts that go."""
    if not verdicts:
        for name, filling in delta.filled.items():
            yield _Step(filling.number, [FillSet(TABLE, sets[name], filling.encoded, filling.number)])
    for name in dict.fromkeys((*delta.missing, *delta.surplus)):
        found, missing, surplus = sets[name], delta.missing.get(name, []), delta.surplus.get(name, [])
        if (found.kind is SetKind.VERDICTS) is not verdicts:
            continue
        if found.interval and missing:  # one may lie within another
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
    """Data that nothing leads to any more."""
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
