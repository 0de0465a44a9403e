"""Encodes rules as the expressions of nf_tables. Pure.

Decides: which expressions each statement of kproxy.netfilter.objects needs, and which registers they use.
Leaves out: the bytes of an expression (kproxy.netfilter.expressions) and of messages (kproxy.netfilter.messages).
Sources: nft(8), RFC 791, RFC 8200; the choice of expressions is that of nftables 1.0.6, although the kernel takes
others too, so that nft prints a rule of ours in the words of kproxy.netfilter.objects.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

from kproxy.kernel.constants import ADDRESS_FAMILY, NFPROTO, PROTOCOL_NUMBERS
from kproxy.model.plans import Family
from kproxy.netfilter import expressions as nft
from kproxy.netfilter.expressions import Base, Compare, CtKey, Expressions, MetaKey
from kproxy.netfilter.objects import (
    AddressIn,
    Count,
    CtInvalid,
    CtTranslated,
    Dnat,
    DnatByMap,
    Drop,
    FibLocal,
    Field,
    Goto,
    InSet,
    InterfaceIs,
    Jump,
    Load,
    Lookup,
    MarkClear,
    MarkHas,
    MarkSet,
    Masquerade,
    OneIn,
    ProtocolIs,
    Random,
    Reject,
    Rule,
    Statement,
    Update,
)

OFFSETS = {  # of an address in the network header, and its length
    (Family.IPV4, Field.SADDR): (12, 4),
    (Family.IPV4, Field.DADDR): (16, 4),
    (Family.IPV6, Field.SADDR): (8, 16),
    (Family.IPV6, Field.DADDR): (24, 16),
}
FIB_FLAGS = {Field.SADDR: nft.FIB_SADDR, Field.DADDR: nft.FIB_DADDR}
DPORT_OFFSET, PORT_LENGTH = 2, 2
RTN_LOCAL = 2  # include/uapi/linux/rtnetlink.h
STATE_INVALID, STATUS_DST_NAT = 0x1, 0x20  # NF_CT_STATE_INVALID_BIT, IPS_DST_NAT
INTERFACE_NAME = 16  # IFNAMSIZ
ICMP_UNREACHABLE, TCP_RESET = 0, 1  # NFT_REJECT_ICMP_UNREACH, NFT_REJECT_TCP_RST
PORT_UNREACHABLE = {Family.IPV4: 3, Family.IPV6: 4}  # codes of ICMP and ICMPv6
SECOND_REGISTER = 4  # the word where the second of the large registers begins


def expressions(family: Family, rule: Rule) -> Expressions:
    """RULE in canonical form, to compare with what the kernel lists. Raises ValueError."""
    return nft.canonical(encode(family, rule))


def encode(family: Family, rule: Rule) -> bytes:
    """The list of expressions of RULE in a table of FAMILY. Raises ValueError for an invalid statement."""
    try:
        return b"".join(_encode(family, statement) for statement in rule)
    except (KeyError, OSError, OverflowError) as error:
        raise ValueError(f"invalid value: {error}") from None


def _encode(family: Family, statement: Statement) -> bytes:
    match statement:
        case AddressIn(field, cidr, negate):
            return _address_in(family, field, cidr, negate)
        case InterfaceIs(name, prefix, negate):
            return nft.meta(0, MetaKey.IIFNAME) + nft.compare(0, _how(negate), _interface(name, prefix))
        case ProtocolIs(protocol):
            number = bytes((PROTOCOL_NUMBERS[protocol],))
            return nft.meta(0, MetaKey.L4PROTO) + nft.compare(0, Compare.EQ, number)
        case FibLocal(field):
            return nft.fib(0, FIB_FLAGS[field]) + nft.compare(0, Compare.EQ, _host(RTN_LOCAL))
        case InSet(key, name, negate):
            return _load(family, key) + nft.lookup(0, name, inverted=negate)
        case CtInvalid():
            return nft.ct(0, CtKey.STATE) + _any_of(STATE_INVALID)
        case CtTranslated():
            return nft.ct(0, CtKey.STATUS) + _any_of(STATUS_DST_NAT)
        case MarkHas(mask):
            return nft.meta(0, MetaKey.MARK) + _any_of(mask)
        case OneIn(count):
            return nft.numgen(0, count) + nft.compare(0, Compare.EQ, _host(0))
        case MarkSet(mask):
            return _mark(~mask & 0xFFFFFFFF, mask)
        case MarkClear(mask):
            return _mark(~mask & 0xFFFFFFFF, 0)
        case Count():
            return nft.counter()
        case Update(name, key):
            return _load(family, key) + nft.update(0, name)
        case Lookup(key, name):
            return _load(family, key) + nft.lookup(0, name, is_verdict=True)
        case DnatByMap(key, name):
            translate = nft.nat(NFPROTO[family], 0, _words(family))
            return _load(family, key) + nft.lookup(0, name, result=0) + translate
        case Dnat(address, port):
            return _dnat(family, address, port)
        case Masquerade(fully_random):
            return nft.masquerade(fully_random)
        case Reject(tcp_reset=True):
            return nft.reject(TCP_RESET, 0)
        case Reject():
            return nft.reject(ICMP_UNREACHABLE, PORT_UNREACHABLE[family])
        case Drop():
            return nft.verdict(nft.DROP)
        case Jump(chain):
            return nft.verdict(nft.JUMP, chain)
        case Goto(chain):
            return nft.verdict(nft.GOTO, chain)


def _load(family: Family, key: Sequence[Load]) -> bytes:
    """Loads the parts of KEY into consecutive registers, from the first word on."""
    word, parts = 0, []
    for part in key:
        match part:
            case Field.SADDR | Field.DADDR:
                offset, length = OFFSETS[family, part]
                parts.append(nft.payload(word, Base.NETWORK, offset, length))
                word += length // 4
                continue
            case Field.PROTO:
                parts.append(nft.meta(word, MetaKey.L4PROTO))
            case Field.DPORT:
                parts.append(nft.payload(word, Base.TRANSPORT, DPORT_OFFSET, PORT_LENGTH))
            case Random(modulus, offset):
                parts.append(nft.numgen(word, modulus, offset))
        word += 1
    return b"".join(parts)


def _address_in(family: Family, field: Field, cidr: str, negate: bool) -> bytes:
    offset, length = OFFSETS[family, field]
    address, _, size = cidr.partition("/")
    bits = int(size)
    if not 0 <= bits <= length * 8:
        raise ValueError(f"invalid network: {cidr}")
    network = socket.inet_pton(ADDRESS_FAMILY[family], address)
    if bits and bits % 8 == 0:  # whole bytes need no mask
        network = network[: bits // 8]
        return nft.payload(0, Base.NETWORK, offset, len(network)) + nft.compare(0, _how(negate), network)
    mask = (((1 << bits) - 1) << (length * 8 - bits)).to_bytes(length, "big")
    masked = bytes(a & b for a, b in zip(network, mask, strict=True))
    load = nft.payload(0, Base.NETWORK, offset, length) + nft.bitwise(0, mask, bytes(length))
    return load + nft.compare(0, _how(negate), masked)


def _dnat(family: Family, address: str, port: int) -> bytes:
    where = nft.immediate(0, socket.inet_pton(ADDRESS_FAMILY[family], address))
    where += nft.immediate(SECOND_REGISTER, port.to_bytes(PORT_LENGTH, "big"))
    return where + nft.nat(NFPROTO[family], 0, SECOND_REGISTER)


def _interface(name: str, prefix: bool) -> bytes:
    value = name.encode()
    if not value or len(value) >= INTERFACE_NAME:
        raise ValueError(f'invalid interface name: "{name}"')
    return value if prefix else value.ljust(INTERFACE_NAME, b"\0")


def _any_of(mask: int) -> bytes:
    return nft.bitwise(0, _host(mask), _host(0)) + nft.compare(0, Compare.NE, _host(0))


def _mark(mask: int, xor: int) -> bytes:
    change = nft.bitwise(0, _host(mask), _host(xor))
    return nft.meta(0, MetaKey.MARK) + change + nft.meta_set(0, MetaKey.MARK)


def _how(negate: bool) -> Compare:
    return Compare.NE if negate else Compare.EQ


def _host(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def _words(family: Family) -> int:
    return OFFSETS[family, Field.DADDR][1] // 4
