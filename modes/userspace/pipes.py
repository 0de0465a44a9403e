"""Pipes for splice(2): taken when a connection has more to say than a few bytes, given back as soon as they are empty.

A pipe between two sockets carries data past the process without a copy. It holds SIZE bytes at most, which is all that
a fast writer gets ahead of a slow reader beyond the sockets' own buffers.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from kproxy.modes.userspace.descriptors import Descriptors

SIZE = 1 << 20
KEPT = 16

Pipe = tuple[int, int]
"""The ends to read from and to write to."""


class Pipes:
    """Empty pipes, made when there are none."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._empty: list[Pipe] = []

    def take(self) -> Pipe | None:
        """A pipe, None when no more can be had."""
        if self._empty:
            return self._empty.pop()
        if self._descriptors.left < 2:
            return None
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        self._descriptors.left -= 2
        with suppress(OSError):  # the system allows smaller ones only
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, SIZE)
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Back, empty."""
        if len(self._empty) < KEPT and self._descriptors.left > 2:
            self._empty.append(pipe)
        else:
            self.drop(pipe)

    def drop(self, pipe: Pipe) -> None:
        """Back, with something in it, which is lost."""
        os.close(pipe[0])
        os.close(pipe[1])
        self._descriptors.left += 2
