"""The node's network interfaces and addresses, read by rtnetlink, and a monitor of their changes.

Decides: which addresses count as the node's own, and what its own IP is when no Node object says so. Leaves out: which
of them take node ports (`kproxy.model.node_info`), and the bytes (`kproxy.kernel.rtnetlink`).
"""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple

from kproxy.errors import NetlinkError
from kproxy.kernel import netlink, rtnetlink
from kproxy.kernel.constants import ADDRESS_FAMILY, NETLINK_ROUTE
from kproxy.kernel.netlink_sockets import MALFORMED, Overrun, Socket
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.model.plans import Family

# Not on any link, so behind the default route (RFC 1112, RFC 3849). Nothing is sent there: only the route is looked up.
OFF_LINK = {Family.IPV4: "240.0.0.1", Family.IPV6: "2001:db8:ffff:ffff::1"}


class Interface(NamedTuple):
    """A network interface; its addresses as IP/LEN, in the kernel's order."""

    name: str
    addresses: tuple[str, ...]
    up: bool


def interfaces() -> list[Interface]:
    """The interfaces of this network namespace. Raises NetlinkError."""
    with Socket(NETLINK_ROUTE) as kernel:
        request = "list interfaces"
        chunks = kernel.dump(rtnetlink.RTM_GETLINK, rtnetlink.ALL_LINKS, request)
        with kernel.decoding(request):
            links = list(rtnetlink.links_in(chunks))
        request = "list addresses"
        chunks = kernel.dump(rtnetlink.RTM_GETADDR, rtnetlink.ALL_ADDRESSES, request)
        with kernel.decoding(request):
            addresses = list(rtnetlink.addresses_in(chunks))
    held: dict[int, list[str]] = {}
    for index, _, ip, length in addresses:
        held.setdefault(index, []).append(f"{ip}/{length}")
    return [Interface(name, tuple(held.get(index, ())), up) for index, name, up in links]


def route(ip: str) -> tuple[str, str] | None:
    """The interface by which packets to an address leave, and the source address that the node prefers there ("" for
    none); None when there is no route. Raises NetlinkError."""
    with Socket(NETLINK_ROUTE) as kernel:
        request = f"look for a route to {ip}"
        try:
            answers = kernel.ask(rtnetlink.RTM_GETROUTE, rtnetlink.route_to(ip), request)
        except NetlinkError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
                return None
            raise
        with kernel.decoding(request):
            found = [rtnetlink.route_of(answer.payload) for answer in answers if answer.type == rtnetlink.RTM_NEWROUTE]
    return (socket.if_indextoname(found[0][0]), found[0][1]) if found and found[0][0] else None


def own_addresses() -> frozenset[str]:
    """Every address of this node, without its length, 127.0.0.1 and ::1 included. Raises NetlinkError."""
    own = (interface for interface in interfaces() if interface.name != SERVICE_DEVICE)
    return frozenset(text.split("/")[0] for interface in own for text in interface.addresses)


def node_ip(family: Family) -> str | None:
    """The source address that this host uses towards other networks, None without a route there."""
    try:
        with socket.socket(ADDRESS_FAMILY[family], socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            probe.connect((OFF_LINK[family], 9))
            found = str(probe.getsockname()[0])
    except OSError:
        return None
    return None if found == OFF_LINK[family] else found


def host() -> dict[str, object]:
    """The content of a file for `kproxy render --host`, ready for JSON: nodeIPs and interfaces. Raises NetlinkError."""
    return {
        "nodeIPs": [ip for family in Family if (ip := node_ip(family))],
        "interfaces": [{"name": i.name, "addresses": list(i.addresses)} for i in interfaces()],
    }


class AddressMonitor:
    """Reports that the node gained or lost an address, in the network namespace of the thread that makes it.

    Addresses of Services (on kube-ipvs0) do not count. Close it after use.
    """

    def __init__(self) -> None:
        """Raises NetlinkError."""
        groups = rtnetlink.RTNLGRP_IPV4_IFADDR, rtnetlink.RTNLGRP_IPV6_IFADDR
        self._socket = Socket(NETLINK_ROUTE, groups=groups)

    def fd(self) -> int:
        """A file descriptor that is readable when `changed` may be true."""
        return self._socket.fileno()

    def changed(self, timeout: float = 0.0) -> bool:
        """Whether any address changed since the last call; waits at most `timeout` seconds for a first change.

        Also true when that is unknown, as notifications were lost or cannot be read. Raises NetlinkError.
        """
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
    """Whether DATA, notifications about addresses, are about any device but kube-ipvs0."""
    try:
        service_device = socket.if_nametoindex(SERVICE_DEVICE)
    except OSError:
        service_device = 0
    try:
        return any(rtnetlink.index_of(message.payload) != service_device for message in netlink.messages(data))
    except MALFORMED:
        return True
