"""What all listeners of a worker share, and what their sockets have in common.

What the forwarder counts while it works.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter

from kproxy.modes.userspace.descriptors import Descriptors
from kproxy.modes.userspace.flows import Meter
from kproxy.modes.userspace.listeners import Statistics
from kproxy.modes.userspace.loop import Loop
from kproxy.modes.userspace.messages import Settings
from kproxy.modes.userspace.pipes import Pipes

RAW = socket.SocketType  # without the methods and the bookkeeping that the class above it adds
NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})


class Common:
    """What all listeners of a forwarder share."""

    def __init__(self, settings: Settings, loop: Loop, descriptors: Descriptors) -> None:
        self.settings = settings
        self.loop = loop
        self.descriptors = descriptors
        self.pipes = Pipes(descriptors)
        self.counters = Counters()


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
