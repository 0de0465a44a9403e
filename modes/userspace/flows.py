"""One direction of a TCP connection: bytes from a source to a sink, never more of them than the sink takes.

The first bytes go through memory, which costs least for a request or an answer; when a whole chunk came at once they
go through a pipe. Sockets are non-blocking, and events are edges: a flow remembers what it may still read and write.
"""

from __future__ import annotations

import os
import select
import socket

from kproxy.modes.userspace.pipes import SIZE, Pipe, Pipes

CHUNK = 16_384
TURNS = 16  # reads before others have their turn
FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE

_read, _write, _splice = os.read, os.write, os.splice


class Meter:
    """Adds up the bytes of all flows of one direction."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Flow:
    """held, level: bytes that were read and not written yet, in memory or in the pipe.

    readable, writable: false once the socket said so, until the loop says otherwise. ending: what stands in the
    source besides bytes, as events of epoll. ended: the source has no more.
    finished: the sink was told. queued: the loop will call for more of it.
    """

    __slots__ = (
        "ended", "ending", "finished", "held", "level", "meter", "pipe", "pipes", "queued", "readable", "sink",
        "source", "writable",
    )  # fmt: skip

    def __init__(self, source: int, sink: int, pipes: Pipes, meter: Meter, readable: bool) -> None:
        self.source = source
        self.sink = sink
        self.pipes = pipes
        self.readable = readable
        self.writable = True
        self.ending = 0
        self.ended = self.finished = self.queued = False
        self.held = b""
        self.pipe: Pipe | None = None
        self.level = 0
        self.meter = meter

    @property
    def empty(self) -> bool:
        """All that was read was written."""
        return not self.held and not self.level

    def pump(self) -> bool:
        """Move what can be moved now. True: there may be more, but others should have their turn first.

        The last bytes, when they are known to be the last, are left in `held` for `say_last`. Raises OSError when one
        of the two sockets is broken.
        """
        if self.pipe is not None:
            return self._splice(self.pipe)
        while True:
            held = self.held
            if held:
                if self.ended or not self.writable:
                    return False
                try:
                    sent = _write(self.sink, held)
                except BlockingIOError:
                    self.writable = False
                    return False
                self.meter.bytes += sent
                if sent < len(held):
                    self.held = held[sent:]
                    self.writable = False
                    return False
                self.held = b""
                if sent == CHUNK:  # much came at once: more is to be expected
                    self.pipe = self.pipes.take()
                    return True if self.pipe is None else self._splice(self.pipe)
            if not self.readable:
                return False
            self.fetch()
            if not self.held:
                return False

    def fetch(self) -> None:
        """Read into `held`, which is empty. Raises OSError when the source is broken."""
        try:
            self.held = held = _read(self.source, CHUNK)
        except BlockingIOError:
            self.readable = False
            return
        if len(held) == CHUNK:
            return
        # Less than asked for: nothing is left but the end, and what comes later makes a new edge. Not so with an error
        # or a mark of urgent data, before which a read stops short.
        self.ended = not held or self.ending == select.EPOLLRDHUP
        self.readable = not self.ended and self.ending != 0

    def say_last(self, sink: socket.SocketType) -> bool:
        """Write `held` to SINK, which is about to be told the end: both go in one packet. True when all is written."""
        try:
            sent = sink.send(self.held, socket.MSG_MORE)
        except BlockingIOError:
            sent = 0
        self.meter.bytes += sent
        self.held = self.held[sent:]
        self.writable = not self.held
        return self.writable

    def release(self) -> None:
        """The connection is over."""
        if self.pipe is not None:
            if self.level:
                self.pipes.drop(self.pipe)
            else:
                self.pipes.give(self.pipe)
            self.pipe = None

    def _splice(self, pipe: Pipe) -> bool:
        """Through the pipe, which is given back when it is empty."""
        out, into = pipe
        for _ in range(TURNS):
            if self.readable:
                try:
                    more = _splice(self.source, into, SIZE, flags=FLAGS)
                except BlockingIOError:
                    # A full pipe says the same as an empty socket.
                    if not self.level:
                        self.readable = False
                else:
                    self.level += more
                    if not more:
                        self.readable = False
                        self.ended = True
            if not self.level:
                self.pipes.give(pipe)
                self.pipe = None
                return False
            if not self.writable:
                return False
            try:
                sent = _splice(out, self.sink, self.level, flags=FLAGS)
            except BlockingIOError:
                self.writable = False
                return False
            self.level -= sent
            self.meter.bytes += sent
        return True
