"""One direction of a TCP connection: copies bytes from a source to a sink, no more than the sink accepts.

Small transfers are copied through memory, which is cheapest for a request or an answer; once a whole chunk has come at
once, data is spliced through a pipe. Sockets are non-blocking and events edge-triggered, so a channel remembers whether
its source may be readable and its sink writable.
"""

from __future__ import annotations

import os
import select
import socket

from kproxy.modes.userspace.resources import PIPE_BYTES, ByteCounter, Pipe, Pipes

CHUNK = 16_384
SPLICES_AT_ONCE = 16  # before other connections are served
FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE

_read, _write, _splice = os.read, os.write, os.splice


class Channel:
    """The state of one direction.

    held: bytes that were read and not written yet. in_pipe: how many such bytes are in the pipe. readable, writable:
    false after the socket returned EAGAIN, until the loop reports it ready. ending: the epoll events of the source
    other than data (end, error, urgent mark). ended: the source has no more data. finished: the sink was shut down.
    queued: the loop will call `pump` again. counter: counts the bytes written.
    """

    __slots__ = (
        "counter", "ended", "ending", "finished", "held", "in_pipe", "pipe", "pipes", "queued", "readable", "sink",
        "source", "writable",
    )  # fmt: skip

    def __init__(self, source: int, sink: int, pipes: Pipes, counter: ByteCounter, readable: bool) -> None:
        self.source = source
        self.sink = sink
        self.pipes = pipes
        self.readable = readable
        self.writable = True
        self.ending = 0
        self.ended = self.finished = self.queued = False
        self.held = b""
        self.pipe: Pipe | None = None
        self.in_pipe = 0
        self.counter = counter

    def pump(self) -> bool:
        """Copy what can be copied now. Returns True if there may be more after other connections were served.

        If the last bytes are known to be the last, they are left in `held` for `send_last`. Raises OSError when one of
        the two sockets is broken.
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
                self.counter.bytes += sent
                if sent < len(held):
                    self.held = held[sent:]
                    self.writable = False
                    return False
                self.held = b""
                if sent == CHUNK:  # a full chunk came at once: expect more
                    self.pipe = self.pipes.take()
                    return True if self.pipe is None else self._splice(self.pipe)
            if not self.readable:
                return False
            self.fetch()
            if not self.held:
                return False

    def fetch(self) -> None:
        """Read into `held`, which must be empty. Raises OSError when the source is broken."""
        try:
            self.held = held = _read(self.source, CHUNK)
        except BlockingIOError:
            self.readable = False
            return
        if len(held) == CHUNK:
            return
        # A short read: nothing is left but perhaps the end, and later data causes a new event. That does not hold for
        # an error or a mark of urgent data, before which a read stops short.
        self.ended = not held or self.ending == select.EPOLLRDHUP
        self.readable = not self.ended and self.ending != 0

    def send_last(self, sink: socket.SocketType) -> bool:
        """Write `held` to `sink`, which is shut down next, in one packet with the end. Returns whether that is done."""
        try:
            sent = sink.send(self.held, socket.MSG_MORE)
        except BlockingIOError:
            sent = 0
        self.counter.bytes += sent
        self.held = self.held[sent:]
        self.writable = not self.held
        return self.writable

    def release(self) -> None:
        """Return the pipe, as the connection is over."""
        if self.pipe is not None:
            if self.in_pipe:
                self.pipes.discard(self.pipe)
            else:
                self.pipes.give(self.pipe)
            self.pipe = None

    def _splice(self, pipe: Pipe) -> bool:
        """Copy through the pipe, which is returned as soon as it is empty."""
        out, into = pipe
        for _ in range(SPLICES_AT_ONCE):
            if self.readable:
                try:
                    more = _splice(self.source, into, PIPE_BYTES, flags=FLAGS)
                except BlockingIOError:
                    # EAGAIN also means that the pipe is full.
                    if not self.in_pipe:
                        self.readable = False
                else:
                    self.in_pipe += more
                    if not more:
                        self.readable = False
                        self.ended = True
            if not self.in_pipe:
                self.pipes.give(pipe)
                self.pipe = None
                return False
            if not self.writable:
                return False
            try:
                sent = _splice(out, self.sink, self.in_pipe, flags=FLAGS)
            except BlockingIOError:
                self.writable = False
                return False
            self.in_pipe -= sent
            self.counter.bytes += sent
        return True
