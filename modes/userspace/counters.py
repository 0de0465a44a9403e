"""What the forwarder counts while it works."""

from __future__ import annotations

from collections import Counter

from kproxy.modes.userspace.flows import Meter
from kproxy.modes.userspace.listeners import Statistics

__all__ = ["DESCRIPTORS", "NO_ENDPOINT", "Counters"]

NO_ENDPOINT = "no-endpoint"
DESCRIPTORS = "descriptors"


class Counters:
    """As Statistics; into, out: the bytes towards endpoints and towards clients."""

    __slots__ = ("accepted", "connections", "into", "out", "refused", "reset", "retries", "sessions")

    def __init__(self) -> None:
        self.connections = self.sessions = self.accepted = self.retries = self.reset = 0
        self.into = Meter()
        self.out = Meter()
        self.refused: Counter[str] = Counter()

    def snapshot(self) -> Statistics:
        """All of it, as it is now."""
        return Statistics(
            connections=self.connections,
            sessions=self.sessions,
            accepted=self.accepted,
            bytes_in=self.into.bytes,
            bytes_out=self.out.bytes,
            retries=self.retries,
            refused=dict(self.refused),
            reset=self.reset,
        )
