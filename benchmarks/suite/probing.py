"""The client and the endpoints in one: connections that are opened, and where they end, seen by the same thread.

A connection is made by the kernel before anybody accepts it, and in the same breath where it passes no process on its
way. So an attempt costs some ten system calls and waits for nobody, and a change is noticed within a fraction of a
millisecond without taking a processor from the proxy.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import TracebackType

from benchmarks.suite.network import SERVICE_PORT, TARGET_PORT, World

REFUSED = "refused"
DROPPED = "dropped"
SILENT = 3  # attempts in a row without an outcome are a drop: a single one may have waited for a processor
BACKLOG = 4096
ONE_ATTEMPT = 0.05  # seconds
LOOK_UP = 0.1  # seconds between two looks at whether waiting still makes sense
NO_LINGER = struct.pack("ii", 1, 0)  # struct linger: closing resets the connection, and nobody remembers it
NOBODY = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH}


class Prober:
    """As a context: while it lasts, every endpoint of the world takes connections. For one thread at a time."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __enter__(self) -> Prober:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.close()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let others be the endpoints for a while."""
        self._listener.close()
        try:
            yield
        finally:
            self._open()

    def await_proof(
        self, address: str, proof: Collection[str], end: float, pause: float, check: Callable[[], None]
    ) -> float:
        """Ask ADDRESS until the outcome is in PROOF: endpoints' addresses, REFUSED or DROPPED; when that was, in
        monotonic seconds. That of a drop is when the first of the attempts began that nobody answered.

        end: raises TimeoutError then. pause: seconds between attempts. check: called now and then, may raise.
        """
        return self._world.client.call(self._await, address, proof, end, pause, check)

    def _open(self) -> None:
        self._listener = self._world.pods.call(_listen)

    def _await(
        self, address: str, proof: Collection[str], end: float, pause: float, check: Callable[[], None]
    ) -> float:
        look, silent, since = time.monotonic() + LOOK_UP, 0, 0.0
        while True:
            began = time.monotonic()
            outcome, now = self.attempt(address), time.monotonic()
            if outcome in proof:
                return now
            silent, since = (0, 0.0) if outcome else (silent + 1, since or began)
            if silent >= SILENT and DROPPED in proof:
                return since
            if now > end:
                raise TimeoutError(f"{address} led to {outcome or 'nothing'} and not to {' or '.join(proof)}")
            if now > look:
                check()
                look = now + LOOK_UP
            time.sleep(pause)

    def attempt(self, address: str) -> str:
        """One connection to a Service, from the client's namespace, where the caller has to be.

        The endpoint's address; REFUSED; "" when nothing came of it in time.
        """
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            client.connect_ex((address, SERVICE_PORT))
            return self._accepted() or self._waited(client)

    def _waited(self, client: socket.socket) -> str:
        """What comes of a connection that takes its time: a refusal, or a process that hands it on."""
        waiting = select.poll()
        waiting.register(client, 0)  # errors only
        waiting.register(self._listener, select.POLLIN)
        for number, _ in waiting.poll(ONE_ATTEMPT * 1000):
            if number == self._listener.fileno():
                return self._accepted()
            return REFUSED if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in NOBODY else ""
        return ""

    def _accepted(self) -> str:
        """Where the newest connection ended; older ones, of attempts that were given up, are thrown away."""
        found = ""
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return found
            except ConnectionAbortedError:
                continue
            with connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
                found = str(connection.getsockname()[0])


def _listen() -> socket.socket:
    listener = socket.create_server(("", TARGET_PORT), backlog=BACKLOG)
    listener.setblocking(False)
    return listener
