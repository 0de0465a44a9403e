"""A TCP connection: a client, an endpoint that answers, and a flow in each direction.

A connection costs as few system calls as can be: what the client sent is given to the endpoint before anybody waits
for anything, the loop is told to watch for room to write only when there was none, and an end is passed on a round
later, as by then the connection is often over and closing says it all.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from functools import partial
from typing import Protocol

from kproxy.modes.userspace.balancer import Balancer, Target
from kproxy.modes.userspace.common import DESCRIPTORS, NO_DESCRIPTOR, NO_ENDPOINT, RAW, Common
from kproxy.modes.userspace.flows import Flow
from kproxy.modes.userspace.loop import EDGE, ENDED, READ, WRITE, Waiter

STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
TCP = socket.IPPROTO_TCP
NODELAY, QUICKACK = socket.TCP_NODELAY, socket.TCP_QUICKACK
AT_ONCE = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing resets."""
SO_ORIGINAL_DST = 80  # include/uapi/linux/netfilter_ipv4.h; IPv6's has the same number
WATCHED = READ | ENDED | EDGE
GOING_ON = frozenset({0, errno.EINPROGRESS})
# What breaks a connection that stood; everything else that befalls one that did not stand yet means: try another.
BROKE = frozenset({errno.ECONNRESET, errno.EPIPE})
CLIENT, SERVER = 1, 2


class Place:
    """The connections of one listener to one endpoint. leaving: when they are cut off, 0.0 while it stays."""

    __slots__ = ("leaving", "relays", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.relays: set[Relay] = set()
        self.leaving = 0.0


class Owner(Protocol):
    """The listener that a connection came to."""

    common: Common
    balancer: Balancer
    family: socket.AddressFamily
    port: int

    def place(self, target: Target) -> Place:
        """Where connections to TARGET are kept."""


class Relay:
    """connecting: no byte has passed between endpoint and us, so that the endpoint may never have answered.

    watching: which sides are watched for room to write. waiting: where the time is kept that the endpoint has.
    """

    __slots__ = (
        "address", "client", "connecting", "down", "over", "owner", "place", "server", "socket", "tried", "up",
        "waiting", "watching",
    )  # fmt: skip

    def __init__(self, owner: Owner, client: int, address: str) -> None:
        """client: a non-blocking descriptor, ours from now on. address: the client's."""
        common = owner.common
        self.owner = owner
        self.client = client
        self.address = address
        self.over = False
        self.connecting = True
        self.tried: tuple[Target, ...] = ()
        self.watching = 0
        self.server = -1
        self.place: Place | None = None
        self.waiting: dict[Waiter, float] | None = None
        self.up = Flow(client, -1, common.pipes, common.counters.into, True)
        self.down = Flow(-1, client, common.pipes, common.counters.out, False)
        common.descriptors.left -= 2
        common.counters.connections += 1

    def start(self) -> None:
        """Find it an endpoint. Raises OSError when the loop cannot watch any more descriptors."""
        common = self.owner.common
        if common.settings.translated_only and not self._translated():
            self._give_up("not-translated")
            return
        try:
            self.up.fetch()
        except OSError:
            self.abort()
            return
        if self._connect():
            common.loop.add(self.client, self, WATCHED | WRITE if self.watching & CLIENT else WATCHED)

    # ---- Handler

    def ready(self, fd: int, events: int) -> None:
        if fd == self.client:
            into, out = self.up, self.down
        else:
            into, out = self.down, self.up
        try:
            if events & WRITE and not out.writable:
                out.writable = True
                if not out.queued:
                    self._pump(out)
            ended = events & ENDED
            if ended:
                into.ending = ended
            if (ended or events & READ) and not self.over:
                into.readable = True
                if not into.queued:
                    self._pump(into)
        except OSError as error:
            self._failed(error)

    def abort(self) -> None:
        """Reset both sides."""
        if self.over:
            return
        if self.server >= 0:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        client = self._client()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        client.detach()
        self._close()

    # ---- connecting

    def _connect(self) -> bool:
        """Try endpoints until one takes the connection or may yet do so; false when none is left."""
        owner = self.owner
        loop, pick = owner.common.loop, owner.balancer.pick
        while (target := pick(self.address, loop.now, self.tried)) is not None:
            try:
                server = RAW(owner.family, STREAM)
            except OSError as error:
                owner.common.descriptors.tell("a TCP connection")
                self._give_up(DESCRIPTORS if error.errno in NO_DESCRIPTOR else NO_ENDPOINT)
                return False
            self._take(server, owner.place(target))
            try:
                if server.connect_ex(target) in GOING_ON:
                    self._pump(self.up)
                    if self.over:
                        return False
                    loop.add(self.server, self, WATCHED | WRITE if self.watching & SERVER else WATCHED)
                    if self.connecting:
                        self._wait()
                    return True
            except OSError as error:
                if error.errno in BROKE:
                    self.abort()
                    return False
            self._leave_endpoint()
        self._give_up(NO_ENDPOINT)
        return False

    def _take(self, server: socket.SocketType, place: Place) -> None:
        """SERVER is going to be connected to PLACE's endpoint."""
        up = self.up
        server.setsockopt(TCP, NODELAY, 1)
        if up.held:  # it goes along with the last packet of the handshake, which would else go alone
            server.setsockopt(TCP, QUICKACK, 0)
        self.socket = server
        self.server = self.down.source = up.sink = server.fileno()
        up.writable = True
        self.place = place
        place.relays.add(self)

    def _wait(self) -> None:
        """Give the endpoint the time that it may take."""
        owner, attempt = self.owner, len(self.tried)
        seconds = owner.common.settings.connect_seconds
        last = attempt + 1 >= min(len(seconds), len(owner.balancer.targets))
        self.waiting = queue = owner.common.loop.waiting(seconds[-1] if last else seconds[attempt])
        queue[self] = owner.common.loop.now

    def overdue(self) -> None:
        """The time is over."""
        self.waiting = None
        if not self._connected():
            self._leave_endpoint()
            self._connect()

    def _connected(self) -> bool:
        """Ask the kernel whether the endpoint has answered."""
        try:
            self.socket.getpeername()
        except OSError:
            return False
        self._stands()
        return True

    def _stands(self) -> None:
        self.connecting = False
        if self.waiting is not None:
            self.waiting.pop(self, None)
            self.waiting = None

    def _leave_endpoint(self) -> None:
        """This endpoint is none for this connection."""
        assert self.place is not None
        common = self.owner.common
        common.counters.retries += 1
        self.place.relays.discard(self)
        self.tried = (*self.tried, self.place.target)
        common.loop.leave(self.socket.detach())
        self.server = -1
        self.watching &= ~SERVER
        self.down.ending = 0
        self.down.readable = False
        if self.waiting is not None:
            self.waiting.pop(self, None)
            self.waiting = None

    def _give_up(self, reason: str) -> None:
        self.owner.common.counters.refused[reason] += 1
        self.abort()

    def _translated(self) -> bool:
        """Whether a rule led the client here, so that it did not name the proxy port itself."""
        client, family = self._client(), self.owner.family
        level = socket.IPPROTO_IP if family == socket.AF_INET else socket.IPPROTO_IPV6
        try:
            original = client.getsockopt(level, SO_ORIGINAL_DST, 28)
            # struct sockaddr_in: family, port, address; sockaddr_in6 has the flow label before the address.
            if struct.unpack_from("!H", original, 2)[0] != self.owner.port:
                return True
            here = socket.inet_pton(family, client.getsockname()[0])
            return here not in (original[4:8], original[8:24])
        except OSError:
            return False
        finally:
            client.detach()

    # ---- carrying

    def _pump(self, flow: Flow) -> None:
        """Move what can be moved, and see to what follows from it. Raises OSError when a side is broken."""
        before = flow.meter.bytes
        more = flow.pump()
        if flow.held and flow.ended and flow.writable:
            self._say_last(flow)
        if self.connecting and flow.meter.bytes > before:
            self._stands()
        if more:
            flow.queued = True
            self.owner.common.loop.again(partial(self._again, flow))
        elif not flow.writable:
            self._watch(CLIENT if flow is self.down else SERVER)
        elif flow.ended and not flow.finished and not flow.held and not flow.level:
            flow.finished = True
            if self.up.finished and self.down.finished:
                self._close()
            else:
                self.owner.common.loop.again(partial(self._finish, flow))

    def _say_last(self, flow: Flow) -> None:
        other, sink = (self.down, self.socket) if flow is self.up else (self.up, self._client())
        try:
            if flow.say_last(sink):
                flow.finished = True
                if not other.finished:
                    sink.shutdown(socket.SHUT_WR)
        finally:
            if flow is self.down:
                sink.detach()
        if flow.finished and other.finished:
            self._close()

    def _again(self, flow: Flow) -> None:
        flow.queued = False
        if not self.over:
            try:
                self._pump(flow)
            except OSError as error:
                self._failed(error)

    def _watch(self, side: int) -> None:
        """Have the loop tell when SIDE has room again."""
        if not self.watching & side:
            self.watching |= side
            fd = self.client if side == CLIENT else self.server
            with suppress(FileNotFoundError):  # it is not watched at all yet, and will be for this too
                self.owner.common.loop.modify(fd, WATCHED | WRITE)

    def _finish(self, flow: Flow) -> None:
        """Tell the sink that nothing more comes, if the connection still stands."""
        if self.over:
            return
        if flow is self.down:
            client = self._client()
            with suppress(OSError):  # it was reset, which the loop tells as well
                client.shutdown(socket.SHUT_WR)
            client.detach()
        elif self.connecting and not self._connected():
            flow.finished = flow.writable = False
            self._watch(SERVER)
        else:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def _failed(self, error: OSError) -> None:
        if self.over:
            return
        if self.connecting and error.errno not in BROKE:
            self._leave_endpoint()
            self._connect()
        else:
            self.abort()

    def _client(self) -> socket.SocketType:
        """The client's descriptor as a socket, to be detached again."""
        return RAW(self.owner.family, socket.SOCK_STREAM, 0, self.client)

    def _close(self) -> None:
        common = self.owner.common
        self.over = True
        common.loop.leave(self.client)
        if self.server >= 0:
            common.loop.leave(self.socket.detach())
        if self.place is not None:
            self.place.relays.discard(self)
        if self.waiting is not None:
            self.waiting.pop(self, None)
        if self.up.pipe is not None:
            self.up.release()
        if self.down.pipe is not None:
            self.down.release()
        common.descriptors.left += 2
        common.counters.connections -= 1
