"""Chooses the endpoint of a connection: round-robin, or with session affinity the client's last one. Pure.

Leaves out: whether an endpoint answers. A caller that finds that one does not asks again and says which ones it tried.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence
from typing import Protocol

Target = tuple[str, int]
"""An endpoint's IP and port, as connect(2) takes them."""

MAX_CLIENTS = 65_536


class Affinity:
    """Remembers the last endpoint of each client of one Service port, of the latest `limit` clients at most."""

    __slots__ = ("_clients", "_limit")

    def __init__(self, limit: int = MAX_CLIENTS) -> None:
        self._limit = limit
        self._clients: OrderedDict[str, tuple[Target, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    def get(self, client: str, now: float) -> Target | None:
        """CLIENT's endpoint at the time `now` (seconds), None if it has none or its time is over."""
        known = self._clients.get(client)
        return known[0] if known is not None and now < known[1] else None

    def put(self, client: str, target: Target, until: float, now: float) -> None:
        """Remember `target` as `client`'s until the time `until`, and forget the clients whose time is over."""
        clients = self._clients
        clients[client] = target, until
        clients.move_to_end(client)
        while clients:
            oldest = next(iter(clients.values()))
            if len(clients) <= self._limit and now < oldest[1]:
                return
            clients.popitem(last=False)


class IntArray(Protocol):
    """A mutable array of numbers."""

    def __getitem__(self, place: int, /) -> int: ...

    def __setitem__(self, place: int, value: int, /) -> None: ...

    def __len__(self) -> int: ...


class RoundRobinCounter:
    """The index of the endpoint that is next: one number, which several processes may share.

    Two processes that read it at the same moment may get the same index, which does no harm.
    """

    __slots__ = ("_array", "_index", "owned")

    def __init__(self, array: IntArray, index: int, owned: bool) -> None:
        """The number is array[index]. owned: this process, and no other, adjusts it when the endpoints change."""
        self._array = array
        self._index = index
        self.owned = owned

    def take(self, length: int) -> int:
        """The next index below `length` (1 or more)."""
        value = self._array[self._index] % length
        self._array[self._index] = (value + 1) % length
        return value

    @property
    def value(self) -> int:
        return self._array[self._index]

    @value.setter
    def value(self, value: int) -> None:
        self._array[self._index] = value


class Balancer:
    """Distributes the connections of one listener over its endpoints."""

    __slots__ = ("_affinity", "_counter", "_seconds", "targets")

    def __init__(
        self, targets: Sequence[Target], seconds: float, affinity: Affinity, counter: RoundRobinCounter
    ) -> None:
        """seconds: how long a client keeps its endpoint after its last connection, 0 for no affinity.

        affinity: shared by the listeners of one Service port. A remembered endpoint that is not among `targets` is
        ignored, and the one chosen instead is remembered.
        """
        self.targets = tuple(targets)
        self._seconds = seconds
        self._affinity = affinity
        self._counter = counter

    def change(self, targets: Sequence[Target], seconds: float) -> None:
        """Replace the endpoints; of those that stay, the same one is next."""
        if self._counter.owned and targets != self.targets:
            next_up = self._counter.value
            following = self.targets[next_up:] + self.targets[:next_up]
            place = {target: i for i, target in enumerate(targets)}
            self._counter.value = next((place[target] for target in following if target in place), 0)
        self.targets = tuple(targets)
        self._seconds = seconds

    def pick(self, client: str, now: float, tried: Container[Target] = ()) -> Target | None:
        """The endpoint for a connection of `client`, excluding those `tried`; None when no other is left."""
        if not self._seconds:
            return self._next(tried)
        target = self._affinity.get(client, now)
        if target is None or target in tried or target not in self.targets:
            target = self._next(tried)
        if target is not None:
            self._affinity.put(client, target, now + self._seconds, now)
        return target

    def _next(self, tried: Container[Target]) -> Target | None:
        targets = self.targets
        for _ in targets:
            target = targets[self._counter.take(len(targets))]
            if target not in tried:
                return target
        return None
