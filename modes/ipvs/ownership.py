"""Which Service ports need which virtual server, set entry and address. Pure.

Several ports may need the same: the ports of one Service share their cluster IP, and two Services may ask for one
external IP and port. An entry or address stays as long as any of them needs it. A virtual server is the one that the
first of its ports by name asks for, so that the outcome does not depend on the order in which they came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable
from typing import NamedTuple, TypeVar

from kproxy.kernel.virtual_servers import ServerKey
from kproxy.model.plans import PortKey
from kproxy.modes.ipvs.fragments import Entry, Fragment, Served

T = TypeVar("T", bound=Hashable)
Claimants = tuple[PortKey, ...]


class Things(NamedTuple):
    """What is to be looked at: virtual servers, set entries and addresses, some more than once."""

    servers: Collection[ServerKey]
    entries: Collection[Entry]
    addresses: Collection[str]


class Ownership:
    """What some ports need, kept up to date one port at a time."""

    def __init__(self) -> None:
        self._servers: dict[ServerKey, dict[PortKey, Served]] = {}
        self._entries: dict[Entry, Claimants] = {}
        self._addresses: dict[str, Claimants] = {}
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
        """The names of the sets that hold anything."""
        return frozenset(self._filled)

    def served(self, key: ServerKey) -> Served | None:
        """What a virtual server should be; None when nobody needs it."""
        claimants = self._servers.get(key)
        return claimants[min(claimants)] if claimants else None

    def ports(self, thing: ServerKey | Entry | str) -> Claimants:
        """Those that need THING; of a virtual server the one that decides what it is."""
        if isinstance(thing, ServerKey):
            return (min(self._servers[thing]),) if thing in self._servers else ()
        return self._entries.get(thing, ()) if isinstance(thing, Entry) else self._addresses.get(thing, ())

    def put(self, key: PortKey, old: Fragment, new: Fragment) -> Things:
        """KEY needed what is in OLD and needs what is in NEW; an empty one stands for nothing. Returns all of both."""
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
        return Things(
            [served.server.key for served in (*old.served, *new.served)],
            (*old.entries, *new.entries),
            (*old.addresses, *new.addresses),
        )

    def _drop_server(self, server: ServerKey, key: PortKey) -> None:
        claimants = self._servers[server]
        del claimants[key]
        if not claimants:
            del self._servers[server]

    def _count(self, entry: Entry, step: int) -> None:
        self._filled[entry.set] += step
        if not self._filled[entry.set]:
            del self._filled[entry.set]


def _add(claims: dict[T, Claimants], thing: T, key: PortKey) -> bool:
    """Whether nobody needed it before."""
    claimants = claims.get(thing, ())
    if key not in claimants:
        claims[thing] = (*claimants, key)
    return not claimants


def _drop(claims: dict[T, Claimants], thing: T, key: PortKey) -> bool:
    """Whether nobody needs it any more."""
    left = tuple(claimant for claimant in claims.get(thing, ()) if claimant != key)
    if left:
        claims[thing] = left
        return False
    return claims.pop(thing, None) is not None
