"""The device kube-ipvs0 in memory: strict where the kernel is."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable, Collection, Mapping

from kproxy.errors import NetlinkError
from kproxy.model.node_info import SERVICE_DEVICE, family_of
from kproxy.model.plans import Family


def accept(address: str) -> int:
    """Refuses nothing; for `FakeAddresses.refuse`."""
    return 0


class FakeAddresses:
    """A ServiceAddresses of both families, in memory; dataplanes of both may share one.

    Faults to inject: `refuse`, which gives the errno for an address that is to be added, or 0; `fail_at`, the numbers
    of the changes (from 1) of which only the additions are done before the kernel cannot be talked to; `unreadable`.

    present: whether the device exists. added, removed: every address that was asked for, in order. lists: how often
    `held` was asked.

    Without the device nothing can be added, and there is nothing to remove.
    """

    def __init__(self) -> None:
        self.refuse: Callable[[str], int] = accept
        self.fail_at: set[int] = set()
        self.unreadable = False
        self.present = False
        self.added: list[str] = []
        self.removed: list[str] = []
        self.changes = 0
        self.lists = 0
        self._addresses: dict[str, None] = {}

    # ---- what a test does to it

    def flush(self, family: Family | None = None) -> None:
        """Do what `ip addr flush dev kube-ipvs0` does."""
        self._addresses = {a: None for a in self._addresses if family not in (None, family_of(a))}

    def edit(self, add: Collection[str] = (), remove: Collection[str] = ()) -> None:
        """What other programs do: a change that is counted nowhere."""
        if self.present:
            self._addresses.update(dict.fromkeys(add))
        for address in remove:
            self._addresses.pop(address, None)

    # ---- ServiceAddresses

    def ensure(self) -> None:
        self.present = True

    def held(self, family: Family) -> frozenset[str]:
        if self.unreadable:
            raise NetlinkError(f"list addresses of {SERVICE_DEVICE}", errno.ENOBUFS)
        self.lists += 1
        return frozenset(a for a in self._addresses if family_of(a) is family)

    def change(self, add: Collection[str], remove: Collection[str]) -> Mapping[str, NetlinkError]:
        self.changes += 1
        self.added += add
        self.removed += remove
        if add and not self.present:
            raise NetlinkError(f"add addresses to {SERVICE_DEVICE}", errno.ENODEV)
        errors = {a: NetlinkError(f"address {a} of {SERVICE_DEVICE}", number) for a in add if (number := self._add(a))}
        if self.changes in self.fail_at:
            raise NetlinkError(f"change addresses of {SERVICE_DEVICE}", errno.ENOBUFS)
        for address in remove:
            self._addresses.pop(address, None)
        return errors

    def remove(self) -> bool:
        was, self.present = self.present, False
        self._addresses.clear()
        return was

    # ---- inside

    def _add(self, address: str) -> int:
        """The errno, 0 when it is done."""
        try:
            if str(ipaddress.ip_address(address)) != address:
                return errno.EINVAL
        except ValueError:
            return errno.EINVAL
        if number := self.refuse(address):
            return number
        self._addresses[address] = None
        return 0
