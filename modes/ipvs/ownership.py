"""Records which Service ports own which virtual server, set entry and address. Pure.

An object may have several owners: the ports of one Service share their cluster IP, and two Services may ask for the
same external IP and port. An entry or address stays as long as it has an owner. A virtual server is what the first of
its owners by name asks for, so that the outcome does not depend on the order in which they came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable
from typing import NamedTuple, TypeVar

from kproxy.kernel.virtual_servers import ServerKey
from kproxy.model.plans import PortKey
from kproxy.modes.ipvs.fragments import Entry, Fragment, Served

T = TypeVar("T", bound=Hashable)
Owners = tuple[PortKey, ...]


class Objects(NamedTuple):
    """Virtual servers, set entries and addresses to compare with the kernel, with repetitions."""

    servers: Collection[ServerKey]
    entries: Collection[Entry]
    addresses: Collection[str]


class Ownership:
    """The owners of every object, updated one port at a time."""

    def __init__(self) -> None:
        self._servers: dict[ServerKey, dict[PortKey, Served]] = {}
        self._entries: dict[Entry, Owners] = {}
        self._addresses: dict[str, Owners] = {}
        self._filled: Counter[str] = Counter()

    @property
    def servers(self) -> Collection[ServerKey]:
        return self._servers.keys()

    @property
    def entries(self) -> Collection[Entry]:
        return self._entries.keys()

    @property
    def addresses(self) -> Collection[str]:
        return self._addresses.keys()

    @property
    def filled(self) -> frozenset[str]:
        """The names of the sets that are not empty."""
        return frozenset(self._filled)

    def served(self, key: ServerKey) -> Served | None:
        """What a virtual server should be; None when it has no owner."""
        owners = self._servers.get(key)
        return owners[min(owners)] if owners else None

    def ports(self, object: ServerKey | Entry | str) -> Owners:
        """The owners of an object; of a virtual server only the one that decides what it is."""
        if isinstance(object, ServerKey):
            return (min(self._servers[object]),) if object in self._servers else ()
        return self._entries.get(object, ()) if isinstance(object, Entry) else self._addresses.get(object, ())

    def put(self, key: PortKey, old: Fragment, new: Fragment) -> Objects:
        """Replace what KEY owned, `old`, by `new`; an empty fragment for nothing. Returns the objects of both."""
        for served in old.served:
            self._drop_server(served.server.key, key)
        for served in new.served:
            self._servers.setdefault(served.server.key, {})[key] = served
        for entry in old.entries:
            if _drop(self._entries, entry, key):
                self._count(entry, -1)
        for entry in new.entries:
            if _add(self._entries, entry, key):
                self._count(entry, 1)
        for address in old.addresses:
            _drop(self._addresses, address, key)
        for address in new.addresses:
            _add(self._addresses, address, key)
        return Objects(
            [served.server.key for served in (*old.served, *new.served)],
            (*old.entries, *new.entries),
            (*old.addresses, *new.addresses),
        )

    def _drop_server(self, server: ServerKey, key: PortKey) -> None:
        owners = self._servers[server]
        del owners[key]
        if not owners:
            del self._servers[server]

    def _count(self, entry: Entry, step: int) -> None:
        self._filled[entry.set] += step
        if not self._filled[entry.set]:
            del self._filled[entry.set]


def _add(owned: dict[T, Owners], thing: T, key: PortKey) -> bool:
    """Add an owner; returns whether it is the first."""
    owners = owned.get(thing, ())
    if key not in owners:
        owned[thing] = (*owners, key)
    return not owners


def _drop(owned: dict[T, Owners], thing: T, key: PortKey) -> bool:
    """Remove an owner; returns whether it was the last."""
    left = tuple(owner for owner in owned.get(thing, ()) if owner != key)
    if left:
        owned[thing] = left
        return False
    return owned.pop(thing, None) is not None
