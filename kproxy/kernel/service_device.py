"""The dummy device kube-ipvs0, which holds the addresses of Services in IPVS mode, so that the kernel accepts packets
to them.

Decides: how the device and its addresses are made. Leaves out: which addresses those are, and the bytes
(`kproxy.kernel.rtnetlink`).

The device stays down, as kube-proxy leaves it. What matters is that the kernel makes a local route for each address,
and it does so for a device that is down, in both families; up, it would get an IPv6 address and routes of its own.
Sources: ip-link(8), net/ipv4/fib_frontend.c, net/ipv6/addrconf.c.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Mapping
from typing import Protocol

from kproxy.errors import NetlinkError
from kproxy.kernel import netlink, rtnetlink
from kproxy.kernel.constants import NETLINK_ROUTE
from kproxy.kernel.netlink_sockets import REFUSALS_BUFFER, Part, Socket
from kproxy.kernel.rtnetlink import RTM_DELADDR, RTM_NEWADDR
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.model.plans import Family

_LINK_LOCAL = re.compile("fe[89ab][0-9a-f]:")


class ServiceAddresses(Protocol):
    """The device kube-ipvs0 of one network namespace. It holds the addresses of both families; every call is about some
    of them. Not safe for two threads at once: each family has an object of its own."""

    def ensure(self) -> None:
        """Create the device (type dummy, no ARP) unless it is there. Raises NetlinkError."""

    def held(self, family: Family) -> frozenset[str]:
        """The addresses of `family` on it, without lengths; none when there is no such device. IPv6 link-local
        addresses, which the kernel assigns by itself, are left out. Raises NetlinkError."""

    def change(self, add: Collection[str], remove: Collection[str]) -> Mapping[str, NetlinkError]:
        """Add addresses to the device, as /32 or /128 without a prefix route, and remove others.

        To add one twice, or remove a missing one, is not an error. Returns what the kernel refused; the rest is done.
        Raises NetlinkError when the kernel cannot be reached.
        """

    def remove(self) -> bool:
        """Delete the device with all its addresses; returns whether there was one. Raises NetlinkError."""


class KernelAddresses:
    """The real device, of the network namespace of the thread that makes this object. Close it after use."""

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
        """See ServiceAddresses.ensure. The kernel loads the module for dummy devices by itself."""
        request = f"create device {SERVICE_DEVICE}"
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
        try:
            self._socket.ask(rtnetlink.RTM_NEWLINK, rtnetlink.new_dummy(SERVICE_DEVICE), request, flags)
        except NetlinkError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise NetlinkError(request, error.errno, "the kernel has no dummy devices (module dummy)") from None
            if error.errno != errno.EEXIST:
                raise

    def held(self, family: Family) -> frozenset[str]:
        index = self._index()
        if index is None:
            return frozenset()
        request = f"list {family.value} addresses of {SERVICE_DEVICE}"
        chunks = self._socket.dump(rtnetlink.RTM_GETADDR, rtnetlink.addresses(family), request)
        with self._socket.decoding(request):
            found = [a.ip for a in rtnetlink.addresses_in(chunks) if (a.interface, a.family) == (index, family)]
        return frozenset(ip for ip in found if not _LINK_LOCAL.match(ip))

    def change(self, add: Collection[str], remove: Collection[str]) -> Mapping[str, NetlinkError]:
        """See ServiceAddresses.change. An invalid address is refused with EINVAL. Those to remove are removed first."""
        index = self._index()
        if index is None:
            if add:
                raise NetlinkError(f"add addresses to {SERVICE_DEVICE}", errno.ENODEV)
            return {}
        refused: dict[str, NetlinkError] = {}
        parts: list[Part] = []
        sent: list[str] = []  # the address of each part
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
        for command, flag, addresses in ((RTM_DELADDR, 0, remove), (RTM_NEWADDR, flags, add)):
            for address in addresses:
                try:
                    parts.append((command, flag, rtnetlink.host_address(address, index)))
                    sent.append(address)
                except OSError as error:
                    refused[address] = NetlinkError(_request(address), errno.EINVAL, str(error))
        for part, refusal in self._socket.change(parts, lambda part: _request(sent[part])).items():
            # An address that is gone already or there already is as it should be.
            if refusal.errno != (errno.EADDRNOTAVAIL if parts[part][0] == RTM_DELADDR else errno.EEXIST):
                refused[sent[part]] = refusal
        return refused

    def remove(self) -> bool:
        index = self._index()
        if index is None:
            return False
        self._socket.ask(rtnetlink.RTM_DELLINK, rtnetlink.link(index), f"delete device {SERVICE_DEVICE}")
        return True

    def _index(self) -> int | None:
        """The device's number, None when there is no such device."""
        request = f"look for device {SERVICE_DEVICE}"
        try:
            answers = self._socket.ask(rtnetlink.RTM_GETLINK, rtnetlink.named_link(SERVICE_DEVICE), request)
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        with self._socket.decoding(request):
            return rtnetlink.link_of(answers[0].payload).number


def _request(address: str) -> str:
    return f"address {address} of {SERVICE_DEVICE}"
