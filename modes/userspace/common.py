"""What all listeners of a worker share, and what their sockets have in common."""

from __future__ import annotations

import errno
import socket

from kproxy.modes.userspace.counters import Counters
from kproxy.modes.userspace.descriptors import Descriptors
from kproxy.modes.userspace.loop import Loop
from kproxy.modes.userspace.messages import Settings
from kproxy.modes.userspace.pipes import Pipes

__all__ = ["NO_DESCRIPTOR", "RAW", "Common"]

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
