"""Sets and maps, chains, rules and elements of nf_tables as values. Pure.

Only what the layout of nftables mode uses (docs/nftables.md), so that the three readers of these values stay small: the
writer of `nft -f` text, the netlink encoder, and the trace of a packet. There is one table only, so sets and chains are
named without it. Sources: nft(8), include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import msgspec

# ---------------------------------------------------------------- sets and maps


class Type(Enum):
    """The type of one field of a key or of data; the value is its name in nft's text.

    On the wire a field takes whole registers of 4 bytes: an address 4 or 16, all others 4 (inet_proto: 1 byte,
    inet_service: 2 bytes in network order, padded behind; mark: 4 bytes in the host's order).
    """

    IPV4 = "ipv4_addr"
    IPV6 = "ipv6_addr"
    PROTO = "inet_proto"
    PORT = "inet_service"
    SLOT = "mark"  # a plain number, as numgen makes it


class SetKind(Enum):
    """What elements have besides their keys."""

    SET = "set"  # nothing
    MAP = "map"  # data: fields
    VERDICTS = "verdicts"  # data: a verdict


class Set(msgspec.Struct, frozen=True, gc=False):
    """A named set or map: `set NAME { type KEY; flags … }` or `map NAME { type KEY : DATA; }`.

    key: the fields of a key, concatenated. data: those of a map's data (SetKind.MAP), else empty.
    interval: a key's addresses may be CIDRs (flags interval; with several fields the kernel's pipapo set).
    A key with a SLOT makes nft's text declare the map by `typeof … numgen random mod 65536`: numgen's type has no name.
    timeout: seconds after which an element expires; then the packet path adds elements (flags dynamic,timeout; timeout
    Ns; size N), and they are never written from outside. 0: none. size: the most elements, 0 for no limit.
    """

    name: str
    key: tuple[Type, ...]
    kind: SetKind = SetKind.SET
    data: tuple[Type, ...] = ()
    interval: bool = False
    timeout: int = 0
    size: int = 0


class Verdict(NamedTuple):
    """The data of an element of a verdict map: `goto CHAIN`, or `drop` when chain is ""."""

    chain: str = ""

    def __str__(self) -> str:
        return f"goto {self.chain}" if self.chain else "drop"


Key = tuple[str | int, ...]
"""One value per field: addresses (in interval sets CIDRs) and protocols ("tcp", "udp", "sctp") as text, ports and
slots as numbers."""

Data = Key | Verdict | None


class Element(msgspec.Struct, frozen=True, gc=False):
    """An element of a set or map: `add element TABLE SET { KEY comment "…" : DATA }`. comment: "" for none."""

    set: str
    key: Key
    data: Data = None
    comment: str = ""


# ---------------------------------------------------------------- what rules read


class Field(Enum):
    """What a rule loads from a packet; the value is nft's text, with IP for ip or ip6."""

    SADDR = "IP saddr"
    DADDR = "IP daddr"
    PROTO = "meta l4proto"
    DPORT = "th dport"  # the second 16 bits of the transport header


class Random(msgspec.Struct, frozen=True, gc=False):
    """`numgen random mod MODULUS offset OFFSET`: a number of OFFSET … OFFSET + MODULUS - 1, in the host's order.

    With modulus 1 it is a constant, which nft's text does not allow within a key; only so may it be matched or updated.
    """

    modulus: int
    offset: int = 0


Load = Field | Random


# ---------------------------------------------------------------- statements that match


class AddressIn(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`ip saddr 10.0.0.0/8`, `ip6 daddr != ::1/128`. field: SADDR or DADDR; cidr: with a length always."""

    field: Field
    cidr: str
    negate: bool = False


class InterfaceIs(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`iifname "cbr0"`, `iifname != "veth*"`. prefix: the name is a prefix. Locally made packets have the name ""."""

    name: str
    prefix: bool = False
    negate: bool = False


class ProtocolIs(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`meta l4proto tcp`. protocol: "tcp", "udp" or "sctp"."""

    protocol: str


class FibLocal(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`fib saddr type local`: SADDR or DADDR is one of the host's own addresses."""

    field: Field


class InSet(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`ip saddr . ip daddr @SET`, `ip daddr . … != @SET`."""

    key: tuple[Load, ...]
    set: str
    negate: bool = False


class CtInvalid(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`ct state invalid`"""


class CtTranslated(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`ct status dnat`: the destination of the connection was rewritten."""


class MarkHas(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`meta mark and MASK != 0`"""

    mask: int


class OneIn(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`numgen random mod COUNT 0`: true once in COUNT times."""

    count: int


# ---------------------------------------------------------------- statements that change something


class MarkSet(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`meta mark set meta mark or MASK`"""

    mask: int


class MarkClear(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`meta mark set meta mark and ~MASK` (32 bits)"""

    mask: int


class Count(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`counter`: count the packets that come so far, and their bytes. Counts from 0 when the rule is written again."""


class Update(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`update @SET { KEY }`: add the element, or start its timeout (the set's) again. A full set ends the rule."""

    set: str
    key: tuple[Load, ...]


# ---------------------------------------------------------------- statements that end a rule


class Lookup(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`ip daddr . meta l4proto . th dport vmap @MAP`: the verdict of the element; without one, the next rule."""

    key: tuple[Field, ...]
    map: str


class DnatByMap(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`dnat ip addr . port to KEY map @MAP`: rewrite the destination; without an element, the next rule."""

    key: tuple[Load, ...]
    map: str


class Dnat(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`dnat to 10.0.0.1:80`, `dnat to [fd00::1]:80`; the rule has a ProtocolIs before it."""

    address: str
    port: int


class Masquerade(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`masquerade fully-random`, or without the word."""

    fully_random: bool = True


class Reject(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`reject`: ICMP or ICMPv6 port unreachable. tcp_reset: `reject with tcp reset`, for packets that are TCP's."""

    tcp_reset: bool = False


class Drop(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`drop`"""


class Jump(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`jump CHAIN`: at the end of that chain, evaluation returns to the next rule here."""

    chain: str


class Goto(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`goto CHAIN`: at its end, evaluation returns to where the last jump was, or the base chain's policy applies."""

    chain: str


Match = AddressIn | InterfaceIs | ProtocolIs | FibLocal | InSet | CtInvalid | CtTranslated | MarkHas | OneIn
Change = MarkSet | MarkClear | Count | Update
Final = Lookup | DnatByMap | Dnat | Masquerade | Reject | Drop | Jump | Goto
Statement = Match | Change | Final

Rule = tuple[Statement, ...]
"""Evaluated from left to right; the first match that fails ends it."""


# ---------------------------------------------------------------- chains


class Hook(Enum):
    """The hook at which the kernel calls a base chain."""

    PREROUTING = "prerouting"
    FORWARD = "forward"
    OUTPUT = "output"
    POSTROUTING = "postrouting"


class BaseChain(NamedTuple):
    """`type nat hook prerouting priority -100; policy accept;`. type: "nat" or "filter"."""

    type: str
    hook: Hook
    priority: int


class Chain(msgspec.Struct, frozen=True, gc=False):
    """A chain with its rules. base: None for one that is not called by a hook."""

    name: str
    rules: tuple[Rule, ...] = ()
    base: BaseChain | None = None
