"""UDP: a session for each client, with a socket of its own that is connected to its endpoint.

What the endpoint answers goes back from the very address that the client wrote to, as otherwise the kernel would not
know the answer for one to a translated packet.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import OrderedDict

from kproxy.modes.userspace.balancer import Balancer, Target
from kproxy.modes.userspace.common import DESCRIPTORS, NO_DESCRIPTOR, NO_ENDPOINT, RAW, Common
from kproxy.modes.userspace.loop import READ
from kproxy.modes.userspace.sockets import IP_PKTINFO

DATAGRAM = 65_536
BATCH = 64
KEPT_BYTES = 4096
"""A datagram up to this size is kept until the endpoint answers, to be sent to another should it refuse."""
CONTROL = socket.CMSG_SPACE(40)
SOCKET = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC

LOST = frozenset({errno.EAGAIN, errno.EMSGSIZE, errno.ENOBUFS})
"""The endpoint has nothing to do with these; the datagram is lost, as any may be."""

Ancillary = list[tuple[int, int, bytes]]
# IPv4: (address, port); IPv6: flow label and scope behind them.
Address = tuple[str, int] | tuple[str, int, int, int]


class Receiver:
    """The socket of one listener, and the sessions of its clients. Owns the socket."""

    def __init__(self, common: Common, receiving: socket.socket, balancer: Balancer) -> None:
        """receiving: bound, non-blocking, and telling the address that each datagram came to."""
        self.common = common
        self.balancer = balancer
        self.family = receiving.family
        self.port: int = receiving.getsockname()[1]
        self.listening = RAW(receiving.family, receiving.type, 0, receiving.detach())
        self.listening.setblocking(False)
        self._sessions: OrderedDict[tuple[Address, bytes], Session] = OrderedDict()
        """The one that had the last datagram comes last."""
        self._waiting = False
        common.loop.add(self.listening.fileno(), self, READ)

    def change(self, targets: tuple[Target, ...], affinity_seconds: float) -> None:
        """Lead to these from now on; sessions with others end."""
        self.balancer.change(targets, affinity_seconds)
        staying = frozenset(targets)
        for session in [s for s in self._sessions.values() if s.target not in staying]:
            session.close()

    def close(self) -> None:
        """End, with every session. The port is free when this returns."""
        self.change((), 0)
        self.common.loop.close(self.listening.detach())

    # ---- Handler

    def ready(self, fd: int, events: int) -> None:
        """Take some datagrams; the loop calls again while there are more."""
        receive, sessions = self.listening.recvmsg, self._sessions
        for _ in range(BATCH):
            try:
                data, ancillary, _flags, address = receive(DATAGRAM, CONTROL)
            except BlockingIOError:
                return
            except OSError:
                continue  # an error that an earlier answer met
            here = _here(ancillary)
            session = sessions.get((address, here))
            if session is None:
                session = self._open(address, here)
            if session is not None:
                session.forward(data)

    def abort(self) -> None:
        """The next event finds the listener as it was."""

    # ---- for sessions

    def touch(self, session: Session) -> None:
        """A datagram passed: its time begins anew."""
        session.used = self.common.loop.now
        self._sessions.move_to_end(session.name)

    def forget(self, session: Session) -> None:
        self._sessions.pop(session.name, None)

    # ---- inside

    def _open(self, address: Address, here: bytes) -> Session | None:
        common = self.common
        if common.descriptors.left < 1:
            self._refuse()
            return None
        session = Session(self, address, here)
        try:
            found = session.connect()
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR:
                raise
            self._refuse()
            return None
        if not found:
            return None
        self._sessions[session.name] = session
        session.used = common.loop.now
        common.counters.sessions += 1
        if not self._waiting:
            self._wait()
        return session

    def _refuse(self) -> None:
        self.common.counters.refused[DESCRIPTORS] += 1
        self.common.descriptors.tell("a UDP session")

    def _wait(self) -> None:
        """Until the session that was quiet for longest is due."""
        oldest = next(iter(self._sessions.values()), None)
        self._waiting = oldest is not None
        if oldest is not None:
            self.common.loop.at(oldest.used + self.common.settings.udp_idle_seconds, self._expire)

    def _expire(self) -> None:
        idle_since = self.common.loop.now - self.common.settings.udp_idle_seconds
        for session in list(self._sessions.values()):
            if session.used > idle_since:
                break
            session.close()
        self._wait()


def _here(ancillary: Ancillary) -> bytes:
    """The address that a datagram came to (and its interface where the address means nothing without it)."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            return data[8:12]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            return data[:20] if data[0] == 0xFE and data[1] & 0xC0 == 0x80 else data[:16]
    return b""


def _from_here(family: int, here: bytes) -> Ancillary:
    """What has the kernel send a datagram from that address."""
    if not here:
        return []
    if family == socket.AF_INET:
        return [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("@i4s4s", 0, here, bytes(4)))]
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, here.ljust(20, b"\0"))]


class Session:
    """One client's datagrams to one endpoint, and back."""

    __slots__ = ("_back", "_kept", "_receiver", "_socket", "_tried", "address", "name", "target", "used")

    def __init__(self, receiver: Receiver, address: Address, here: bytes) -> None:
        """here: what the kernel said of the address that the client wrote to."""
        self._receiver = receiver
        self.address = address
        self.name = address, here
        self.target: Target | None = None
        self.used = 0.0
        self._back = _from_here(receiver.family, here)
        self._tried: tuple[Target, ...] = ()
        self._kept: bytes | None = None
        self._socket: socket.SocketType | None = None

    def connect(self) -> bool:
        """Have a socket that leads to an endpoint; false when none is left. Raises OSError without a descriptor."""
        receiver = self._receiver
        common = receiver.common
        while (target := receiver.balancer.pick(self.address[0], common.loop.now, self._tried)) is not None:
            made = RAW(receiver.family, SOCKET)
            try:
                made.connect(target)
            except OSError:
                made.close()
                self._skip(target)
                continue
            self._socket, self.target = made, target
            common.descriptors.left -= 1
            common.loop.add(made.fileno(), self, READ)
            return True
        common.counters.refused[NO_ENDPOINT] += 1
        return False

    def forward(self, data: bytes) -> None:
        """A datagram from the client."""
        self._receiver.touch(self)
        self._kept = data if len(data) <= KEPT_BYTES else None
        self._send(data)

    def close(self) -> None:
        self._disconnect()
        self._receiver.forget(self)
        self._receiver.common.counters.sessions -= 1

    # ---- Handler

    def ready(self, fd: int, events: int) -> None:
        """The endpoint's answers, or its refusal."""
        receiver = self._receiver
        counters = receiver.common.counters
        for _ in range(BATCH):
            if self._socket is None:
                return
            try:
                data = self._socket.recv(DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                self._turn_to_next()
                if self._kept is not None:
                    self._send(self._kept)
                return
            receiver.touch(self)
            self._kept = None
            self._tried = ()
            counters.out.bytes += len(data)
            try:
                receiver.listening.sendmsg((data,), self._back, 0, self.address)
            except OSError:
                continue  # the client is out of reach: lost, as any datagram may be

    def abort(self) -> None:
        self.close()

    # ---- inside

    def _send(self, data: bytes) -> None:
        while self._socket is not None:
            try:
                self._receiver.common.counters.into.bytes += self._socket.send(data)
                return
            except OSError as error:
                if error.errno in LOST:
                    return
            self._turn_to_next()

    def _turn_to_next(self) -> None:
        """The endpoint does not want it. Without another one the session is over."""
        assert self.target is not None
        self._skip(self.target)
        self._disconnect()
        try:
            found = self.connect()
        except OSError:
            found = False
        if not found:
            self.close()

    def _skip(self, target: Target) -> None:
        self._tried = (*self._tried, target)
        self._receiver.common.counters.retries += 1

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._receiver.common.loop.leave(self._socket.detach())
            self._receiver.common.descriptors.left += 1
            self._socket = None
