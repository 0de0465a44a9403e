"""Encodes the expressions of which rules of nf_tables consist, and brings listed ones into a canonical form. Pure.

Decides: the attributes of each expression, how registers are numbered, and when two rules are the same. Leaves out:
which expressions a statement needs (kproxy.netfilter.rule_codec).
Sources: include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nft_*.c.

Numbers are big-endian, what is compared with packets is in the byte order that the packet or the kernel keeps it in.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from kproxy.kernel import netlink

LIST_ELEM = 1  # NFTA_LIST_ELEM
EXPR_NAME, EXPR_DATA = 1, 2  # NFTA_EXPR_*
DATA_VALUE, DATA_VERDICT, VERDICT_CODE, VERDICT_CHAIN = 1, 2, 1, 2  # NFTA_DATA_*, NFTA_VERDICT_*
DROP = 0  # NF_DROP of include/uapi/linux/netfilter.h
JUMP, GOTO = 2**32 - 3, 2**32 - 4  # NFT_JUMP, NFT_GOTO
NAMED = frozenset({JUMP, GOTO})
DNAT, MAP_ADDRESS, MAP_PORT, RANDOM_FULLY = 1, 0x1, 0x2, 0x10  # NFT_NAT_DNAT, NF_NAT_RANGE_*
FIB_ADDRTYPE, NUMGEN_RANDOM = 3, 1
FIB_SADDR, FIB_DADDR = 0x1, 0x2
DYNSET_UPDATE = 1
COUNTER_PACKETS = 2  # NFTA_COUNTER_PACKETS

Expressions = tuple[tuple[str, tuple[tuple[int, bytes], ...]], ...]
"""A rule in canonical form: equivalent rules are equal."""


class Base(IntEnum):
    """Where a payload's offset counts from: enum nft_payload_bases."""

    NETWORK = 1
    TRANSPORT = 2


class Compare(IntEnum):
    """The comparisons of enum nft_cmp_ops that rules need."""

    EQ = 0
    NE = 1


class MetaKey(IntEnum):
    """enum nft_meta_keys."""

    MARK = 3
    IIFNAME = 6
    L4PROTO = 16


class CtKey(IntEnum):
    """enum nft_ct_keys."""

    STATE = 0
    STATUS = 2


def _holding(type: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes, without NLA_F_NESTED: the kernel does not require it, nor list it."""
    return netlink.attribute(type, b"".join(parts))


def register(word: int) -> int:
    """The number by which the kernel lists the register that begins at 32-bit word WORD (0 to 15)."""
    return 1 + word // 4 if word % 4 == 0 else 8 + word


def data(type: int, value: bytes) -> bytes:
    """A value as attribute TYPE."""
    return _holding(type, netlink.attribute(DATA_VALUE, value))


def verdict_data(type: int, code: int, chain: str = "") -> bytes:
    """A verdict as attribute TYPE; CHAIN for JUMP and GOTO."""
    target = netlink.text(VERDICT_CHAIN, chain) if code in NAMED else b""
    return _holding(type, _holding(DATA_VERDICT, netlink.be32(VERDICT_CODE, code), target))


def payload(word: int, base: Base, offset: int, length: int) -> bytes:
    """Loads LENGTH bytes of the packet at OFFSET into the register at WORD."""
    numbers = (register(word), base, offset, length)
    return _expression("payload", *(netlink.be32(i, value) for i, value in enumerate(numbers, 1)))


def meta(word: int, key: MetaKey) -> bytes:
    return _expression("meta", netlink.be32(2, key), netlink.be32(1, register(word)))


def meta_set(word: int, key: MetaKey) -> bytes:
    """Sets the packet's mark, or other metadata, to what is at WORD."""
    return _expression("meta", netlink.be32(2, key), netlink.be32(3, register(word)))


def ct(word: int, key: CtKey) -> bytes:
    return _expression("ct", netlink.be32(1, register(word)), netlink.be32(2, key))


def fib(word: int, which: int) -> bytes:
    """Loads the type that the routing table gives an address. which: FIB_SADDR or FIB_DADDR."""
    return _expression("fib", netlink.be32(1, register(word)), netlink.be32(2, FIB_ADDRTYPE), netlink.be32(3, which))


def compare(word: int, how: Compare, value: bytes) -> bytes:
    return _expression("cmp", netlink.be32(1, register(word)), netlink.be32(2, how), data(3, value))


def bitwise(word: int, mask: bytes, xor: bytes) -> bytes:
    """Replaces the value at WORD by (value & MASK) ^ XOR."""
    places = netlink.be32(1, register(word)) + netlink.be32(2, register(word))
    return _expression("bitwise", places, netlink.be32(3, len(mask)), netlink.be32(6, 0), data(4, mask), data(5, xor))


def lookup(word: int, set: str, result: int | None = None, inverted: bool = False, is_verdict: bool = False) -> bytes:
    """Matches when SET has the key at WORD. result: the word that receives a map's data."""
    where = b""
    if is_verdict:
        where = netlink.be32(3, 0)
    elif result is not None:
        where = netlink.be32(3, register(result))
    flags = netlink.be32(5, int(inverted))
    return _expression("lookup", netlink.text(1, set), netlink.be32(2, register(word)), where, flags)


def numgen(word: int, modulus: int, offset: int = 0) -> bytes:
    """Loads a random number from OFFSET to OFFSET + MODULUS - 1."""
    numbers = (register(word), modulus, NUMGEN_RANDOM, offset)
    return _expression("numgen", *(netlink.be32(i, value) for i, value in enumerate(numbers, 1)))


def immediate(word: int, value: bytes) -> bytes:
    return _expression("immediate", netlink.be32(1, register(word)), data(2, value))


def verdict(code: int, chain: str = "") -> bytes:
    return _expression("immediate", netlink.be32(1, 0), verdict_data(2, code, chain))


def nat(family: int, address: int, port: int | None) -> bytes:
    """Destination NAT to the address at word ADDRESS and the port at word PORT. family: NFPROTO_*."""
    flags = MAP_ADDRESS
    numbers = [(1, DNAT), (2, family), (3, register(address)), (4, register(address))]
    if port is not None:
        flags |= MAP_PORT
        numbers += [(5, register(port)), (6, register(port))]
    return _expression("nat", *(netlink.be32(type_, value) for type_, value in [*numbers, (7, flags)]))


def masquerade(random_fully: bool) -> bytes:
    return _expression("masq", netlink.be32(1, RANDOM_FULLY) if random_fully else b"")


def reject(type: int, code: int) -> bytes:
    """type: enum nft_reject_types; code: the ICMP code."""
    return _expression("reject", netlink.be32(1, type), netlink.attribute(2, bytes((code,))))


def update(word: int, set: str) -> bytes:
    """Adds the key at WORD to SET, or restarts its timeout."""
    return _expression("dynset", netlink.be32(4, register(word)), netlink.be32(3, DYNSET_UPDATE), netlink.text(1, set))


def counter() -> bytes:
    return _expression("counter")


def counted(listed: bytes) -> int | None:
    """How many packets the first counter of a listed rule counted; None without one. Raises ValueError."""
    for _, expression in netlink.each_attribute(listed):
        parts = netlink.attributes(expression)
        if netlink.to_text(parts.get(EXPR_NAME, b"")) == "counter":
            return netlink.to_int(netlink.attributes(parts.get(EXPR_DATA, b"")).get(COUNTER_PACKETS, b""))
    return None


def _expression(name: str, *parts: bytes) -> bytes:
    return _holding(LIST_ELEM, netlink.text(EXPR_NAME, name), _holding(EXPR_DATA, *parts))


# ---- canonical form

# Attributes without meaning: ids that live for one transaction, names of kernel objects, padding.
_SILENT = {
    "lookup": frozenset({4}),
    "dynset": frozenset({2, 8}),
    "counter": frozenset({1, 2, 3}),  # how often it matched
}
# Values that an attribute has when it is left out.
_ZERO = {
    "lookup": frozenset({5}),
    "numgen": frozenset({4}),
    "bitwise": frozenset({6}),
    "dynset": frozenset({6, 9}),
    "masq": frozenset({1}),
    "reject": frozenset({2}),
}
_NESTED_DATA = {
    "cmp": frozenset({3}),
    "immediate": frozenset({2}),
    "bitwise": frozenset({4, 5}),
    "range": frozenset({3, 4}),
}


def canonical(listed: bytes) -> Expressions:
    """A rule's list of expressions in canonical form, whoever encoded it: this module, nft or the kernel.

    Raises ValueError when it is not a list of expressions.
    """
    found = []
    for _, expression in netlink.each_attribute(listed):
        parts = netlink.attributes(expression)
        name = netlink.to_text(parts.get(EXPR_NAME, b""))
        attributes = netlink.attributes(parts.get(EXPR_DATA, b""))
        if not _idle(name, attributes):
            found.append((name, tuple(sorted(_telling(name, attributes).items()))))
    return tuple(found)


def _idle(name: str, attributes: Mapping[int, bytes]) -> bool:
    """Whether an expression does nothing: before a range match, nft reverses the byte order of a single byte."""
    if name != "byteorder":
        return False
    length, size = (netlink.to_int(attributes.get(type_, b"")) for type_ in (4, 5))
    return length < size


def _telling(name: str, attributes: dict[int, bytes]) -> dict[int, bytes]:
    """ATTRIBUTES of expression NAME without those that make no difference, and with those that are implied."""
    silent, zero, nested = (table.get(name, frozenset()) for table in (_SILENT, _ZERO, _NESTED_DATA))
    told = {
        type_: plain(value) if type_ in nested else value
        for type_, value in attributes.items()
        if type_ not in silent and (type_ not in zero or any(value))
    }
    if name == "nat":  # a range of one value, and the flags that the kernel infers
        for low, high, flag in ((3, 4, MAP_ADDRESS), (5, 6, MAP_PORT)):
            if low in told:
                told.setdefault(high, told[low])
                told[7] = (netlink.to_int(told.get(7, b"")) | flag).to_bytes(4, "big")
    return told


def plain(value: bytes) -> bytes:
    """A value or verdict without NLA_F_NESTED, which only some programs set. Raises ValueError."""
    return b"".join(
        netlink.attribute(type_, _again(inner) if type_ == DATA_VERDICT else inner)
        for type_, inner in netlink.each_attribute(value)
    )


def _again(attributes: bytes) -> bytes:
    return b"".join(netlink.attribute(type_, value) for type_, value in netlink.each_attribute(attributes))
