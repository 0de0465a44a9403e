"""File descriptors: as many as the process may have, and what happens when they are used up."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path

from kproxy import logs

KEPT_FREE = 64  # for listeners, pipes and whatever Python opens, so that only connections are refused
LOG_SECONDS = 10.0

log = logs.get("userspace")


def raise_limit() -> int:
    """Let this process have as many file descriptors as the system allows; how many that are."""
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
    """How many are in use, and one kept in reserve for taking a connection only to refuse it.

    `left`: how many more connections may still use. The kernel may say no earlier (ENFILE); callers ask `lend` then.
    """

    __slots__ = ("_reserve", "_told", "_untold", "left", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = max(0, limit - KEPT_FREE - len(os.listdir("/proc/self/fd")))
        self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._told = float("-inf")
        self._untold = 0

    def lend(self) -> None:
        """Give up the one in reserve, so that one more can be had for a moment."""
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def restore(self) -> None:
        """Take the one in reserve back, if there is one to be had."""
        if self._reserve < 0:
            with contextlib.suppress(OSError):
                self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def tell(self, what: str) -> None:
        """Log that something was refused for want of a descriptor, once in a while, with how often it was."""
        self._untold += 1
        now = time.monotonic()
        if now - self._told >= LOG_SECONDS:
            log.warning(
                "No file descriptor is left, so connections are refused; raise the limit of open files",
                what=what,
                refused=self._untold,
                limit=self.limit,
            )
            self._told, self._untold = now, 0
