"""Encodes requests about ipsets for netlink, and decodes the kernel's answers: pure.

Decides: the requests, how entries are written as text, and what ipset's own error numbers mean. Leaves out: sending
(`kproxy.kernel.ipset`). The functions for answers raise ValueError, LookupError or struct.error for malformed bytes.
Sources: include/uapi/linux/netfilter/ipset/ip_set.h, net/netfilter/ipset/ip_set_core.c, ipset(8).

Numbers are big-endian and say so in the type of their attribute.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from kproxy.errors import NetlinkError
from kproxy.kernel import netlink
from kproxy.kernel.constants import (
    ADDRESS_BITS,
    NFNL_SUBSYS_IPSET,
    NFPROTO,
    PROTOCOL_NAMES,
    PROTOCOL_NUMBERS,
    address_family,
)
from kproxy.model.plans import Family

SUBSYSTEM = NFNL_SUBSYS_IPSET << 8
CREATE, DESTROY, SWAP, LIST = SUBSYSTEM | 2, SUBSYSTEM | 3, SUBSYSTEM | 6, SUBSYSTEM | 7  # IPSET_CMD_*
ADD, DELETE, TEST, HEADER, TYPE = (SUBSYSTEM | number for number in (9, 10, 11, 12, 13))
PROTOCOL_VERSION = 6  # spoken by every kernel; 7 adds only what is not used here
ATTR_PROTOCOL, ATTR_SETNAME, ATTR_TYPENAME, ATTR_REVISION, ATTR_FAMILY = 1, 2, 3, 4, 5  # IPSET_ATTR_*, of a message
ATTR_SETNAME2, ATTR_DATA, ATTR_ADT, ATTR_LINENO, ATTR_REVISION_MIN = 3, 7, 8, 9, 10
IP, CIDR, PORT, PORT_TO, PROTO, FLAGS, LINENO = 1, 3, 4, 5, 7, 8, 9  # IPSET_ATTR_*, of an entry
IP2, CIDR2 = 20, 21
HASHSIZE, MAXELEM, REFERENCES = 18, 19, 25
IPADDR_IPV4, IPADDR_IPV6 = 1, 2
NOMATCH = 1 << 2  # IPSET_FLAG_NOMATCH
ENTRIES_AT_ONCE = 500  # an attribute holds 64 KiB, an IPv6 entry is less than 100 bytes
BIG_ENDIAN = 0x4000  # NLA_F_NET_BYTEORDER

FAMILIES = {number: family for family, number in NFPROTO.items()}


class SetType(StrEnum):
    """The types of sets that kproxy creates, by ipset's names."""

    HASH_IP = "hash:ip"
    HASH_IP_PORT = "hash:ip,port"
    HASH_IP_PORT_IP = "hash:ip,port,ip"
    HASH_IP_PORT_NET = "hash:ip,port,net"
    BITMAP_PORT = "bitmap:port"


class SetSpec(NamedTuple):
    """A set as it is created. family: that of a hash's addresses; it has no meaning for a bitmap."""

    name: str
    type: SetType
    family: Family


class Header(NamedTuple):
    """What the kernel reports of a set besides its entries. family: None for a bitmap. limit: how many entries a hash
    may hold, 0 where that is not reported."""

    type: str
    family: Family | None
    references: int = 0
    limit: int = 0


# The revision of a type determines which options a set may have. None of them is used here, and a tool that is older
# than a set's revision cannot even list it. These are the newest of ipset 6.22 (2014), which every tool in use has.
REVISIONS = {
    SetType.HASH_IP: 4,
    SetType.HASH_IP_PORT: 5,
    SetType.HASH_IP_PORT_IP: 5,
    SetType.HASH_IP_PORT_NET: 7,
    SetType.BITMAP_PORT: 3,
}

ERRORS = {  # IPSET_ERR_*
    4097: (errno.EINVAL, "the set is of another type or family"),  # in words: protocol error
    4098: (errno.EPROTONOSUPPORT, "the kernel has no such type of set"),
    4099: (errno.ENOSPC, "there are as many sets as the kernel holds"),
    4100: (errno.EBUSY, "a rule uses it"),
    4101: (errno.EEXIST, "there is a set of that name"),
    4102: (errno.EINVAL, "the sets are of different types"),
    4103: (errno.EEXIST, "it is there already, or there no more"),
    4104: (errno.EINVAL, "length of the network"),
    4106: (errno.EAFNOSUPPORT, "address of another family than the set's"),
    4108: (errno.EBUSY, "a set uses it"),
    4109: (errno.EINVAL, "the set is of IPv4 addresses"),
    4110: (errno.EINVAL, "the set is of IPv6 addresses"),
    4352: (errno.ENOSPC, "the set is full, or begins or ends elsewhere"),
    4353: (errno.EINVAL, "nothing but zeros is no entry"),
    4354: (errno.EINVAL, "protocol"),
    4355: (errno.EINVAL, "no protocol"),
}
NOT_IN_SET = 4103  # of a test
HASH_FULL = 4352  # of a bitmap: beyond its range

_U32 = struct.Struct("=I")


# ---- requests


def named(name: str) -> bytes:
    """The start of the payload of every request about one set; the whole payload to list, destroy or look at it."""
    return _start() + netlink.text(ATTR_SETNAME, name)


def pair(one: str, other: str) -> bytes:
    """The payload of a request about two sets."""
    return named(one) + netlink.text(ATTR_SETNAME2, other)


def type_query(type: SetType, family: Family) -> bytes:
    """The payload that asks for the revisions of a type that the kernel has."""
    return _start() + netlink.text(ATTR_TYPENAME, type.value) + _byte(ATTR_FAMILY, _family(type, family))


def creation(spec: SetSpec, revision: int, limit: int) -> bytes:
    """The payload that creates a set. `limit`: how many entries a hash may hold."""
    if spec.type is SetType.BITMAP_PORT:
        options = netlink.be16(PORT | BIG_ENDIAN, 0), netlink.be16(PORT_TO | BIG_ENDIAN, 0xFFFF)
    else:
        options = netlink.be32(HASHSIZE | BIG_ENDIAN, 1024), netlink.be32(MAXELEM | BIG_ENDIAN, limit)
    return b"".join(
        (
            named(spec.name),
            netlink.text(ATTR_TYPENAME, spec.type.value),
            _byte(ATTR_REVISION, revision),
            _byte(ATTR_FAMILY, _family(spec.type, spec.family)),
            netlink.nested(ATTR_DATA, *options),
        )
    )


def numbered(name: str, entries: Sequence[bytes]) -> bytes:
    """The payload that adds or deletes `entries` (as `entry` encodes them), at most ENTRIES_AT_ONCE; the kernel stops
    at the first that it refuses and reports its number."""
    each = (netlink.nested(ATTR_DATA, data, netlink.u32(LINENO, i)) for i, data in enumerate(entries, start=1))
    return named(name) + netlink.u32(ATTR_LINENO, 0) + netlink.nested(ATTR_ADT, *each)


def _start() -> bytes:
    return netlink.netfilter(NFPROTO[Family.IPV4]) + _byte(ATTR_PROTOCOL, PROTOCOL_VERSION)


def _family(type: SetType, family: Family) -> int:
    """The family's number; 0 for a bitmap, so that rules of both families may match on it."""
    return 0 if type is SetType.BITMAP_PORT else NFPROTO[family]


def _byte(kind: int, value: int) -> bytes:
    return netlink.attribute(kind, bytes([value]))


# ---- entries


def entry(text: str) -> bytes:
    """The attributes of an entry. Raises ValueError for text that is not an entry of one of the types here.

    10.0.0.1 | 30080 | 10.0.0.1,tcp:80 | 10.0.0.1,tcp:80,10.0.0.2 | 10.0.0.1,tcp:80,10.0.0.0/8, the last one also
    followed by " nomatch", as ipset(8) marks an exception.
    """
    plain = text.removesuffix(" nomatch")
    address, *rest = plain.split(",")
    try:
        if plain != text and len(rest) < 2:
            raise ValueError
        if not rest and address.isascii() and address.isdecimal():
            return netlink.be16(PORT | BIG_ENDIAN, int(address))
        data = _address(IP, address)
        if rest:
            name, number = rest[0].split(":")
            data += netlink.be16(PORT | BIG_ENDIAN, int(number)) + _byte(PROTO, PROTOCOL_NUMBERS[name])
        if len(rest) > 1:
            (network,) = rest[1:]
            other, slash, length = network.partition("/")
            data += _address(IP2, other) + (_byte(CIDR2, int(length)) if slash else b"")
        if plain != text:
            data += netlink.be32(FLAGS | BIG_ENDIAN, NOMATCH)
        return data
    except (ValueError, KeyError, OSError, OverflowError):
        raise ValueError(f"not an entry of an ipset: {text}") from None


def _address(kind: int, text: str) -> bytes:
    packed = socket.inet_pton(address_family(text), text)
    return netlink.nested(kind, netlink.attribute((IPADDR_IPV6 if ":" in text else IPADDR_IPV4) | BIG_ENDIAN, packed))


def entries_of(payload: bytes) -> Iterator[str]:
    """The entries in one message of a listing, as ipset(8) writes them. Those of a type that is not used here are
    returned as far as they are like those of one that is."""
    for kind, data in netlink.each_attribute(payload, start=4):
        if kind == ATTR_ADT:
            yield from (_text(netlink.attributes(each)) for _, each in netlink.each_attribute(data))


def _text(found: Mapping[int, bytes]) -> str:
    if IP not in found:
        return str(netlink.to_int(found.get(PORT, b"")))
    text = _ip(found[IP])
    if PROTO in found:
        number = found[PROTO][0]
        text += f",{PROTOCOL_NAMES.get(number, number)}:{netlink.to_int(found[PORT])}"
    if IP2 in found:
        text += f",{_ip(found[IP2])}"
        length = found.get(CIDR2, b"")
        if length and length[0] != ADDRESS_BITS[Family.IPV4 if len(found[IP2]) == 8 else Family.IPV6]:
            text += f"/{length[0]}"
    return f"{text} nomatch" if netlink.to_int(found.get(FLAGS, b"")) & NOMATCH else text


def _ip(data: bytes) -> str:
    """The address in DATA, which begins with the header of a nested attribute."""
    return socket.inet_ntop(socket.AF_INET if len(data) == 8 else socket.AF_INET6, data[4:])


# ---- answers


def header_of(payload: bytes) -> Header | None:
    """The header of a set in a message of a listing, or in the answer about one set; None when the message only
    continues with entries."""
    found = netlink.attributes(payload, start=4)
    if ATTR_TYPENAME not in found:
        return None
    options = netlink.attributes(found.get(ATTR_DATA, b""))
    type_ = netlink.to_text(found[ATTR_TYPENAME])
    return Header(
        type_,
        FAMILIES.get(netlink.to_int(found.get(ATTR_FAMILY, b""))),
        netlink.to_int(options.get(REFERENCES, b"")),
        netlink.to_int(options.get(MAXELEM, b"")),
    )


def revision_of(payload: bytes, type: SetType) -> int:
    """The revision with which to create a set of a type, from the kernel's answer to `type_query`."""
    found = netlink.attributes(payload, start=4)
    newest, oldest = (netlink.to_int(found.get(kind, b"")) for kind in (ATTR_REVISION, ATTR_REVISION_MIN))
    return max(min(REVISIONS[type], newest), oldest)


def refused_entry(refusal: netlink.Message) -> int:
    """The number of the entry of a `numbered` request that the kernel refused, from 1 on; 0 when it refused the request
    as a whole."""
    (length,) = _U32.unpack_from(refusal.payload, 4)  # of the request, which follows the error number
    for kind, data in netlink.each_attribute(refusal.payload[: 4 + length], start=24):
        if kind == ATTR_LINENO:
            return int(_U32.unpack(data)[0])
    return 0


def explained(error: NetlinkError) -> NetlinkError:
    """Translates an error number of ipset's own to the system's; other errors are returned as they are."""
    if error.errno not in ERRORS:
        return error
    number, words = ERRORS[error.errno]
    return NetlinkError(error.request, number, words)
