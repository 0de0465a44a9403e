"""What can be done to a table of nf_tables, as values: pure. One transaction is a sequence of these.

Leaves out: how the kernel is told (kproxy.netfilter.messages, kproxy.netfilter.table).
Source: net/netfilter/nf_tables_api.c, for what the kernel refuses and with which error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kproxy.errors import NetlinkError
from kproxy.netfilter.objects import BaseChain, Element, Rule, Set, SetKind

ELEMENTS_AT_ONCE = 10_000
"""As many elements a transaction keep the kernel's lock for some 15 ms; a cold start may use several transactions."""


class ElementsRefused(NetlinkError):
    """Some elements of an operation are refused. elements: why, by their indices in the operation."""

    def __init__(self, request: str, elements: Mapping[int, NetlinkError]) -> None:
        first = next(iter(elements.values()))
        more = f" and {len(elements) - 1} more" if len(elements) > 1 else ""
        super().__init__(f"{first.request}{more}", first.errno, first.detail)
        self.request, self.elements = request, dict(elements)


class AddTable(NamedTuple):
    """Make a table; one that is there stays as it is."""

    table: str
    comment: str = ""

    def __str__(self) -> str:
        return f"add table {self.table}"


class DeleteTable(NamedTuple):
    """Delete a table with all that it holds. ENOENT when there is none."""

    table: str

    def __str__(self) -> str:
        return f"delete table {self.table}"


class AddChain(NamedTuple):
    """Make a chain without rules; one that is there stays as it is. base: None for one that others lead to."""

    table: str
    chain: str
    base: BaseChain | None = None

    def __str__(self) -> str:
        return f"add chain {self.table} {self.chain}"


class FlushChain(NamedTuple):
    """Delete all rules of a chain."""

    table: str
    chain: str

    def __str__(self) -> str:
        return f"flush chain {self.table} {self.chain}"


class DeleteChain(NamedTuple):
    """Delete a chain with its rules. EBUSY while something leads to it."""

    table: str
    chain: str

    def __str__(self) -> str:
        return f"delete chain {self.table} {self.chain}"


class AddRules(NamedTuple):
    """Append rules to a chain. What they lead to or look in must be there before them, in the same batch at least."""

    table: str
    chain: str
    rules: tuple[Rule, ...]

    def __str__(self) -> str:
        return f"add rules to chain {self.table} {self.chain}"


class AddSet(NamedTuple):
    """Make a set or map; one that is there in the same form stays as it is, with its elements."""

    table: str
    set: Set

    def __str__(self) -> str:
        return f"add {'set' if self.set.kind is SetKind.SET else 'map'} {self.table} {self.set.name}"


class DeleteSet(NamedTuple):
    """Delete a set or map with its elements. EBUSY while a rule uses it."""

    table: str
    set: str

    def __str__(self) -> str:
        return f"delete set {self.table} {self.set}"


class FillSet(NamedTuple):
    """Make these the elements of a set, in place of all that it has. For sets too large to be handled as values.

    encoded: as kproxy.netfilter.element_codec.packed makes them; number: how many they are.
    """

    table: str
    set: Set
    encoded: Sequence[bytes]
    number: int

    def __str__(self) -> str:
        return f"fill set {self.table} {self.set.name}"


class AddElements(NamedTuple):
    """Puts elements, as many as you like, into a set.

    One that is there with the same data stays as it is, its comment too; one with other data is an error (EEXIST, of
    older kernels EBUSY).
    """

    table: str
    set: Set
    elements: Sequence[Element]

    def __str__(self) -> str:
        return f"add elements to {self.table} {self.set.name}"


class DeleteElements(NamedTuple):
    """Take elements out of a set; only their keys count. ENOENT for one that is not there."""

    table: str
    set: Set
    elements: Sequence[Element]

    def __str__(self) -> str:
        return f"delete elements of {self.table} {self.set.name}"


Operation = (
    AddTable
    | DeleteTable
    | AddChain
    | FlushChain
    | DeleteChain
    | AddRules
    | AddSet
    | DeleteSet
    | FillSet
    | AddElements
    | DeleteElements
)
