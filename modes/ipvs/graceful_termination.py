"""Graceful termination of real servers that are no longer wanted: when to check them, and when to delete them. Pure.

Such a real server gets weight 0, and so no new connections. It is deleted when it has no connections left, or when
GRACE is over, together with its connections. Persistence does not delay this: with the sysctl expire_quiescent_template
the kernel schedules a persistent client anew, and templates are not counted as connections.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from kproxy.kernel.virtual_servers import RealKey, ServerKey

GRACE = 900.0
"""Seconds that connections to a terminating real server may last."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between two checks of the same virtual server; they double from the first to the longest."""


@dataclass(slots=True)
class _Terminating:
    """The terminating real servers of one virtual server, each with the time at which its grace ends."""

    check_at: float
    pause: float
    until: dict[RealKey, float]


class GracefulTermination:
    """The terminating real servers of one family. Times are in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._servers: dict[ServerKey, _Terminating] = {}

    def expect(self, server: ServerKey, reals: Collection[RealKey], now: float) -> None:
        """Set the terminating real servers of `server`; those that were terminating before keep their time."""
        old = self._servers.pop(server, None)
        if not reals:
            return
        before = old.until if old else {}
        until = {real: before.get(real, now + GRACE) for real in reals}
        self._servers[server] = old if old and until == before else _Terminating(now, FIRST_PAUSE, until)

    def of(self, server: ServerKey) -> Collection[RealKey]:
        """The terminating real servers of `server`."""
        held = self._servers.get(server)
        return held.until.keys() if held else ()

    def due(self, now: float, most: int) -> list[ServerKey]:
        """The virtual servers that are due to be checked, at most `most`; the next check of each is scheduled."""
        found = [(held.check_at, key) for key, held in self._servers.items() if held.check_at <= now]
        keys = [key for _, key in sorted(found)[:most]]
        for key in keys:
            held = self._servers[key]
            next_end = min((end for end in held.until.values() if end > now), default=now + held.pause)
            held.check_at = min(now + held.pause, next_end)
            held.pause = min(2 * held.pause, LONGEST_PAUSE)
        return keys

    def over(self, server: ServerKey, real: RealKey, now: float) -> bool:
        """Whether the grace of `real` is over."""
        return self._servers[server].until[real] <= now

    def forget(self, server: ServerKey, reals: Iterable[RealKey]) -> None:
        """Remove `reals` of `server`: they are deleted, or wanted again."""
        if held := self._servers.get(server):
            for real in reals:
                held.until.pop(real, None)
            if not held.until:
                del self._servers[server]

    def keep(self, servers: Collection[ServerKey]) -> None:
        """Remove all virtual servers but these."""
        for key in [key for key in self._servers if key not in servers]:
            del self._servers[key]

    def next(self, now: float) -> float | None:
        """Seconds until something is due, None when nothing is terminating."""
        if not self._servers:
            return None
        return max(0.0, min(held.check_at for held in self._servers.values()) - now)
