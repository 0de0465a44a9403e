"""The kernel's ipsets, by netlink: what they hold, and changes to them in batches.

Entries are the text that ipset(8) prints: "10.96.0.1,tcp:443", "30080", "10.0.0.1,udp:53,10.0.0.1",
"203.0.113.1,tcp:80,10.0.0.0/8". Sources: include/uapi/linux/netfilter/ipset/ip_set.h, ipset(8).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol

from kproxy.errors import NetlinkError
from kproxy.model.plans import Family

__all__ = ["Change", "HeldSet", "IpSets", "SetSpec", "SetType"]


class SetType(StrEnum):
    """The types that are used, by ipset's names."""

    HASH_IP = "hash:ip"
    HASH_IP_PORT = "hash:ip,port"
    HASH_IP_PORT_IP = "hash:ip,port,ip"
    HASH_IP_PORT_NET = "hash:ip,port,net"
    BITMAP_PORT = "bitmap:port"


class SetSpec(NamedTuple):
    """A set as it is created. family: that of a hash's addresses; a bitmap has none, there it has no meaning."""

    name: str
    type: SetType
    family: Family


class HeldSet(NamedTuple):
    """A set as the kernel has it. type: any of ipset's names. references: rules and sets that use it. family: None
    for a bitmap."""

    type: str
    family: Family | None
    references: int
    entries: frozenset[str]


class Change(NamedTuple):
    """An entry to put into a set, or to take out of it."""

    set: str
    entry: str
    add: bool


class IpSets(Protocol):
    """The ipsets of one network namespace. Not for two threads at a time: make one for each."""

    def held(self, names: Collection[str]) -> dict[str, HeldSet]:
        """Those of NAMES that exist, with all entries in canonical text. Raises NetlinkError."""

    def create(self, specs: Iterable[SetSpec]) -> None:
        """Create sets; one that exists in that form already stays as it is. Raises NetlinkError, naming the set."""

    def apply(self, changes: Iterable[Change]) -> Mapping[Change, NetlinkError]:
        """Do them all, in order; an entry that is there already, or gone already, is no error.

        Returns what the kernel refused; the others are done. Raises NetlinkError when the kernel cannot be talked to.
        """

    def swap(self, one: str, other: str) -> None:
        """Exchange the contents of two sets of the same type, in one step for every rule that matches on them."""

    def destroy(self, names: Iterable[str]) -> dict[str, NetlinkError]:
        """Remove sets; one that does not exist is no error. Returns those that stay, as a rule still uses them."""
