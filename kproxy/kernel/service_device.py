"""The dummy device that holds the addresses of Services in IPVS mode, so that the kernel takes their packets in.

Decides: how the device and its addresses are made. Leaves out: which addresses those are.

The device stays down, as kube-proxy leaves it. What matters is that the kernel makes a local route for each address,
and it does so for a device that is down, in both families; up, it would get an IPv6 address and routes of its own.
Sources: rtnetlink(7), include/uapi/linux/{if_link,if_addr}.h, ip-link(8), net/ipv4/fib_frontend.c, net/ipv6/addrconf.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Mapping
from typing import Protocol

from kproxy.errors import NetlinkError
from kproxy.kernel import netlink
from kproxy.kernel.netlink_sockets import REFUSALS_BUFFER, Part, Socket
from kproxy.model.plans import Family

DEVICE = "kube-ipvs0"
NETLINK_ROUTE = 0
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 16, 17, 18, 20, 21, 22
IFF_NOARP = 0x80
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 18, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg
FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
LENGTHS = {socket.AF_INET: 32, socket.AF_INET6: 128}
THERE_ALREADY, GONE_ALREADY = errno.EEXIST, errno.EADDRNOTAVAIL


class ServiceAddresses(Protocol):
    """The device kube-ipvs0 of one network namespace. Not for two threads at a time: make one for each."""

    def ensure(self) -> None:
        """Create the device (type dummy, no ARP) unless it is there. Raises NetlinkError."""

    def held(self, family: Family) -> frozenset[str]:
        """The addresses on it, without lengths; nothing when there is no such device. IPv6 link-local addresses, which
        the kernel gives by itself, are left out. Raises NetlinkError."""

    def change(self, add: Collection[str], remove: Collection[str]) -> Mapping[str, NetlinkError]:
        """Put addresses on the device, as /32 or /128 without a prefix route, and take others off.

        One that is there already, or gone already, is no error. Returns what the kernel refused; the rest is done.
        Raises NetlinkError when the kernel cannot be talked to.
        """

    def remove(self) -> bool:
        """Delete the device with all its addresses; whether there was one. Raises NetlinkError."""


class KernelAddresses:
    """The real one, of the network namespace of the thread that makes it. Close it after use."""

    def __init__(self) -> None:
        """Raises NetlinkError."""
        self._socket = Socket(NETLINK_ROUTE, buffer=REFUSALS_BUFFER)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> KernelAddresses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ensure(self) -> None:
        """As ServiceAddresses.ensure. The kernel loads the module of dummy devices by itself."""
        request = f"create device {DEVICE}"
        wanted = LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_NOARP, IFF_NOARP) + netlink.text(IFLA_IFNAME, DEVICE)
        kind = netlink.nested(IFLA_LINKINFO, netlink.attribute(IFLA_INFO_KIND, b"dummy"))
        try:
            self._socket.ask(RTM_NEWLINK, wanted + kind, request, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)
        except NetlinkError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise NetlinkError(request, error.errno, "the kernel has no dummy devices (module dummy)") from None
            if error.errno != errno.EEXIST:
                raise

    def held(self, family: Family) -> frozenset[str]:
        """As ServiceAddresses.held."""
        index = self._index()
        if index is None:
            return frozenset()
        number = FAMILIES[family]
        chunks = self._socket.dump(RTM_GETADDR, ADDRESS.pack(number, 0, 0, 0, 0), "list addresses")
        answers = (a.payload for data in chunks for a in netlink.messages(data) if a.type == RTM_NEWADDR)
        packed = [_address(payload) for payload in answers if ADDRESS.unpack_from(payload)[0::4] == (number, index)]
        return frozenset(socket.inet_ntop(number, address) for address in packed if not _link_local(address))

    def change(self, add: Collection[str], remove: Collection[str]) -> Mapping[str, NetlinkError]:
        """As ServiceAddresses.change; what is no address is EINVAL. Those to remove are removed first."""
        index = self._index()
        if index is None:
            if add:
                raise NetlinkError(f"add addresses to {DEVICE}", errno.ENODEV)
            return {}
        refused: dict[str, NetlinkError] = {}
        parts: list[Part] = []
        sent: list[str] = []  # the address of each part
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
        for command, flag, addresses in ((RTM_DELADDR, 0, remove), (RTM_NEWADDR, flags, add)):
            for address in addresses:
                try:
                    parts.append((command, flag, _named(address, index)))
                    sent.append(address)
                except OSError as error:
                    refused[address] = NetlinkError(f"address {address} of {DEVICE}", errno.EINVAL, str(error))
        for part, refusal in self._socket.change(parts, lambda part: f"address {sent[part]} of {DEVICE}").items():
            if refusal.errno != (GONE_ALREADY if parts[part][0] == RTM_DELADDR else THERE_ALREADY):
                refused[sent[part]] = refusal
        return refused

    def remove(self) -> bool:
        """As ServiceAddresses.remove."""
        index = self._index()
        if index is None:
            return False
        self._socket.ask(RTM_DELLINK, LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0), f"delete device {DEVICE}")
        return True

    def _index(self) -> int | None:
        """The device's number, None when there is no such device."""
        named = LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + netlink.text(IFLA_IFNAME, DEVICE)
        try:
            (answer, *_) = self._socket.ask(RTM_GETLINK, named, f"look for device {DEVICE}")
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return int(LINK.unpack_from(answer.payload)[2])


# ---- pure: addresses to bytes and back


def _named(address: str, index: int) -> bytes:
    """An address of a device as it is added and deleted. Raises OSError for what is none.

    IPv6 without duplicate address detection, which would find other nodes with the same address, and without the route
    to its prefix. IPv4 has neither with length 32.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    data = ADDRESS.pack(family, LENGTHS[family], 0, 0, index)
    data += netlink.attribute(IFA_LOCAL, packed) + netlink.attribute(IFA_ADDRESS, packed)
    if family == socket.AF_INET6:
        data += netlink.u32(IFA_FLAGS, IFA_F_NODAD | IFA_F_NOPREFIXROUTE)
    return data


def _address(payload: bytes) -> bytes:
    parts = netlink.attributes(payload, start=ADDRESS.size)
    return parts.get(IFA_LOCAL) or parts.get(IFA_ADDRESS, b"")


def _link_local(packed: bytes) -> bool:
    """fe80::/10"""
    return len(packed) == 16 and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80
