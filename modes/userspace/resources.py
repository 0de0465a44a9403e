"""What all listeners of one worker share: file descriptors, pipes, counters, and the loop that calls them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import time
from collections import Counter
from pathlib import Path

from kproxy import logs
from kproxy.modes.userspace.event_loop import EventLoop
from kproxy.modes.userspace.listeners import Statistics
from kproxy.modes.userspace.messages import Settings

RAW = socket.SocketType  # without the methods and the bookkeeping that socket.socket adds
NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})
KEPT_FREE = 64  # for listeners, pipes and whatever Python opens, so that only connections are refused
LOG_SECONDS = 10.0
PIPE_BYTES = 1 << 20
PIPES_KEPT = 16

# Reasons for which a connection is refused, as in Statistics.refused.
NO_ENDPOINT, DESCRIPTORS, NOT_TRANSLATED = "no-endpoint", "descriptors", "not-translated"
INTERNAL_ERROR = "internal-error"

Pipe = tuple[int, int]
"""The descriptors to read from and to write to."""

log = logs.get("userspace")


class Resources:
    """The resources of a worker, one of each."""

    def __init__(self, settings: Settings, loop: EventLoop, descriptors: Descriptors) -> None:
        self.settings = settings
        self.loop = loop
        self.descriptors = descriptors
        self.pipes = Pipes(descriptors)
        self.counters = Counters()


# ---------------------------------------------------------------- file descriptors


def raise_limit() -> int:
    """Raise this process's limit of open files as far as the system allows. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        most = int(Path("/proc/sys/fs/nr_open").read_text())
        if hard < most or hard == resource.RLIM_INFINITY:
            with contextlib.suppress(OSError, ValueError):  # only with CAP_SYS_RESOURCE
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
                return most
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return soft


class Descriptors:
    """Counts the file descriptors that are left, and keeps one in reserve to accept a connection only to refuse it.

    `left`: how many connections may still use. The kernel may refuse earlier (ENFILE); callers use `lend` then.
    """

    __slots__ = ("_logged", "_reserve", "_unlogged", "left", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = max(0, limit - KEPT_FREE - len(os.listdir("/proc/self/fd")))
        self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._logged = float("-inf")
        self._unlogged = 0

    def lend(self) -> None:
        """Release the reserve, so that one more descriptor is available for a moment."""
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def restore(self) -> None:
        """Take the reserve back if a descriptor is available."""
        if self._reserve < 0:
            with contextlib.suppress(OSError):
                self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def report(self, what: str) -> None:
        """Log that something was refused for lack of a descriptor: once in LOG_SECONDS, with how often it happened."""
        self._unlogged += 1
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            log.warning(
                "No file descriptor is left, so connections are refused; raise the limit of open files",
                what=what,
                refused=self._unlogged,
                limit=self.limit,
            )
            self._logged, self._unlogged = now, 0


# ---------------------------------------------------------------- pipes


class Pipes:
    """A pool of empty pipes for splice(2), which moves data between two sockets without copying it.

    A pipe holds PIPE_BYTES at most: that is how far a fast writer gets ahead of a slow reader, beyond the sockets' own
    buffers.
    """

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._empty: list[Pipe] = []

    def take(self) -> Pipe | None:
        """An empty pipe, None when no descriptors are left for one."""
        if self._empty:
            return self._empty.pop()
        if self._descriptors.left < 2:
            return None
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        self._descriptors.left -= 2
        with contextlib.suppress(OSError):  # the system allows smaller ones only
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Return an empty pipe."""
        if len(self._empty) < PIPES_KEPT and self._descriptors.left > 2:
            self._empty.append(pipe)
        else:
            self.discard(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Close a pipe; what is still in it is lost."""
        os.close(pipe[0])
        os.close(pipe[1])
        self._descriptors.left += 2


# ---------------------------------------------------------------- counters


class ByteCounter:
    """Adds up the bytes of all connections in one direction."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Counters:
    """What Statistics reports, while it is counted. into, out: bytes towards endpoints and towards clients."""

    __slots__ = ("accepted", "connections", "into", "out", "refused", "reset", "retries", "sessions")

    def __init__(self) -> None:
        self.connections = self.sessions = self.accepted = self.retries = self.reset = 0
        self.into = ByteCounter()
        self.out = ByteCounter()
        self.refused: Counter[str] = Counter()

    def snapshot(self, failures: int) -> Statistics:
        """All counters as they are now. failures: connections that an unexpected exception cost."""
        refused = dict(self.refused) | ({INTERNAL_ERROR: failures} if failures else {})
        return Statistics(
            connections=self.connections,
            sessions=self.sessions,
            accepted=self.accepted,
            bytes_in=self.into.bytes,
            bytes_out=self.out.bytes,
            retries=self.retries,
            refused=refused,
            reset=self.reset,
        )
