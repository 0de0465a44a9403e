"""Rules of nf_tables as the kernel lists them, whoever wrote them: values. Pure.

Decides nothing of what an expression means. Source: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Place(NamedTuple):
    """A table. family: as nft writes it: ip, ip6 or inet."""

    family: str
    table: str


class HookedChain(NamedTuple):
    """A base chain. hook: as nft writes it. drops: its policy is to drop."""

    place: Place
    name: str
    type: str
    hook: str
    priority: int
    drops: bool


class Data(NamedTuple):
    """A value, or a verdict: its code (enum nft_verdicts, or NF_DROP, NF_ACCEPT), and the chain of a jump. comment: of
    the element of a set or map that has it."""

    value: bytes = b""
    verdict: int | None = None
    chain: str = ""
    comment: str = ""


class Expression(NamedTuple):
    """One expression of a rule. attributes: NFTA_*, of this kind of expression. data: those that hold a value or a
    verdict, decoded."""

    name: str
    attributes: Mapping[int, bytes]
    data: Mapping[int, Data] = {}

    def number(self, attribute: int) -> int:
        """A big-endian number, 0 for an attribute that is not there."""
        return int.from_bytes(self.attributes.get(attribute, b""), "big")

    def text(self, attribute: int) -> str:
        return self.attributes.get(attribute, b"").split(b"\0", 1)[0].decode(errors="replace")

    def value(self, attribute: int) -> bytes:
        """A value, empty for an attribute that is not there."""
        return self.data[attribute].value if attribute in self.data else b""


class LiveRule(NamedTuple):
    """A rule. comment: "" for none."""

    expressions: tuple[Expression, ...]
    comment: str = ""
