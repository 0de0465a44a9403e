"""The control protocol between the daemon and its forwarder's workers. Pure.

Each message is MessagePack, preceded by its length in four bytes. The daemon sends requests, and a worker answers them
in order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from kproxy.model.plans import Family
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Statistics

LENGTH = struct.Struct("!I")
MAX_BYTES = 1 << 28
"""More than any message has: some 64 listeners with all their endpoints."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The forwarder's settings. All times are seconds.

    port_range: first and last proxy port (KubeProxyConfiguration.proxy_ports); (0, 0) lets the kernel choose.
    udp_idle_seconds: a UDP session ends after so long without a datagram. drain_seconds: how long connections may
    continue after their endpoint was removed or their listener closed. connect_seconds: timeouts of the first, second,
    ... endpoint that is tried for a connection. Later ones have the last timeout, and so has the only endpoint left to
    try, for which waiting is better than giving up. translated_only: refuse TCP connections that no portal rule
    redirected: the client connected to the proxy port itself and so bypassed the source ranges. descriptors: the most
    file descriptors to use, 0 for the process's limit. workers: number of processes, 0 for one per core but four at
    most. log_format, verbosity: as for kproxy.logs.setup.
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
    """Open or change a listener, or close it if `listener` is None.

    port: where to open it, 0 for any port. counter: index of its round-robin counter in the memory that all workers
    share.
    """

    key: ListenerKey
    listener: Listener | None
    port: int = 0
    counter: int = 0


class Update(msgspec.Struct, frozen=True, tag=True):
    """A request to change listeners, answered by Updated."""

    family: Family
    changes: list[Change]


class Count(msgspec.Struct, frozen=True, tag=True):
    """A request for the counters, answered by Counted."""


class Updated(msgspec.Struct, frozen=True, tag=True):
    """For each change, in order: the proxy port, the reason why there is none, or None if it was closed."""

    ports: list[int | str | None]


class Counted(msgspec.Struct, frozen=True, tag=True):
    statistics: Statistics


Request = Update | Count
Answer = Updated | Counted
requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)

T = TypeVar("T")


def encode(message: Request | Answer) -> bytes:
    """The bytes of `message`."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


class Messages(Generic[T]):
    """Splits a stream of bytes into messages."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        """The messages that DATA completes. Raises msgspec.MsgspecError for bytes that are not a message."""
        self._buffer += data
        while len(self._buffer) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._buffer)
            if size > MAX_BYTES:
                raise msgspec.DecodeError(f"a message of {size} bytes")
            if len(self._buffer) < LENGTH.size + size:
                return
            body = bytes(self._buffer[LENGTH.size : LENGTH.size + size])
            del self._buffer[: LENGTH.size + size]
            yield self._decoder.decode(body)
