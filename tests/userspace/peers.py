"""Endpoints and clients on loopback for the forwarder's tests, and the forwarder itself with one Service port."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from kproxy.model.plans import Endpoint, Family, PortKey, Protocol
from kproxy.modes.userspace.forwarder import ForwarderProcess
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Reach
from kproxy.modes.userspace.messages import Settings

WEB = ListenerKey(PortKey("default", "web", "", Protocol.TCP), Reach.CLUSTER)
DNS = ListenerKey(PortKey("default", "dns", "", Protocol.UDP), Reach.CLUSTER)
LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
NUMBER = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
PATIENCE = 10.0

Serve = Callable[[socket.socket], None]


def eventually(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether `condition` becomes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def exactly(connection: socket.socket, size: int) -> bytes:
    """The next `size` bytes, or fewer at the end of the stream."""
    got = bytearray()
    while len(got) < size and (data := connection.recv(size - len(got))):
        got += data
    return bytes(got)


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65_536):
        connection.sendall(data)


def say(text: bytes) -> Serve:
    return lambda connection: connection.sendall(text)


@contextlib.contextmanager
def endpoint(serve: Serve, ip: str = "127.0.0.1", port: int = 0) -> Iterator[Endpoint]:
    """A TCP server that gives each connection to `serve`, and closes it when that is done."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.create_server((ip, port), family=family, backlog=512) as listening:

        def one(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(PATIENCE)
                serve(connection)

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=one, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield Endpoint(ip, listening.getsockname()[1])
        finally:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


@contextlib.contextmanager
def datagrams(answer: Callable[[bytes], bytes | None], ip: str = "127.0.0.1", port: int = 0) -> Iterator[Endpoint]:
    """A UDP server that answers each datagram with what `answer` makes of it, if anything."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as receiving:
        receiving.bind((ip, port))
        receiving.settimeout(0.02)
        over = threading.Event()

        def run() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    data, client = receiving.recvfrom(65_536)
                    if (reply := answer(data)) is not None:
                        receiving.sendto(reply, client)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield Endpoint(ip, receiving.getsockname()[1])
        finally:
            over.set()
            thread.join(PATIENCE)


def free_port(ip: str = "127.0.0.1", kind: int = socket.SOCK_STREAM) -> Endpoint:
    """An endpoint where nobody listens."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, kind) as chosen:
        chosen.bind((ip, 0))
        return Endpoint(ip, chosen.getsockname()[1])


@dataclass
class Port:
    """One listener of a forwarder."""

    forwarder: ForwarderProcess
    family: Family
    key: ListenerKey
    number: int = 0

    def lead_to(self, *endpoints: Endpoint, affinity: int = 0) -> Port:
        answer = self.forwarder.update(self.family, {self.key: Listener(self.family, endpoints, affinity)})[self.key]
        assert isinstance(answer, int), answer
        self.number = answer
        return self

    def alive(self) -> bool:
        return self.forwarder.alive(self.family)

    def close(self) -> None:
        assert self.forwarder.update(self.family, {self.key: None}) == {}

    def connect(self, source: str = "", seconds: float = PATIENCE) -> socket.socket:
        return socket.create_connection(
            (LOOPBACK[self.family], self.number), seconds, source_address=(source, 0) if source else None
        )

    def fetch(self, source: str = "") -> bytes:
        """All that one connection says."""
        with self.connect(source) as connection:
            return read_all(connection)


@contextlib.contextmanager
def forwarding(
    *endpoints: Endpoint,
    settings: Settings | None = None,
    affinity: int = 0,
    family: Family = Family.IPV4,
    key: ListenerKey = WEB,
) -> Iterator[Port]:
    """A forwarder with one listener that leads to `endpoints`."""
    forwarder = ForwarderProcess(settings)
    try:
        yield Port(forwarder, family, key).lead_to(*endpoints, affinity=affinity)
    finally:
        forwarder.close()


@contextlib.contextmanager
def named(count: int, ip: str = "127.0.0.1") -> Iterator[Sequence[Endpoint]]:
    """COUNT endpoints that say "0", "1", ... and close."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(endpoint(say(str(i).encode()), ip)) for i in range(count)]


def was_reset(connection: socket.socket) -> bool:
    """Whether the stream ends with a reset rather than in order."""
    try:
        read_all(connection)
    except ConnectionResetError:
        return True
    return False


def is_refused(port: Port) -> bool:
    """Whether a connection is reset, be it before or after connect(2) returns."""
    try:
        with port.connect() as client:
            return was_reset(client)
    except ConnectionResetError:
        return True


def leave_no_descriptor(pid: int) -> None:
    """Lower the limit of a process to what it uses now."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    lowest = next(number for number in count() if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def restore_descriptors(pid: int) -> None:
    """Take that back."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
