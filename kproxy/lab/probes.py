"""Client connections: one connection or datagram each, with its outcome as a value.

Every function makes its socket in the calling thread, so call it through Namespace.call or submit. All times are
seconds.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import select
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Answered:
    """The result of a probe that a pod answered.

    pod: the name of the pod that answered. source, source_port: the client's address as the pod saw it. reached,
    reached_port: the pod's own address.
    """

    pod: str
    source: str
    source_port: int
    reached: str
    reached_port: int


class Nothing(Enum):
    """The result of a probe that nobody answered: how the attempt ended."""

    REFUSED = "refused"
    TIMED_OUT = "timed out"
    UNREACHABLE = "unreachable"
    CUT = "cut off"


Outcome = Answered | Nothing


Ask = Callable[[str, int, float, str], Outcome]
"""`tcp` or `udp`: address, port, timeout, the client's own address."""

REFUSALS = {errno.ECONNREFUSED}
NO_LINGER = struct.pack("ii", 1, 0)  # struct linger
REASON_MS = 200  # a busy host may be that slow to hand an ICMP error to itself
NO_WAY = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM, 0}


def tcp(ip: str, port: int, timeout: float = 2, source: str = "") -> Outcome:
    """Connect and read the answer. source: the client's own address, "" for any."""
    try:
        with _stream(ip, port, timeout, source) as connection:
            return _read(connection)
    except OSError as error:
        return _nothing(error)


def udp(ip: str, port: int, timeout: float = 2, source: str = "") -> Outcome:
    """Send one datagram from a new source port and read the answer."""
    with udp_client(ip, port, source) as client:
        return client.ask(timeout)


@dataclass(slots=True)
class UdpClient:
    """A client that keeps its source port, so that all its datagrams are one flow to connection tracking."""

    socket: socket.socket

    def ask(self, timeout: float = 2) -> Outcome:
        """Send one datagram and read one answer. A refusal of an earlier datagram counts as this one's."""
        self.socket.settimeout(timeout)
        try:
            self.socket.send(b"who\n")
            return _introduced(self.socket.recv(4096))
        except PermissionError:
            # A rule refuses the packet on this very host: the send fails, and the socket may get the reason.
            waiter = select.poll()
            waiter.register(self.socket, 0)  # errors are always reported
            waiter.poll(REASON_MS)
            return _nothing(OSError(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), ""))
        except OSError as error:
            return _nothing(error)


@contextlib.contextmanager
def udp_client(ip: str, port: int, source: str = "") -> Iterator[UdpClient]:
    """A UdpClient of one address and port, closed at the end."""
    with socket.socket(_family(ip), socket.SOCK_DGRAM) as own:
        if source:
            own.bind((source, 0))
        own.connect((ip, port))
        yield UdpClient(own)


class Held:
    """A TCP connection that stays open. first: the answer when it was opened."""

    def __init__(self, ip: str, port: int, timeout: float = 2, source: str = "") -> None:
        """Raises OSError when it cannot connect."""
        self._socket = _stream(ip, port, timeout, source)
        self.first = _read(self._socket)

    def alive(self, timeout: float = 2) -> bool:
        """Whether a line that is sent comes back."""
        return self.failure(timeout) is None

    def failure(self, timeout: float = 2) -> Nothing | None:
        """Send a line. Returns how that failed, None if the line came back."""
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(b"still there?\n")
            return None if self._socket.recv(4096).endswith(b"\n") else Nothing.CUT
        except OSError as error:
            return _nothing(error)

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Close with a reset, which connection tracking forgets within seconds instead of minutes."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self._socket.close()


def http_status(ip: str, port: int, path: str = "/", timeout: float = 2) -> tuple[int, dict[str, str], str]:
    """GET `path`: status, headers (names in lower case) and body; status 0 when nothing answers."""
    connection = http.client.HTTPConnection(ip, port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read().decode()
    except OSError:
        return 0, {}, ""
    finally:
        connection.close()


def _stream(ip: str, port: int, timeout: float, source: str) -> socket.socket:
    return socket.create_connection((ip, port), timeout, (source, 0) if source else None)


def _read(connection: socket.socket) -> Outcome:
    data = b""
    while not data.endswith(b"\n"):
        chunk = connection.recv(4096)
        if not chunk:
            return Nothing.CUT
        data += chunk
    return _introduced(data)


def _introduced(data: bytes) -> Answered:
    return Answered(**json.loads(data))


def _nothing(error: OSError) -> Nothing:
    if isinstance(error, TimeoutError):
        return Nothing.TIMED_OUT
    if error.errno in REFUSALS:
        return Nothing.REFUSED
    if error.errno in NO_WAY:
        return Nothing.UNREACHABLE
    return Nothing.CUT


def _family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET
