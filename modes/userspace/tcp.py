"""TCP: connections taken on a proxy port, and each carried to an endpoint that answers.

A connection costs as few system calls as can be: what the client sent is given to the endpoint before anybody waits
for anything, and the loop is told to watch for room to write only when there was none.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import suppress
from functools import partial

from kproxy import logs
from kproxy.modes.userspace.balancer import Balancer, Target
from kproxy.modes.userspace.counters import DESCRIPTORS, NO_ENDPOINT, Counters
from kproxy.modes.userspace.descriptors import Descriptors
from kproxy.modes.userspace.flows import Flow
from kproxy.modes.userspace.loop import EDGE, ENDED, READ, WRITE, Loop
from kproxy.modes.userspace.messages import Settings
from kproxy.modes.userspace.pipes import Pipes

log = logs.get("userspace")

__all__ = ["Acceptor", "Common", "Place", "Relay"]

RAW = socket.SocketType  # without the methods and the bookkeeping that the class above it adds
STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
BACKLOG = 4096
BATCH = 64
PAUSE = 0.1  # seconds
AT_ONCE = struct.pack("ii", 1, 0)
SO_ORIGINAL_DST = 80  # include/uapi/linux/netfilter_ipv4.h; IPv6's has the same number
WATCHED = READ | ENDED | EDGE
NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})
# What breaks a connection that stood; everything else that befalls one that did not stand yet means: try another.
BROKE = frozenset({errno.ECONNRESET, errno.EPIPE})


class Common:
    """What all listeners of a forwarder share."""

    def __init__(self, settings: Settings, loop: Loop, descriptors: Descriptors) -> None:
        self.settings = settings
        self.loop = loop
        self.descriptors = descriptors
        self.pipes = Pipes(descriptors)
        self.counters = Counters()


class Place:
    """The connections of one listener to one endpoint. leaving: when they are cut off, 0.0 while it stays."""

    __slots__ = ("leaving", "relays", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.relays: set[Relay] = set()
        self.leaving = 0.0


class Acceptor:
    """One listening socket, and all connections that came through it. Owns the socket."""

    def __init__(self, common: Common, listening: socket.socket, balancer: Balancer) -> None:
        """listening: bound, non-blocking; it is taken over. Raises OSError when it cannot listen."""
        self.common = common
        self.balancer = balancer
        self.family = listening.family
        self.port: int = listening.getsockname()[1]
        self._places: dict[Target, Place] = {}
        self.listening = RAW(listening.family, listening.type, 0, listening.detach())
        self.listening.setblocking(False)
        self.listening.listen(BACKLOG)
        self._batch = 1
        common.loop.add(self.listening.fileno(), self, READ)

    def change(self, targets: tuple[Target, ...], affinity_seconds: float) -> None:
        """Lead to these from now on; connections to others may go on until they are drained."""
        self.balancer.change(targets, affinity_seconds)
        staying = frozenset(targets)
        for target, place in list(self._places.items()):
            if target in staying:
                place.leaving = 0.0
            elif not place.relays:
                del self._places[target]
            elif not place.leaving:
                place.leaving = self.common.loop.now + self.common.settings.drain_seconds
                self.common.loop.at(place.leaving, partial(self._drained, place, place.leaving))

    def close(self) -> None:
        """Take no more connections; those that are open are drained. The port is free when this returns."""
        self.change((), 0)
        self.common.loop.close(self.listening.detach())

    def place(self, target: Target) -> Place:
        """Where connections to TARGET are kept."""
        place = self._places.get(target)
        if place is None:
            place = self._places[target] = Place(target)
        return place

    # ---- Handler

    def ready(self, fd: int, events: int) -> None:
        """Take some of those who wait; the loop calls again while there are more."""
        accept, left = self.listening._accept, self.common.descriptors  # type: ignore[attr-defined]
        for _ in range(self._batch):
            if left.left < 2:
                self._refuse()
                return
            try:
                client, address = accept()
            except BlockingIOError:
                self._batch = (self._batch + 1) // 2
                return
            except OSError as error:
                if error.errno in NO_DESCRIPTOR:
                    self._refuse()
                    return
                continue  # it was gone before we got to it
            os.set_blocking(client, False)
            self.common.counters.accepted += 1
            relay = Relay(self, client, address[0])
            try:
                relay.start()
            except OSError as error:
                log.error("A connection cannot be forwarded", error)
                relay.abort()
        self._batch = min(BATCH, 2 * self._batch)

    def abort(self) -> None:
        """The next event finds the listener as it was."""

    # ---- inside

    def _refuse(self) -> None:
        """Reset who waits, so that he learns it at once and the loop is not called for him again and again."""
        descriptors, counters = self.common.descriptors, self.common.counters
        descriptors.lend()
        try:
            for _ in range(BATCH):
                client = RAW(self.family, socket.SOCK_STREAM, 0, self.listening._accept()[0])  # type: ignore[attr-defined]
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
                client.close()
                counters.accepted += 1
                counters.refused[DESCRIPTORS] += 1
                descriptors.tell("a TCP connection")
        except BlockingIOError:
            pass
        except OSError:
            self._pause()
        finally:
            descriptors.restore()

    def _pause(self) -> None:
        """Not even the one in reserve was of use: let them wait a moment rather than ask again and again."""
        loop, listening = self.common.loop, self.listening

        def resume() -> None:
            if listening.fileno() >= 0:
                loop.modify(listening.fileno(), READ)

        loop.modify(listening.fileno(), 0)
        loop.at(loop.now + PAUSE, resume)

    def _drained(self, place: Place, deadline: float) -> None:
        if place.leaving == deadline:
            self.common.counters.reset += len(place.relays)
            for relay in list(place.relays):
                relay.abort()
            self._places.pop(place.target, None)


class Relay:
    """One connection: a client, an endpoint, and a flow in each direction."""

    __slots__ = (
        "acceptor", "address", "client", "connecting", "down", "over", "place", "server", "socket", "tried", "up",
        "watching",
    )  # fmt: skip

    def __init__(self, acceptor: Acceptor, client: int, address: str) -> None:
        """client: a non-blocking descriptor, ours from now on. address: the client's."""
        common = acceptor.common
        self.acceptor = acceptor
        self.client = client
        self.address = address
        self.over = False
        self.tried: tuple[Target, ...] = ()
        self.watching = 0  # the descriptors that are watched for room to write: 1 the client's, 2 the server's
        self.server = -1
        self.up = Flow(client, -1, common.pipes, common.counters.into, True)
        self.down = Flow(-1, client, common.pipes, common.counters.out, False)
        self.connecting = True
        self.place: Place | None = None
        common.descriptors.left -= 2
        common.counters.connections += 1

    def start(self) -> None:
        """Find it an endpoint. Raises OSError when the loop cannot watch any more descriptors."""
        common = self.acceptor.common
        if common.settings.translated_only and not self._translated():
            self._give_up("not-translated")
        elif self._connect():
            common.loop.add(self.client, self, WATCHED | (WRITE if self.watching & 1 else 0))

    # ---- Handler

    def ready(self, fd: int, events: int) -> None:
        into, out = (self.up, self.down) if fd == self.client else (self.down, self.up)
        if events & ENDED:
            into.ending = events & ENDED
        try:
            if events & WRITE and not out.writable:
                out.writable = True
                self._pump(out)
            if events & (READ | ENDED) and not self.over:
                into.readable = True
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
        acceptor, loop = self.acceptor, self.acceptor.common.loop
        up, down = self.up, self.down
        while (target := acceptor.balancer.pick(self.address, loop.now, self.tried)) is not None:
            try:
                self.socket = server = RAW(acceptor.family, STREAM)
            except OSError as error:
                acceptor.common.descriptors.tell("a TCP connection")
                self._give_up(DESCRIPTORS if error.errno in NO_DESCRIPTOR else NO_ENDPOINT)
                return False
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.server = down.source = up.sink = server.fileno()
            up.writable = True
            self.place = place = acceptor.place(target)
            place.relays.add(self)
            code = server.connect_ex(target)
            if code in (0, errno.EINPROGRESS):
                try:
                    loop.handlers[self.server] = self
                    self._pump(up)
                except OSError as error:
                    if error.errno in BROKE:
                        self.abort()
                        return False
                else:
                    if self.over:
                        return False
                    loop.register(self.server, WATCHED | (WRITE if self.watching & 2 else 0))
                    if self.connecting:
                        self._set_deadline()
                    return True
            self._leave_endpoint()
        self._give_up(NO_ENDPOINT)
        return False

    def _set_deadline(self) -> None:
        common, attempt = self.acceptor.common, len(self.tried)
        seconds = common.settings.connect_seconds
        last = attempt + 1 >= min(len(seconds), len(self.acceptor.balancer.targets))
        patience = seconds[-1] if last else seconds[attempt]
        common.loop.at(common.loop.now + patience, partial(self._overdue, attempt))

    def _overdue(self, attempt: int) -> None:
        if self.over or not self.connecting or attempt != len(self.tried):
            return
        if not self._connected():
            self._next()

    def _connected(self) -> bool:
        """Ask the kernel whether the endpoint has answered."""
        try:
            self.socket.getpeername()
        except OSError:
            return False
        self.connecting = False
        return True

    def _next(self) -> None:
        self._leave_endpoint()
        self._connect()

    def _leave_endpoint(self) -> None:
        """This endpoint is none for this connection."""
        assert self.place is not None
        self.acceptor.common.counters.retries += 1
        self.place.relays.discard(self)
        self.tried = (*self.tried, self.place.target)
        self.acceptor.common.loop.leave(self.socket.detach())
        self.server = -1
        self.watching &= ~2
        self.down.ending = 0
        self.down.readable = False

    def _give_up(self, reason: str) -> None:
        self.acceptor.common.counters.refused[reason] += 1
        self.abort()

    def _translated(self) -> bool:
        """Whether a rule led the client here, so that it did not name the proxy port itself."""
        client = self._client()
        level = socket.IPPROTO_IP if self.acceptor.family == socket.AF_INET else socket.IPPROTO_IPV6
        try:
            original = client.getsockopt(level, SO_ORIGINAL_DST, 28)
            # struct sockaddr_in: family, port, address; sockaddr_in6 has the flow label before the address.
            if struct.unpack_from("!H", original, 2)[0] != self.acceptor.port:
                return True
            here = socket.inet_pton(self.acceptor.family, client.getsockname()[0])
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
        if self.connecting and flow.meter.bytes > before:
            self.connecting = False
        if more:
            self.acceptor.common.loop.again(partial(self._again, flow))
        elif not flow.writable:
            self._watch(1 if flow is self.down else 2)
        elif flow.ended and not flow.finished and not flow.held and not flow.level:
            flow.finished = True
            if self.up.finished and self.down.finished:
                self._close()
            else:
                # Very often the other side ends too before the next round, and closing says it all in one call.
                self.acceptor.common.loop.again(partial(self._finish, flow))

    def _again(self, flow: Flow) -> None:
        if not self.over:
            try:
                self._pump(flow)
            except OSError as error:
                self._failed(error)

    def _watch(self, side: int) -> None:
        """Have the loop tell when SIDE (1 the client, 2 the endpoint) has room again."""
        if not self.watching & side:
            self.watching |= side
            fd = self.client if side == 1 else self.server
            with suppress(FileNotFoundError):  # it is not watched at all yet, and will be for this too
                self.acceptor.common.loop.modify(fd, WATCHED | WRITE)

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
            self._watch(2)
        else:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def _failed(self, error: OSError) -> None:
        if self.over:
            return
        if self.connecting and error.errno not in BROKE:
            self._next()
        else:
            self.abort()

    def _client(self) -> socket.SocketType:
        """The client's descriptor as a socket, to be detached again."""
        return RAW(self.acceptor.family, socket.SOCK_STREAM, 0, self.client)

    def _close(self) -> None:
        common = self.acceptor.common
        self.over = True
        common.loop.leave(self.client)
        if self.server >= 0:
            common.loop.leave(self.socket.detach())
        if self.place is not None:
            self.place.relays.discard(self)
        self.up.release()
        self.down.release()
        common.descriptors.left += 2
        common.counters.connections -= 1
