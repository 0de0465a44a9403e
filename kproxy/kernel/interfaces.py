"""The node's network interfaces and addresses, by rtnetlink, and a watch on their changes.

Decides: which addresses count as the node's own, and what its own IP is when no Node object tells. Leaves out: which of
them take node ports (kproxy.model.node_info). Sources: rtnetlink(7), include/uapi/linux/{if_addr,if_link,rtnetlink}.h.

The daemon speaks rtnetlink by itself: it needs two dumps, and a whole library costs 0.1 s and 24 MB on every node.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from kproxy.kernel import netlink
from kproxy.kernel.netlink_sockets import Overrun, Socket
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.model.plans import Family

NETLINK_ROUTE = 0
RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_GETADDR = 16, 18, 20, 22
RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR = 5, 9
IFF_UP = 0x1
IFLA_IFNAME = 3
IFA_ADDRESS, IFA_LOCAL = 1, 2
IFA_F_DADFAILED = 0x08
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg
# On nobody's link, so behind the default route (RFC 1112, RFC 3849). Nothing is sent there: the route is looked up.
ELSEWHERE = {Family.IPV4: (socket.AF_INET, "240.0.0.1"), Family.IPV6: (socket.AF_INET6, "2001:db8:ffff:ffff::1")}


class Interface(NamedTuple):
    """A network interface; its addresses as IP/LEN, in the kernel's order."""

    name: str
    addresses: tuple[str, ...]
    up: bool


def interfaces() -> list[Interface]:
    """The interfaces of this network namespace. Raises NetlinkError."""
    with Socket(NETLINK_ROUTE) as kernel:
        links = kernel.dump(RTM_GETLINK, LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0), "list interfaces")
        addresses = kernel.dump(RTM_GETADDR, ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0), "list addresses")
    held: dict[int, list[str]] = {}
    for index, text in _addresses(addresses):
        held.setdefault(index, []).append(text)
    return [Interface(name, tuple(held.get(index, ())), up) for index, name, up in _links(links)]


def own_addresses() -> frozenset[str]:
    """Every address of this node, without its length, 127.0.0.1 and ::1 included. Raises NetlinkError."""
    own = (interface for interface in interfaces() if interface.name != SERVICE_DEVICE)
    return frozenset(text.split("/")[0] for interface in own for text in interface.addresses)


def node_ip(family: Family) -> str | None:
    """The address that this host takes for talking to the outside, None without a route there."""
    domain, elsewhere = ELSEWHERE[family]
    try:
        with socket.socket(domain, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
            asking.connect((elsewhere, 9))
            found = str(asking.getsockname()[0])
    except OSError:
        return None
    return None if found == elsewhere else found


def host() -> dict[str, object]:
    """The host as `kproxy render --host` reads it, ready for JSON: nodeIPs and interfaces. Raises NetlinkError."""
    return {
        "nodeIPs": [ip for family in Family if (ip := node_ip(family))],
        "interfaces": [{"name": i.name, "addresses": list(i.addresses)} for i in interfaces()],
    }


class AddressMonitor:
    """Tells that an address of the node came or went, in the network namespace of the thread that makes it.

    Addresses of Services do not count. Close it after use.
    """

    def __init__(self) -> None:
        """Raises NetlinkError."""
        self._socket = Socket(NETLINK_ROUTE, groups=(RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR))

    def fd(self) -> int:
        """Readable when `changed` may be true."""
        return self._socket.fileno()

    def changed(self, timeout: float = 0.0) -> bool:
        """Whether any address changed since the last call; waits at most TIMEOUT seconds for a first change."""
        found = False
        while True:
            try:
                data = self._socket.receive(0.0 if found else timeout)
            except Overrun:
                found = True
                continue
            if data is None:
                return found
            found = found or _concerns_the_node(data)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> AddressMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _concerns_the_node(data: bytes) -> bool:
    """Whether DATA, notifications of addresses, are about any device but the one that holds Services' addresses."""
    try:
        passed_over = socket.if_nametoindex(SERVICE_DEVICE)
    except OSError:
        passed_over = 0
    payloads = (m.payload for m in netlink.messages(data) if len(m.payload) >= ADDRESS.size)
    return any(ADDRESS.unpack_from(payload)[4] != passed_over for payload in payloads)


# ---- pure: bytes to values


def _links(chunks: list[bytes]) -> Iterator[tuple[int, str, bool]]:
    """Index, name, and whether it is up."""
    for payload in _payloads(chunks, RTM_NEWLINK):
        _, _, index, flags, _ = LINK.unpack_from(payload)
        name = netlink.to_text(netlink.attributes(payload, start=LINK.size).get(IFLA_IFNAME, b""))
        yield index, name, bool(flags & IFF_UP)


def _addresses(chunks: list[bytes]) -> Iterator[tuple[int, str]]:
    """Index of the interface, and IP/LEN; an IPv6 address that turned out to be taken is not ours."""
    for payload in _payloads(chunks, RTM_NEWADDR):
        family, length, flags, _, index = ADDRESS.unpack_from(payload)
        parts = netlink.attributes(payload, start=ADDRESS.size)
        packed = parts.get(IFA_LOCAL) or parts.get(IFA_ADDRESS)  # with a peer, IFA_ADDRESS is the other end
        if packed and family in (socket.AF_INET, socket.AF_INET6) and not flags & IFA_F_DADFAILED:
            yield index, f"{socket.inet_ntop(family, packed)}/{length}"


def _payloads(chunks: list[bytes], type: int) -> Iterator[bytes]:
    return (answer.payload for data in chunks for answer in netlink.messages(data) if answer.type == type)
