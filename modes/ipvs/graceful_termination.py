"""Real servers that left and still have connections: when to look at them, and when to give them up. Pure.

A real server with weight 0 gets no new connections. Of those that have none left it is let go; after GRACE it is let go
in any case, and its connections with it. A client that is sticky to it by persistence is not held back: the sysctl
expire_quiescent_template makes the kernel choose anew, and templates are not counted as connections.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from kproxy.kernel.virtual_servers import RealKey, ServerKey

GRACE = 900.0
"""Seconds that connections to an endpoint that left may last."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between two looks at the same virtual server; they double."""


@dataclass(slots=True)
class _Watch:
    look_at: float
    pause: float
    until: dict[RealKey, float]


class GracefulTermination:
    """All of one family. Times are in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._watches: dict[ServerKey, _Watch] = {}

    def __bool__(self) -> bool:
        return bool(self._watches)

    def expect(self, server: ServerKey, reals: Collection[RealKey], now: float) -> None:
        """Just these real servers of SERVER are leaving. Those that were already go on counting."""
        old = self._watches.pop(server, None)
        if not reals:
            return
        before = old.until if old else {}
        until = {real: before.get(real, now + GRACE) for real in reals}
        self._watches[server] = old if old and until == before else _Watch(now, FIRST_PAUSE, until)

    def of(self, server: ServerKey) -> Collection[RealKey]:
        """The real servers of SERVER that are leaving."""
        watch = self._watches.get(server)
        return watch.until.keys() if watch else ()

    def due(self, now: float, most: int) -> list[ServerKey]:
        """Virtual servers to look at now, MOST at a time; the next look at each is put off."""
        found = [(watch.look_at, key) for key, watch in self._watches.items() if watch.look_at <= now]
        keys = [key for _, key in sorted(found)[:most]]
        for key in keys:
            watch = self._watches[key]
            next_end = min((end for end in watch.until.values() if end > now), default=now + watch.pause)
            watch.look_at = min(now + watch.pause, next_end)
            watch.pause = min(2 * watch.pause, LONGEST_PAUSE)
        return keys

    def over(self, server: ServerKey, real: RealKey, now: float) -> bool:
        """Whether its time is up."""
        return self._watches[server].until[real] <= now

    def forget(self, server: ServerKey, reals: Iterable[RealKey]) -> None:
        """They are gone, or serve again."""
        if watch := self._watches.get(server):
            for real in reals:
                watch.until.pop(real, None)
            if not watch.until:
                del self._watches[server]

    def keep(self, servers: Collection[ServerKey]) -> None:
        """Forget all other virtual servers."""
        for key in [key for key in self._watches if key not in servers]:
            del self._watches[key]

    def next(self, now: float) -> float | None:
        """Seconds until something is due, None when nothing is leaving."""
        if not self._watches:
            return None
        return max(0.0, min(watch.look_at for watch in self._watches.values()) - now)
