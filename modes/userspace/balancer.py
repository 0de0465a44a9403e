"""Which endpoint takes a connection: in turn, or the one that the client had before. Pure; time is passed in.

An endpoint is named by the address and port that it is reached at. Not decided here: whether an endpoint answers. A
caller that finds out that one does not asks again and says which ones it has tried.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence
from typing import Protocol

Target = tuple[str, int]
"""An endpoint's IP and port, as connect(2) takes them."""

CLIENTS = 65_536


class Affinity:
    """Which endpoint each client of one Service port had last. At most `limit` clients; who came last stays longest."""

    __slots__ = ("_clients", "_limit")

    def __init__(self, limit: int = CLIENTS) -> None:
        self._limit = limit
        self._clients: OrderedDict[str, tuple[Target, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    def get(self, client: str, now: float) -> Target | None:
        """The endpoint that CLIENT has at the time NOW (seconds), None when it has none or its time is over."""
        known = self._clients.get(client)
        return known[0] if known is not None and now < known[1] else None

    def put(self, client: str, target: Target, until: float, now: float) -> None:
        """CLIENT has TARGET, up to the time UNTIL if it does not come again. Lets go of those whose time is over."""
        clients = self._clients
        clients[client] = target, until
        clients.move_to_end(client)
        while clients:
            oldest = next(iter(clients.values()))
            if len(clients) <= self._limit and now < oldest[1]:
                return
            clients.popitem(last=False)


class Cells(Protocol):
    """Numbers in a row."""

    def __getitem__(self, place: int, /) -> int: ...

    def __setitem__(self, place: int, value: int, /) -> None: ...

    def __len__(self) -> int: ...


class Turn:
    """Whose turn it is, as an index: one number, which several processes may share.

    Two of them that take it at the same moment may take the same; one after another they do not.
    """

    __slots__ = ("_cells", "_place", "leads")

    def __init__(self, cells: Cells, place: int, leads: bool) -> None:
        """The number is CELLS[PLACE]. leads: this process sets it when endpoints change; the others follow."""
        self._cells = cells
        self._place = place
        self.leads = leads

    def take(self, length: int) -> int:
        """An index below LENGTH (1 or more), and the following one for whoever asks next."""
        index = self._cells[self._place] % length
        self._cells[self._place] = (index + 1) % length
        return index

    @property
    def index(self) -> int:
        return self._cells[self._place]

    @index.setter
    def index(self, value: int) -> None:
        self._cells[self._place] = value


class Balancer:
    """Takes turns over the endpoints of one listener."""

    __slots__ = ("_affinity", "_seconds", "_turn", "targets")

    def __init__(self, targets: Sequence[Target], seconds: float, affinity: Affinity, turn: Turn | None = None) -> None:
        """seconds: how long a client keeps its endpoint after its last connection, 0 for no affinity.

        affinity: shared by the listeners of one Service port. A remembered endpoint that is not among TARGETS is
        passed over, and the one chosen instead is remembered. turn: one of its own when it is not given.
        """
        self.targets = tuple(targets)
        self._seconds = seconds
        self._affinity = affinity
        self._turn = turn if turn is not None else Turn([0], 0, True)

    def change(self, targets: Sequence[Target], seconds: float) -> None:
        """From now on take these; the turn stays with whoever was next among those that stay."""
        if self._turn.leads and targets != self.targets:
            next_up = self._turn.index
            following = self.targets[next_up:] + self.targets[:next_up]
            place = {target: i for i, target in enumerate(targets)}
            self._turn.index = next((place[target] for target in following if target in place), 0)
        self.targets = tuple(targets)
        self._seconds = seconds

    def pick(self, client: str, now: float, tried: Container[Target] = ()) -> Target | None:
        """The endpoint for a connection of CLIENT, none of those TRIED; None when no other is left."""
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
            target = targets[self._turn.take(len(targets))]
            if target not in tried:
                return target
        return None
