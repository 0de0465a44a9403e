"""Operations on a table of nf_tables, as values. A transaction is a sequence of them. Pure.

Leaves out: their encoding (kproxy.netfilter.messages) and sending (kproxy.netfilter.kernel).
Source: net/netfilter/nf_tables_api.c, for what the kernel refuses and with which error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kproxy.errors import NetlinkError
from kproxy.netfilter.objects import BaseChain, Element, Rule, Set, SetKind

ELEMENTS_AT_ONCE = 10_000
"""Elements of a transaction that holds the kernel's lock for some 15 ms; a cold start uses several transactions."""


class ElementsRefused(NetlinkError):
    """The kernel refuses some elements of an operation. elements: why, by their indices in the operation."""

    def __init__(self, request: str, elements: Mapping[int, NetlinkError]) -> None:
        first = next(iter(elements.values()))
        more = f" and {len(elements) - 1} more" if len(elements) > 1 else ""
        super().__init__(f"{first.request}{more}", first.errno, first.detail)
        self.request, self.elements = request, dict(elements)


class AddTable(NamedTuple):
    """Adds a table; one that exists stays as it is."""

    table: str
    comment: str = ""

    def __str__(self) -> str:
        return f"add table {self.table}"


class DeleteTable(NamedTuple):
    """Deletes a table with everything in it. ENOENT when there is none."""

    table: str

    def __str__(self) -> str:
        return f"delete table {self.table}"


class AddChain(NamedTuple):
    """Adds a chain without rules; one that exists stays as it is. base: None for one that is not called by a hook."""

    table: str
    chain: str
    base: BaseChain | None = None

    def __str__(self) -> str:
        return f"add chain {self.table} {self.chain}"


class FlushChain(NamedTuple):
    """Deletes all rules of a chain."""

    table: str
    chain: str

    def __str__(self) -> str:
        return f"flush chain {self.table} {self.chain}"


class DeleteChain(NamedTuple):
    """Deletes a chain with its rules. EBUSY while a rule or an element jumps to it."""

    table: str
    chain: str

    def __str__(self) -> str:
        return f"delete chain {self.table} {self.chain}"


class AddRules(NamedTuple):
    """Appends rules to a chain. Chains and sets that they refer to must exist, or come earlier in the transaction."""

    table: str
    chain: str
    rules: tuple[Rule, ...]

    def __str__(self) -> str:
        return f"add rules to chain {self.table} {self.chain}"


class AddSet(NamedTuple):
    """Adds a set or map; one that exists in the same form stays as it is, with its elements."""

    table: str
    set: Set

    def __str__(self) -> str:
        return f"add {'set' if self.set.kind is SetKind.SET else 'map'} {self.table} {self.set.name}"


class DeleteSet(NamedTuple):
    """Deletes a set or map with its elements. EBUSY while a rule uses it."""

    table: str
    set: str

    def __str__(self) -> str:
        return f"delete set {self.table} {self.set}"


class FillSet(NamedTuple):
    """Replaces all elements of a set by these. For sets too large to be handled as values.

    encoded: from kproxy.netfilter.element_codec.packed; number: how many elements that is.
    """

    table: str
    set: Set
    encoded: Sequence[bytes]
    number: int

    def __str__(self) -> str:
        return f"fill set {self.table} {self.set.name}"


class AddElements(NamedTuple):
    """Adds any number of elements to a set.

    An element that exists with the same data stays as it is, its comment too; one with other data is an error (EEXIST,
    on older kernels EBUSY).
    """

    table: str
    set: Set
    elements: Sequence[Element]

    def __str__(self) -> str:
        return f"add elements to {self.table} {self.set.name}"


class DeleteElements(NamedTuple):
    """Deletes elements from a set, by their keys. ENOENT for one that does not exist."""

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
