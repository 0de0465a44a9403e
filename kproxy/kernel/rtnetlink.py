"""Network interfaces and their addresses as values, and rtnetlink's requests about them as bytes: pure.

Leaves out: sending (`kproxy.kernel.netlink_sockets`), and which interfaces and addresses matter
(`kproxy.kernel.interfaces`, `kproxy.kernel.service_device`). The `*_of` functions raise ValueError or struct.error for
bytes that are malformed. Sources: rtnetlink(7), include/uapi/linux/{rtnetlink,if_link,if_addr}.h.

The daemon has a codec of its own because it needs six messages, and a whole library costs 0.1 s and 24 MB on every
node.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kproxy.kernel import netlink
from kproxy.kernel.constants import ADDRESS_BITS, ADDRESS_FAMILY, address_family
from kproxy.model.plans import Family

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 16, 17, 18, 20, 21, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR = 5, 9
IFF_UP, IFF_NOARP = 0x1, 0x80
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 18, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_NOPREFIXROUTE = 0x02, 0x08, 0x200

_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
RTA_DST, RTA_OIF, RTA_PREFSRC = 1, 4, 7

_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg
_ROUTE = struct.Struct("=8BI")  # struct rtmsg

ALL_LINKS = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
"""The payload of an RTM_GETLINK dump."""
ALL_ADDRESSES = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
"""The payload of an RTM_GETADDR dump of both families."""


class Link(NamedTuple):
    """A network interface. number: its index, from 1 on."""

    number: int
    name: str
    up: bool


class Address(NamedTuple):
    """An address. interface: the number of the interface that has it. length: of its prefix, in bits."""

    interface: int
    family: Family
    ip: str
    length: int


# ---- requests


def named_link(name: str) -> bytes:
    """The payload of an RTM_GETLINK for one interface."""
    return ALL_LINKS + netlink.text(IFLA_IFNAME, name)


def new_dummy(name: str) -> bytes:
    """The payload of an RTM_NEWLINK for a dummy interface without ARP, which stays down."""
    kind = netlink.nested(IFLA_LINKINFO, netlink.attribute(IFLA_INFO_KIND, b"dummy"))
    return _LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_NOARP, IFF_NOARP) + netlink.text(IFLA_IFNAME, name) + kind


def link(index: int) -> bytes:
    """The payload of an RTM_DELLINK."""
    return _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)


def addresses(family: Family) -> bytes:
    """The payload of an RTM_GETADDR dump of one family."""
    return _ADDRESS.pack(ADDRESS_FAMILY[family], 0, 0, 0, 0)


def host_address(ip: str, index: int) -> bytes:
    """The payload of an RTM_NEWADDR or RTM_DELADDR for a single address (/32, /128). Raises OSError for what is none.

    IPv6 without duplicate address detection, which would find other nodes with the same address, and without the route
    to its prefix. IPv4 has neither with length 32.
    """
    number = address_family(ip)
    packed = socket.inet_pton(number, ip)
    length = ADDRESS_BITS[Family.IPV6 if number == socket.AF_INET6 else Family.IPV4]
    data = _ADDRESS.pack(number, length, 0, 0, index)
    data += netlink.attribute(IFA_LOCAL, packed) + netlink.attribute(IFA_ADDRESS, packed)
    if number == socket.AF_INET6:
        data += netlink.u32(IFA_FLAGS, IFA_F_NODAD | IFA_F_NOPREFIXROUTE)
    return data


def route_to(ip: str) -> bytes:
    """The payload of an RTM_GETROUTE: which route packets to this address take. Raises OSError for what is none."""
    number = address_family(ip)
    packed = socket.inet_pton(number, ip)
    header = _ROUTE.pack(number, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
    return header + netlink.attribute(RTA_DST, packed)


# ---- answers


def links_in(chunks: Iterable[bytes]) -> Iterator[Link]:
    """The interfaces in the datagrams of an RTM_GETLINK dump."""
    return map(link_of, _payloads(chunks, RTM_NEWLINK))


def addresses_in(chunks: Iterable[bytes]) -> Iterator[Address]:
    """The addresses in the datagrams of an RTM_GETADDR dump."""
    return (found for payload in _payloads(chunks, RTM_NEWADDR) if (found := address_of(payload)) is not None)


def link_of(payload: bytes) -> Link:
    """The interface that an RTM_NEWLINK is about."""
    _, _, index, flags, _ = _LINK.unpack_from(payload)
    if index <= 0:
        raise ValueError(f"network interface with number {index}")
    name = netlink.to_text(netlink.attributes(payload, start=_LINK.size).get(IFLA_IFNAME, b""))
    return Link(index, name, bool(flags & IFF_UP))


def address_of(payload: bytes) -> Address | None:
    """The address that an RTM_NEWADDR is about. None for one of another family, and for an IPv6 address that duplicate
    address detection found on another host: it is not in use here."""
    number, length, flags, _, index = _ADDRESS.unpack_from(payload)
    family = _FAMILIES.get(number)
    parts = netlink.attributes(payload, start=_ADDRESS.size)
    packed = parts.get(IFA_LOCAL) or parts.get(IFA_ADDRESS)  # with a peer, IFA_ADDRESS is the other end
    if family is None or packed is None or flags & IFA_F_DADFAILED:
        return None
    return Address(index, family, socket.inet_ntop(number, packed), length)


def route_of(payload: bytes) -> tuple[int, str]:
    """The number of the output interface and the preferred source ("" for none) that an RTM_NEWROUTE names."""
    parts = netlink.attributes(payload, start=_ROUTE.size)
    source = parts.get(RTA_PREFSRC)
    shown = "" if source is None else socket.inet_ntop(payload[0], source)
    return int.from_bytes(parts.get(RTA_OIF, b""), sys.byteorder), shown


def index_of(payload: bytes) -> int:
    """The number of the interface that an RTM_NEWADDR or RTM_DELADDR is about."""
    return int(_ADDRESS.unpack_from(payload)[4])


def _payloads(chunks: Iterable[bytes], type: int) -> Iterator[bytes]:
    return (answer.payload for data in chunks for answer in netlink.messages(data) if answer.type == type)


_FAMILIES = {int(number): family for family, number in ADDRESS_FAMILY.items()}
