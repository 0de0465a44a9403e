"""The dummy device that holds the addresses of Services in IPVS mode, so that the kernel takes their packets in.

Sources: rtnetlink(7), include/uapi/linux/{if_link,if_addr}.h, ip-link(8).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from kproxy.errors import NetlinkError
from kproxy.model.plans import Family

__all__ = ["DEVICE", "ServiceAddresses"]

DEVICE = "kube-ipvs0"


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
