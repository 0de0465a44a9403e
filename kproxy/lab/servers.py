"""The pods' TCP and UDP servers: one thread for all of them, with sockets in the pods' namespaces.

A TCP client gets one line of JSON that says who answers, and may then keep the connection: every line that it sends is
returned. A UDP datagram is answered by the same JSON.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import struct
import threading
from collections.abc import Iterable
from functools import partial

from kproxy.lab.namespaces import Namespace

BACKLOG = 64
NO_LINGER = struct.pack("ii", 1, 0)  # struct linger: close with a reset
MAX_CONNECTIONS = 1024


class Servers:
    """The TCP and UDP servers of all pods. Each starts with `add`; `close` ends them all."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._open: set[socket.socket] = set()
        self._hung_up = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="lab-servers", daemon=True)
        self._thread.start()

    def add(self, space: Namespace, pod: str, addresses: Iterable[str], ports: Iterable[int]) -> None:
        """Serve as `pod` on every one of `addresses` and `ports` in `space`, by TCP and UDP."""
        wanted = [(a, p) for a in addresses for p in ports]
        for listener, datagrams in space.call(lambda: [_listen(a, p) for a, p in wanted]):
            self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, listener, pod))
            self._selector.register(datagrams, selectors.EVENT_READ, partial(_answer_datagram, datagrams, pod))

    def hang_up(self) -> None:
        """Reset every connection, including those whose client has gone without the pod noticing.

        A new client with the source port of such a connection would otherwise have to try twice.
        """
        self._hung_up.clear()
        self._wake.send(b"x")
        self._hung_up.wait(10)

    def close(self) -> None:
        """Stop serving and close every connection."""
        self._wake.close()
        self._thread.join(timeout=10)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    if not self._woken.recv(1):
                        return
                    self._reset_all()
                    break  # other ready sockets may be closed now
                with contextlib.suppress(OSError):  # the client has gone
                    key.data()

    def _reset_all(self) -> None:
        for connection in list(self._open):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            self._drop(connection)
        self._hung_up.set()

    def _accept(self, listener: socket.socket, pod: str) -> None:
        connection, peer = listener.accept()
        connection.setblocking(False)
        if len(self._open) >= MAX_CONNECTIONS:
            connection.close()
            return
        self._open.add(connection)
        self._selector.register(connection, selectors.EVENT_READ, partial(self._echo, connection))
        try:
            connection.sendall(_introduction(pod, peer, connection.getsockname()))
        except OSError:
            self._drop(connection)

    def _echo(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(4096)
            if data:
                connection.sendall(data)
                return
        except OSError:
            pass
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self._open.discard(connection)
        connection.close()


def _listen(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(BACKLOG)
    datagrams = socket.socket(family, socket.SOCK_DGRAM)
    datagrams.bind((address, port))
    for each in (listener, datagrams):
        each.setblocking(False)
    return listener, datagrams


def _answer_datagram(datagrams: socket.socket, pod: str) -> None:
    _, peer = datagrams.recvfrom(4096)
    datagrams.sendto(_introduction(pod, peer, datagrams.getsockname()), peer)


def _introduction(pod: str, peer: tuple[str, int], own: tuple[str, int]) -> bytes:
    who = {"pod": pod, "source": peer[0], "source_port": peer[1], "reached": own[0], "reached_port": own[1]}
    return json.dumps(who).encode() + b"\n"
