"""Encodes and decodes the declaration of a set or map. Pure.

Decides: flags, lengths and types, and the userdata by which nft knows how to print the set. Leaves out: elements
(kproxy.netfilter.element_codec) and messages (kproxy.netfilter.messages).
Sources: include/uapi/linux/netfilter/nf_tables.h; for nft's part include/udata.h of libnftnl 1.2.4, and src/mnl.c and
the functions *_build_udata() of nftables 1.0.6.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from kproxy.kernel import netlink
from kproxy.model.plans import Family
from kproxy.netfilter import element_codec
from kproxy.netfilter import expressions as nft
from kproxy.netfilter.element_fields import width
from kproxy.netfilter.objects import Set, SetKind, Type

SET_NAME, SET_FLAGS, SET_KEY_TYPE, SET_KEY_LEN, SET_DATA_TYPE, SET_DATA_LEN = 2, 3, 4, 5, 6, 7  # NFTA_SET_*
SET_DESC, SET_ID, SET_TIMEOUT, SET_USERDATA, SET_COUNT = 9, 10, 11, 13, 20
DESC_SIZE, DESC_CONCAT, FIELD_LEN = 1, 2, 1  # NFTA_SET_DESC_*, NFTA_SET_FIELD_LEN
ANONYMOUS, INTERVAL, MAP, TIMEOUT, EVAL, CONCAT = 0x1, 0x4, 0x8, 0x10, 0x20, 0x80  # NFT_SET_*
VERDICT_TYPE = 0xFFFFFF00  # NFT_DATA_VERDICT

# enum datatypes of nft: a concatenation has six bits for each type. numgen yields integers (4).
TYPE_BITS = 6
TYPE_IDS = {Type.IPV4: 7, Type.IPV6: 8, Type.PROTO: 12, Type.PORT: 13, Type.SLOT: 4}
TYPE_OF = {number: type_ for type_, number in TYPE_IDS.items()} | {19: Type.SLOT}  # 19: a mark
LENGTHS = {Type.IPV4: 4, Type.IPV6: 16, Type.PROTO: 1, Type.PORT: 2, Type.SLOT: 4}  # of a field that stands alone


def encode(family: Family, spec: Set) -> bytes:
    """Encodes `spec` as attributes. Raises ValueError when a name is too long for nft's userdata."""
    data = b""
    if spec.kind is SetKind.VERDICTS:
        data = netlink.be32(SET_DATA_TYPE, VERDICT_TYPE)
    elif spec.kind is SetKind.MAP:
        data = netlink.be32(SET_DATA_TYPE, _type_id(spec.data))
        data += netlink.be32(SET_DATA_LEN, width(spec.data))
    parts = [
        netlink.text(SET_NAME, spec.name),
        netlink.be32(SET_FLAGS, _flags(spec)),
        netlink.be32(SET_KEY_TYPE, _type_id(spec.key)),
        netlink.be32(SET_KEY_LEN, width(spec.key)),
        data,
        netlink.be32(SET_ID, 1),  # within a transaction; rules name the set instead
        _dimensions(spec),
        netlink.be64(SET_TIMEOUT, spec.timeout * 1000) if spec.timeout else b"",
        netlink.attribute(SET_USERDATA, _for_nft(family, spec)),
    ]
    return b"".join(parts)


def set_of(attributes: Mapping[int, bytes]) -> Set | None:
    """Decodes a listed set; None when kproxy has no set of that form."""

    def number(type: int) -> int:
        return netlink.to_int(attributes.get(type, b""))

    key, data = _types(number(SET_KEY_TYPE)), _types(number(SET_DATA_TYPE))
    kind = SetKind.MAP if number(SET_FLAGS) & MAP else SetKind.SET
    if number(SET_DATA_TYPE) == VERDICT_TYPE:
        kind, data = SetKind.VERDICTS, ()
    if not key or data is None:
        return None
    size = netlink.to_int(netlink.attributes(attributes.get(SET_DESC, b"")).get(DESC_SIZE, b""))
    interval, timeout = bool(number(SET_FLAGS) & INTERVAL), number(SET_TIMEOUT) // 1000
    spec = Set(netlink.to_text(attributes.get(SET_NAME, b"")), key, kind, data, interval, timeout, size)
    lengths = number(SET_KEY_LEN), number(SET_DATA_LEN)
    expected = width(key), width(data) if kind is SetKind.MAP else lengths[1]
    return spec if (number(SET_FLAGS), lengths) == (_flags(spec), expected) else None


def is_anonymous(attributes: Mapping[int, bytes]) -> bool:
    """Whether the set with `attributes` belongs to a rule, and is deleted with it."""
    return bool(netlink.to_int(attributes.get(SET_FLAGS, b"")) & ANONYMOUS)


def count_of(attributes: Mapping[int, bytes]) -> int:
    """How many elements the set has; 0 where the kernel does not report it (before Linux 6.16)."""
    return netlink.to_int(attributes.get(SET_COUNT, b""))


def _flags(spec: Set) -> int:
    flags = INTERVAL if spec.interval else 0
    if spec.interval and len(spec.key) > 1:
        flags |= CONCAT
    if spec.timeout:
        flags |= TIMEOUT | EVAL
    return flags if spec.kind is SetKind.SET else flags | MAP


def _dimensions(spec: Set) -> bytes:
    """The most elements, and the lengths of a key's fields where ranges are matched field by field."""
    parts = netlink.be32(DESC_SIZE, spec.size) if spec.size else b""
    if spec.interval and len(spec.key) > 1:
        lengths = [netlink.attribute(nft.LIST_ELEM, netlink.be32(FIELD_LEN, LENGTHS[type_])) for type_ in spec.key]
        parts += netlink.attribute(DESC_CONCAT, b"".join(lengths))
    return netlink.attribute(SET_DESC, parts) if parts else b""


def _type_id(types: Sequence[Type]) -> int:
    number = 0
    for type_ in types:
        number = number << TYPE_BITS | TYPE_IDS[type_]
    return number


def _types(number: int) -> tuple[Type, ...] | None:
    """The types that `number` stands for; None when kproxy does not use one of them."""
    found: list[Type] = []
    while number:
        type_ = TYPE_OF.get(number & ((1 << TYPE_BITS) - 1))
        if type_ is None:
            return None
        found.insert(0, type_)
        number >>= TYPE_BITS
    return tuple(found)


# Userdata of nft: records of a kind, a length and a value; numbers are in the host's byte order.
KEY_ORDER, DATA_ORDER, KEY_TYPEOF, DATA_TYPEOF = 0, 1, 3, 4  # enum nftnl_udata_set_types
ORDER_NONE, ORDER_HOST, ORDER_NETWORK = 0, 1, 2  # enum byteorder of nft
TYPEOF_EXPRESSION, TYPEOF_DATA = 0, 1  # enum nftnl_udata_set_typeof
PAYLOAD, META, CONCATENATION, NUMGEN = 7, 9, 13, 23  # enum expr_types of nft
TRANSPORT_HEADER, IP_HEADER, IP6_HEADER = 11, 12, 13  # enum proto_desc_id
DESTINATION_PORT, IP_DESTINATION, IP6_DESTINATION = 2, 12, 9  # of those headers
RANDOM_NUMBER, SLOTS = 1, 65536  # NFT_NG_RANDOM, and the modulus that stands for all


def _for_nft(family: Family, spec: Set) -> bytes:
    records = element_codec.record(KEY_ORDER, _host(_order(spec.key)))
    if spec.kind is not SetKind.SET:
        records += element_codec.record(DATA_ORDER, _host(_order(spec.data)))
    if Type.SLOT in spec.key:  # a number has no name as a type: nft can only say what is like it
        records += element_codec.record(KEY_TYPEOF, _typeof(family, spec.key))
        if spec.data:
            records += element_codec.record(DATA_TYPEOF, _typeof(family, spec.data))
    return records


def _order(types: Sequence[Type]) -> int:
    if len(types) != 1:
        return ORDER_NONE
    return {Type.PROTO: ORDER_NONE, Type.SLOT: ORDER_HOST}.get(types[0], ORDER_NETWORK)


def _typeof(family: Family, types: Sequence[Type]) -> bytes:
    if len(types) == 1:
        return _expression(family, types[0])
    listed = b"".join(element_codec.record(i, _expression(family, type_)) for i, type_ in enumerate(types))
    return _record(TYPEOF_EXPRESSION, CONCATENATION) + element_codec.record(TYPEOF_DATA, listed)


def _expression(family: Family, type_: Type) -> bytes:
    """The expression that nft's typeof prints for a type, and its details."""
    match type_:
        case Type.PROTO:
            kind, details = META, _record(0, nft.MetaKey.L4PROTO)
        case Type.PORT:
            kind, details = PAYLOAD, _record(0, TRANSPORT_HEADER) + _record(1, DESTINATION_PORT)
        case Type.SLOT:
            kind, details = NUMGEN, _record(0, RANDOM_NUMBER) + _record(1, SLOTS) + _record(2, 0)
        case Type.IPV4 | Type.IPV6:
            header = (IP_HEADER, IP_DESTINATION) if family is Family.IPV4 else (IP6_HEADER, IP6_DESTINATION)
            kind, details = PAYLOAD, _record(0, header[0]) + _record(1, header[1])
    return _record(TYPEOF_EXPRESSION, kind) + element_codec.record(TYPEOF_DATA, details)


def _record(kind: int, value: int) -> bytes:
    return element_codec.record(kind, _host(value))


def _host(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)
