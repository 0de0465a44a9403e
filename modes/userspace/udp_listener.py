"""A UDP listener on a proxy port: a session per client, each with a socket connected to its endpoint.

An endpoint's answer is sent from the address that the client wrote to. From any other, connection tracking would not
recognise it as an answer to a translated packet.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import OrderedDict

from kproxy.modes.userspace.balancer import Balancer, Target
from kproxy.modes.userspace.event_loop import READ
from kproxy.modes.userspace.resources import DESCRIPTORS, NO_DESCRIPTOR, NO_ENDPOINT, RAW, Resources
from kproxy.modes.userspace.sockets import IP_PKTINFO

DATAGRAM = 65_536
BATCH = 64
KEPT_BYTES = 4096
"""A datagram up to this size is kept until the endpoint answers, to be sent to another endpoint if it refuses."""
CONTROL = socket.CMSG_SPACE(40)
SOCKET = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC

DATAGRAM_LOST = frozenset({errno.EAGAIN, errno.EMSGSIZE, errno.ENOBUFS})
"""Errors that say nothing of the endpoint; the datagram is lost, as any may be."""

Ancillary = list[tuple[int, int, bytes]]
# (address, port); with IPv6 also flow label and scope.
Address = tuple[str, int] | tuple[str, int, int, int]


class UdpListener:
    """One bound socket and the sessions of its clients. Owns the socket."""

    def __init__(self, resources: Resources, receiving: socket.socket, balancer: Balancer) -> None:
        """receiving: bound, non-blocking, and with IP_PKTINFO, so that each datagram comes with its destination."""
        self.resources = resources
        self.balancer = balancer
        self.family = receiving.family
        self.port: int = receiving.getsockname()[1]
        self.listening = RAW(receiving.family, receiving.type, 0, receiving.detach())
        self.listening.setblocking(False)
        self._sessions: OrderedDict[tuple[Address, bytes], Session] = OrderedDict()
        """Ordered by their last datagram, the latest last."""
        self._timer_set = False
        resources.loop.add(self.listening.fileno(), self, READ)

    def change(self, targets: tuple[Target, ...], affinity_seconds: float) -> None:
        """Forward to these endpoints from now on; sessions with others end."""
        self.balancer.change(targets, affinity_seconds)
        staying = frozenset(targets)
        for session in [s for s in self._sessions.values() if s.target not in staying]:
            session.close()

    def close(self) -> None:
        """End every session and close. The port is free when this returns."""
        self.change((), 0)
        self.resources.loop.close(self.listening.detach())

    # ---- Handler

    def ready(self, fd: int, events: int) -> None:
        """Receive some datagrams; the loop calls again while there are more."""
        receive, sessions = self.listening.recvmsg, self._sessions
        for _ in range(BATCH):
            try:
                data, ancillary, _flags, address = receive(DATAGRAM, CONTROL)
            except BlockingIOError:
                return
            except OSError:
                continue  # the error of an answer sent earlier
            session = None
            try:
                here = _destination(ancillary)
                session = sessions.get((address, here))
                if session is None:
                    session = self._open(address, here)
                if session is not None:
                    session.forward(data)
            except Exception as error:
                self.resources.loop.failed(error, session or self)

    def abort(self) -> None:
        """Do nothing: the listener goes on with the next event."""

    # ---- for sessions

    def touch(self, session: Session) -> None:
        """Restart the idle time of `session`, as a datagram passed."""
        session.used = self.resources.loop.now
        self._sessions.move_to_end(session.name)

    def forget(self, session: Session) -> bool:
        """Remove `session`; returns whether it was known."""
        return self._sessions.pop(session.name, None) is not None

    # ---- inside

    def _open(self, address: Address, here: bytes) -> Session | None:
        resources = self.resources
        if resources.descriptors.left < 1:
            self._refuse()
            return None
        session = Session(self, address, here)
        try:
            found = session.connect()
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR:
                session.close()
                raise
            self._refuse()
            return None
        if not found:
            return None
        self._sessions[session.name] = session
        session.used = resources.loop.now
        resources.counters.sessions += 1
        if not self._timer_set:
            self._set_timer()
        return session

    def _refuse(self) -> None:
        self.resources.counters.refused[DESCRIPTORS] += 1
        self.resources.descriptors.report("a UDP session")

    def _set_timer(self) -> None:
        """Call `_expire` when the session that has been idle for longest is due."""
        oldest = next(iter(self._sessions.values()), None)
        self._timer_set = oldest is not None
        if oldest is not None:
            self.resources.loop.at(oldest.used + self.resources.settings.udp_idle_seconds, self._expire, self)

    def _expire(self) -> None:
        idle_since = self.resources.loop.now - self.resources.settings.udp_idle_seconds
        try:
            for session in list(self._sessions.values()):
                if session.used > idle_since:
                    break
                session.close()
        finally:
            self._set_timer()


def _destination(ancillary: Ancillary) -> bytes:
    """The address that a datagram was sent to, with its interface if it is a link-local one."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            return data[8:12]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            return data[:20] if data[0] == 0xFE and data[1] & 0xC0 == 0x80 else data[:16]
    return b""


def _source(family: int, here: bytes) -> Ancillary:
    """The ancillary data that makes the kernel send a datagram from that address."""
    if not here:
        return []
    if family == socket.AF_INET:
        return [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("@i4s4s", 0, here, bytes(4)))]
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, here.ljust(20, b"\0"))]


class Session:
    """One client's datagrams to one endpoint, and back."""

    __slots__ = ("_back", "_kept", "_listener", "_socket", "_tried", "address", "name", "target", "used")

    def __init__(self, listener: UdpListener, address: Address, here: bytes) -> None:
        """here: the address that the client wrote to, as `_destination` returns it."""
        self._listener = listener
        self.address = address
        self.name = address, here
        self.target: Target | None = None
        self.used = 0.0
        self._back = _source(listener.family, here)
        self._tried: tuple[Target, ...] = ()
        self._kept: bytes | None = None
        self._socket: socket.SocketType | None = None

    def connect(self) -> bool:
        """Connect a socket to an endpoint. Returns False when none is left; raises OSError without a descriptor."""
        listener = self._listener
        resources = listener.resources
        while (target := listener.balancer.pick(self.address[0], resources.loop.now, self._tried)) is not None:
            made = RAW(listener.family, SOCKET)
            try:
                made.connect(target)
            except OSError:
                made.close()
                self._skip(target)
                continue
            self._socket, self.target = made, target
            resources.descriptors.left -= 1
            resources.loop.add(made.fileno(), self, READ)
            return True
        resources.counters.refused[NO_ENDPOINT] += 1
        return False

    def forward(self, data: bytes) -> None:
        """Send a datagram of the client to the endpoint."""
        self._listener.touch(self)
        self._kept = data if len(data) <= KEPT_BYTES else None
        self._send(data)

    def close(self) -> None:
        """End the session. May be called again."""
        if self._listener.forget(self):
            self._listener.resources.counters.sessions -= 1
        self._disconnect()

    # ---- Handler

    def ready(self, fd: int, events: int) -> None:
        """Take the endpoint's answers, or its refusal."""
        listener = self._listener
        counters = listener.resources.counters
        for _ in range(BATCH):
            if self._socket is None:
                return
            try:
                data = self._socket.recv(DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                self._try_next()
                if self._kept is not None:
                    self._send(self._kept)
                return
            listener.touch(self)
            self._kept = None
            self._tried = ()
            counters.out.bytes += len(data)
            try:
                listener.listening.sendmsg((data,), self._back, 0, self.address)
            except OSError:
                continue  # the client cannot be reached; the datagram is lost, as any may be

    def abort(self) -> None:
        self.close()

    # ---- inside

    def _send(self, data: bytes) -> None:
        while self._socket is not None:
            try:
                self._listener.resources.counters.into.bytes += self._socket.send(data)
                return
            except OSError as error:
                if error.errno in DATAGRAM_LOST:
                    return
            self._try_next()

    def _try_next(self) -> None:
        """Replace the endpoint, which refused. Without another one the session ends."""
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
        self._listener.resources.counters.retries += 1

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._listener.resources.loop.close_later(self._socket.detach())
            self._listener.resources.descriptors.left += 1
            self._socket = None
