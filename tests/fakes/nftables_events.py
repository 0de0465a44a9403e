"""The kernel's notifications of a transaction on tables in memory: pure.

Source: nf_tables_commit() of net/netfilter/nf_tables_api.c. Simpler than the kernel in one thing: a chain has one event
for all the rules that it got or lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from kproxy.model.plans import Family
from kproxy.netfilter.element_codec import coder
from kproxy.netfilter.kernel import NFT_FAMILY
from kproxy.netfilter.notifications import Event
from kproxy.netfilter.objects import Element
from kproxy.netfilter.operations import Operation
from tests.fakes.nftables_tables import Members, Table

Tables = Mapping[tuple[Family, str], Table]


def events_of(before: Tables, after: Tables, family: Family, operations: Sequence[Operation]) -> list[Event]:
    """The events of a transaction of `operations` that turned `before` into `after`."""
    found: list[Event] = []
    for table in dict.fromkeys(operation.table for operation in operations):
        old, new = before.get((family, table)), after.get((family, table))
        if old is None or new is None:
            if old is not new:
                found.append(Event(new is None, "table", NFT_FAMILY[family], table, ""))
        else:
            found += _within(old, new, family, table)
    return found


def _within(old: Table, new: Table, family: Family, table: str) -> Iterator[Event]:
    word = NFT_FAMILY[family]
    for name in _sorted(old.chains, new.chains):
        was, now = old.chains.get(name), new.chains.get(name)
        if (was is None) is not (now is None):
            yield Event(now is None, "chain", word, table, name)
        if (was.rules if was else ()) != (now.rules if now else ()):
            yield Event(now is None, "rule", word, table, name)
    for name in _sorted(old.sets, new.sets):
        members, others = old.sets.get(name), new.sets.get(name)
        if (members is None) is not (others is None):
            yield Event(others is None, "set", word, table, name)
        for deleted, some in ((True, _only(members, others)), (False, _only(others, members))):
            if spec := (members or others):
                for element in some:
                    yield Event(deleted, "element", word, table, name, coder(spec.spec).encode([element])[0])


def _sorted(one: Iterable[str], other: Iterable[str]) -> list[str]:
    return sorted({*one, *other})


def _only(one: Members | None, other: Members | None) -> list[Element]:
    """The elements that `one` has and `other` has not, or has with other data."""
    there = other.elements if other else {}
    return [element for key, element in (one.elements if one else {}).items() if there.get(key) != element]
