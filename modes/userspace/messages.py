"""What the daemon and its forwarder process say to each other, and how it lies on the wire. Pure.

Each message is MessagePack behind its length in four bytes. The daemon asks and the process answers, in order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from kproxy.model.plans import Family
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Statistics

LENGTH = struct.Struct("!I")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the forwarder works. All times are seconds.

    port_range: the first and the last proxy port (KubeProxyConfiguration.proxy_ports); (0, 0) lets the kernel choose.
    udp_idle_seconds: a UDP session ends when no datagram passed for that long (the
    original's default). drain_seconds: how long connections to an endpoint that left, or of a listener that was
    closed, may go on. connect_seconds: how long the first, second, ... endpoint tried for a connection may take to
    answer; later ones have as long as the last of them, and so has the only endpoint that is left to try, for which
    waiting is better than giving up. translated_only: refuse TCP connections whose destination no portal rule changed:
    somebody connected to the proxy port itself, past the rules' source ranges. descriptors: use no more file
    descriptors than that, 0 for what a process may have. workers: processes that share the work, 0 for one a core,
    but no more than four. log_format, verbosity: as kproxy.logs.setup.
    """

    port_range: tuple[int, int] = (0, 0)
    udp_idle_seconds: float = 0.25
    drain_seconds: float = 60.0
    connect_seconds: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    translated_only: bool = False
    descriptors: int = 0
    workers: int = 0
    log_format: str = "text"
    verbosity: int = 0


class Change(msgspec.Struct, frozen=True, array_like=True):
    """Make this listener so, or close it where `listener` is None.

    port: where it is to listen when it does not yet, 0 for a port of its own choice. turn: the place of its turn in
    the memory that all workers share.
    """

    key: ListenerKey
    listener: Listener | None
    port: int = 0
    turn: int = 0


class Update(msgspec.Struct, frozen=True, tag=True):
    """Answered by Updated."""

    family: Family
    changes: list[Change]


class Count(msgspec.Struct, frozen=True, tag=True):
    """Answered by Counted."""


class Updated(msgspec.Struct, frozen=True, tag=True):
    """For each change, in order: the proxy port, why there is none, or None where it was closed."""

    ports: list[int | str | None]


class Counted(msgspec.Struct, frozen=True, tag=True):
    statistics: Statistics


Request = Update | Count
Answer = Updated | Counted
Ask = msgspec.msgpack.Decoder(Request)

T = TypeVar("T")


def packed(message: Request | Answer) -> bytes:
    """MESSAGE as it goes over the wire."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


class Messages(Generic[T]):
    """Cuts a stream of bytes into messages."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decoder = decoder
        self._left = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        """The messages that are complete with DATA. Raises msgspec.MsgspecError for one that is none."""
        self._left += data
        while len(self._left) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._left)
            if len(self._left) < LENGTH.size + size:
                return
            body = bytes(self._left[LENGTH.size : LENGTH.size + size])
            del self._left[: LENGTH.size + size]
            yield self._decoder.decode(body)
