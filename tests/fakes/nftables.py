"""nf_tables in memory: strict where the kernel is, so that wrong operations fail in tests too.

Leaves out: packets, and what other programs than kproxy keep in nf_tables besides whole tables. It takes operations as
values and lists elements with the product's own encoder, so it cannot catch an encoding fault. These tests do: the
bytes in tests/netfilter/test_codec.py are those that Linux lists; tests/netfilter/test_kernel.py compares what the
kernel holds with what nft, another implementation, makes of the same table, for any plans; and every case of
tests/netfilter/test_semantics.py runs against this and the kernel.
Sources: net/netfilter/nf_tables_api.c, net/netfilter/nfnetlink.c.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from kproxy.errors import NetlinkError
from kproxy.model.plans import Family
from kproxy.netfilter.element_codec import coder
from kproxy.netfilter.kernel import LISTED_AT_MOST, NFT_FAMILY, OUTDATED, Expected, ListedSet, Listing
from kproxy.netfilter.messages import HEADER_BYTES, ListedChain, messages
from kproxy.netfilter.notifications import Change, Event
from kproxy.netfilter.objects import Chain, Element, Set, SetKind
from kproxy.netfilter.operations import AddElements, AddTable, DeleteElements, DeleteTable, ElementsRefused, Operation
from kproxy.netfilter.rule_codec import expressions
from tests.fakes.nftables_events import events_of
from tests.fakes.nftables_tables import Members, Refused, Table

_Tables = dict[tuple[Family, str], Table]


def accept(operation: Operation, element: Element | None) -> int:
    """Refuses nothing; for `FakeNftables.refuse`."""
    return 0


class FakeNftables:
    """Implements kproxy.netfilter.kernel.Nftables for both families; tables of both may share one, in two threads.

    Faults to inject: `refuse`, which gives the errno for an operation (with None for the element) and for each element
    of one, or 0; `refuse_all`, which gives it for a whole transaction, of which no operation is blamed; `fail_at`, the
    numbers of the applies (from 1) at which the kernel cannot be talked to; `unreadable`, whether reading fails; `old`,
    whether it does not compare generations; `meanwhile` and `unanswered`, called with the family when a transaction's
    generation is already known, and when it is done but not yet answered: by blocking they make it hang.

    list_at_most: elements of a set that it lists, see LISTED_AT_MOST of kproxy.netfilter.kernel.
    applied: the operations of each transaction that was done. applies, listings: how often those were asked for.
    late: how many transactions expected a generation that was over. foreign: how many transactions others made.
    events: what others did in them, None for what is lost, as all that a flush does.
    """

    def __init__(self) -> None:
        self.refuse: Callable[[Operation, Element | None], int] = accept
        self.refuse_all: Callable[[Sequence[Operation]], int] = lambda operations: 0
        self.meanwhile: Callable[[Family], None] = lambda family: None
        self.unanswered: Callable[[Family], None] = lambda family: None
        self.list_at_most = LISTED_AT_MOST
        self.events: list[Event | None] = []
        self._lock = threading.RLock()
        self.fail_at: set[int] = set()
        self.unreadable = self.old = False
        self.applied: list[tuple[Operation, ...]] = []
        self.applies = self.listings = self.foreign = self.late = 0
        self._tables: _Tables = {}
        self._generation, self._written = 1, 0

    # ---- what a test does to it

    def edit(self, family: Family, *operations: Operation) -> None:
        """What other programs do: a transaction that is counted only in `foreign`. Raises NetlinkError."""
        with self._lock:
            tables, errors = self._try(family, operations, accept)
            if errors:
                raise next(iter(errors.values()))
            self.events += events_of(self._tables, tables, family, operations)
            self._commit(tables)
            self.foreign += 1

    def flush(self) -> None:
        """What `nft flush ruleset` does."""
        with self._lock:
            self._commit({})
            self.foreign += 1
            self.events.append(None)

    def tables(self) -> frozenset[tuple[Family, str]]:
        """All tables that exist."""
        return frozenset(self._tables)

    def chains(self, family: Family, table: str) -> dict[str, Chain]:
        """The chains of a table with their rules. Raises KeyError."""
        chains = self._tables[family, table].chains
        return {name: Chain(name, chain.rules, chain.base) for name, chain in chains.items()}

    def sets(self, family: Family, table: str) -> dict[str, Set]:
        """What the sets of a table are. Raises KeyError."""
        return {name: members.spec for name, members in self._tables[family, table].sets.items()}

    def elements(self, family: Family, table: str, name: str) -> tuple[Element, ...]:
        """The elements of a set, in the order in which they came. Raises KeyError."""
        return tuple(self._tables[family, table].sets[name].elements.values())

    # ---- Nftables

    @property
    def bytes_written(self) -> int:
        return self._written

    def generation(self) -> int:
        return self._generation

    def apply(
        self, family: Family, operations: Sequence[Operation], expected: Expected = None
    ) -> dict[int, NetlinkError]:
        self.applies += 1
        if self.applies in self.fail_at:
            raise NetlinkError("change nf_tables", errno.ENOBUFS)
        generation = self._asked(family, expected)
        with self._lock:
            tables, errors = self._try_at(generation, family, operations)
            if not errors and (number := self.refuse_all(operations)):
                raise NetlinkError("change nf_tables", number)
            if not errors and operations:
                self._commit(tables)
                self.applied.append(tuple(operations))
                self._written += sum(len(m.payload) + HEADER_BYTES for op in operations for m in messages(family, op))
        self.unanswered(family)
        return errors

    def check(
        self, family: Family, operations: Sequence[Operation], expected: Expected = None
    ) -> dict[int, NetlinkError]:
        generation = self._asked(family, expected)
        with self._lock:
            return self._try_at(generation, family, operations)[1]

    def listing(self, family: Family, table: str, sizes: Mapping[str, int] = MappingProxyType({})) -> Listing | None:
        self.listings += 1
        if self.unreadable:
            raise NetlinkError(f"list table {table}", errno.ENOBUFS)
        found = self._tables.get((family, table))
        if found is None:
            return None
        chains: Mapping[str, ListedChain] = {
            name: ListedChain(chain.base, True, tuple(expressions(family, rule) for rule in chain.rules))
            for name, chain in found.chains.items()
        }
        sets = {
            name: ListedSet(members.spec, self._told(members, sizes.get(name))) for name, members in found.sets.items()
        }
        return Listing(self._generation, chains, sets)

    def _told(self, members: Members, size: int | None) -> list[bytes] | None:
        if size is not None and max(size, len(members.elements)) > self.list_at_most:
            return None
        return coder(members.spec).encode(list(members.elements.values()))

    def listen(self, family: Family, table: str) -> FakeListener:
        return FakeListener(self.events, (NFT_FAMILY[family], table))

    # ---- transactions

    def _asked(self, family: Family, expected: Expected) -> int | None:
        generation = expected() if callable(expected) else expected
        self.meanwhile(family)
        return generation

    def _try_at(
        self, generation: int | None, family: Family, operations: Sequence[Operation]
    ) -> tuple[_Tables, dict[int, NetlinkError]]:
        if generation is not None and generation != self._generation and not self.old:
            self.late += 1
            raise NetlinkError("change nf_tables", OUTDATED)
        return self._try(family, operations, self.refuse)

    def _commit(self, tables: _Tables) -> None:
        self._tables = tables
        self._generation += 1

    def _try(
        self, family: Family, operations: Sequence[Operation], refuse: Callable[[Operation, Element | None], int]
    ) -> tuple[_Tables, dict[int, NetlinkError]]:
        """What the tables would be. As in the kernel, operations after a refused one are tried as well."""
        tables = dict(self._tables)
        touched: set[tuple[Family, str]] = set()
        errors: dict[int, NetlinkError] = {}
        for index, operation in enumerate(operations):
            place = family, operation.table
            if place in tables and place not in touched:
                tables[place] = tables[place].copy()
            touched.add(place)
            try:
                if number := refuse(operation, None):
                    raise Refused(number, "refused for a test")
                errors |= _do(tables, place, index, operation, refuse)
            except Refused as error:
                errors[index] = NetlinkError(str(operation), error.number, str(error))
        return tables, errors


class FakeListener:
    """Reports what others do to one table of a FakeNftables."""

    def __init__(self, events: Sequence[Event | None], place: tuple[str, str]) -> None:
        self._events, self._place, self._seen = events, place, len(events)

    def poll(self) -> list[Change]:
        events, self._seen = self._events[self._seen :], len(self._events)
        return [Change(event) for event in events if event is None or (event.family, event.table) == self._place]

    def forget(self) -> None:
        self._seen = len(self._events)

    def close(self) -> None:
        """Nothing to close."""


def _do(
    tables: _Tables,
    place: tuple[Family, str],
    index: int,
    operation: Operation,
    refuse: Callable[[Operation, Element | None], int],
) -> dict[int, NetlinkError]:
    """Does one operation; returns its error if single elements are refused. Raises Refused for all of it."""
    if isinstance(operation, AddTable):
        tables.setdefault(place, Table(place[0]))
        return {}
    if place not in tables:
        raise Refused(errno.ENOENT, f"no table {operation.table}")
    if isinstance(operation, DeleteTable):
        del tables[place]
    elif isinstance(operation, AddElements | DeleteElements):
        wrong = _put(tables[place], operation, refuse)
        return {index: ElementsRefused(str(operation), wrong)} if wrong else {}
    else:
        tables[place].do(operation)
    return {}


def _put(
    table: Table, operation: AddElements | DeleteElements, refuse: Callable[[Operation, Element | None], int]
) -> dict[int, NetlinkError]:
    verb = "add" if isinstance(operation, AddElements) else "delete"
    wrong: dict[int, NetlinkError] = {}
    for at, element in enumerate(operation.elements):
        try:
            if number := refuse(operation, element):
                raise Refused(number, "refused for a test")
            table.put(operation, element)
        except Refused as error:
            request = f"{verb} element {operation.set.name} {' . '.join(map(str, element.key))}"
            wrong[at] = NetlinkError(request, error.number, str(error))
    if isinstance(operation, AddElements) and operation.set.kind is SetKind.VERDICTS:
        table.check_paths()
    return wrong
