"""Relays one TCP connection: a client, an endpoint that answers, and a channel in each direction.

A connection costs as few system calls as possible: what the client sent is passed to the endpoint before anything is
waited for, the loop watches for room to write only after a write found none, and an end is passed on one round later,
because by then the connection is often over and closing it is enough.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from functools import partial
from typing import Protocol

from kproxy.modes.userspace.balancer import Balancer, Target
from kproxy.modes.userspace.channel import Channel
from kproxy.modes.userspace.event_loop import EDGE, ENDED, READ, WRITE, Waiter
from kproxy.modes.userspace.resources import DESCRIPTORS, NO_DESCRIPTOR, NO_ENDPOINT, NOT_TRANSLATED, RAW, Resources

STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
TCP = socket.IPPROTO_TCP
NODELAY, QUICKACK = socket.TCP_NODELAY, socket.TCP_QUICKACK
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""For SO_LINGER: close(2) resets the connection."""
SO_ORIGINAL_DST = 80  # include/uapi/linux/netfilter_ipv4.h; IPv6's has the same number
WATCHED = READ | ENDED | EDGE
CONNECTING = frozenset({0, errno.EINPROGRESS})
# Errors of an established connection. Any other error before it is established means: try another endpoint.
BROKEN = frozenset({errno.ECONNRESET, errno.EPIPE})
CLIENT, SERVER = 1, 2


class EndpointRelays:
    """One listener's relays to one endpoint. drain_until: when they are reset; 0.0 while the endpoint is wanted."""

    __slots__ = ("drain_until", "relays", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.relays: set[Relay] = set()
        self.drain_until = 0.0


class Listener(Protocol):
    """The listener that accepted a connection."""

    resources: Resources
    balancer: Balancer
    family: socket.AddressFamily
    port: int

    def relays_to(self, target: Target) -> EndpointRelays:
        """The group that a relay to `target` belongs to."""


class Relay:
    """One connection.

    up, down: the channels towards the endpoint and towards the client. connecting: no byte has been exchanged with the
    endpoint, so it may not have answered yet. watching: the sides that are watched for room to write. waiting: the
    timeout queue that the relay is in while it waits for the endpoint.
    """

    __slots__ = (
        "address", "client", "connecting", "down", "group", "listener", "over", "server", "socket", "tried", "up",
        "waiting", "watching",
    )  # fmt: skip

    def __init__(self, listener: Listener, client: int, address: str) -> None:
        """client: a non-blocking descriptor, owned by the relay from now on. address: the client's IP."""
        resources = listener.resources
        self.listener = listener
        self.client = client
        self.address = address
        self.over = False
        self.connecting = True
        self.tried: tuple[Target, ...] = ()
        self.watching = 0
        self.server = -1
        self.group: EndpointRelays | None = None
        self.waiting: dict[Waiter, float] | None = None
        self.up = Channel(client, -1, resources.pipes, resources.counters.into, True)
        self.down = Channel(-1, client, resources.pipes, resources.counters.out, False)
        resources.descriptors.left -= 2
        resources.counters.connections += 1

    def start(self) -> None:
        """Connect to an endpoint. Raises OSError when the loop cannot watch any more descriptors."""
        resources = self.listener.resources
        if resources.settings.translated_only and not self._translated():
            self._refuse(NOT_TRANSLATED)
            return
        try:
            self.up.fetch()
        except OSError:
            self.abort()
            return
        if self._connect():
            resources.loop.add(self.client, self, WATCHED | WRITE if self.watching & CLIENT else WATCHED)

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
        client = self._client()
        with suppress(OSError):
            if self.server >= 0:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        client.detach()
        self._close()

    # ---- connecting

    def _connect(self) -> bool:
        """Try endpoints until one accepts the connection or may yet do so. Returns False when none is left."""
        listener = self.listener
        loop, pick = listener.resources.loop, listener.balancer.pick
        while (target := pick(self.address, loop.now, self.tried)) is not None:
            try:
                server = RAW(listener.family, STREAM)
            except OSError as error:
                listener.resources.descriptors.report("a TCP connection")
                self._refuse(DESCRIPTORS if error.errno in NO_DESCRIPTOR else NO_ENDPOINT)
                return False
            self._use(server, listener.relays_to(target))
            try:
                if server.connect_ex(target) in CONNECTING:
                    self._pump(self.up)
                    if self.over:
                        return False
                    loop.add(self.server, self, WATCHED | WRITE if self.watching & SERVER else WATCHED)
                    if self.connecting:
                        self._wait()
                    return True
            except OSError as error:
                if error.errno in BROKEN:
                    self.abort()
                    return False
            self._abandon_endpoint()
        self._refuse(NO_ENDPOINT)
        return False

    def _use(self, server: socket.SocketType, group: EndpointRelays) -> None:
        """Make `server`, about to be connected to the endpoint of `group`, the server side."""
        up = self.up
        server.setsockopt(TCP, NODELAY, 1)
        if up.held:  # sent with the last packet of the handshake, which would otherwise be sent alone
            server.setsockopt(TCP, QUICKACK, 0)
        self.socket = server
        self.server = self.down.source = up.sink = server.fileno()
        up.writable = True
        self.group = group
        group.relays.add(self)

    def _wait(self) -> None:
        """Start the timeout of this attempt."""
        listener, attempt = self.listener, len(self.tried)
        seconds = listener.resources.settings.connect_seconds
        last = attempt + 1 >= min(len(seconds), len(listener.balancer.targets))
        self.waiting = queue = listener.resources.loop.timeout_queue(seconds[-1] if last else seconds[attempt])
        queue[self] = listener.resources.loop.now

    def timed_out(self) -> None:
        self.waiting = None
        if not self._connected():
            self._abandon_endpoint()
            self._connect()

    def _connected(self) -> bool:
        """Whether the endpoint has answered, according to the kernel."""
        try:
            self.socket.getpeername()
        except OSError:
            return False
        self._established()
        return True

    def _established(self) -> None:
        self.connecting = False
        if self.waiting is not None:
            self.waiting.pop(self, None)
            self.waiting = None

    def _abandon_endpoint(self) -> None:
        """Give up this endpoint for this connection."""
        assert self.group is not None
        resources = self.listener.resources
        resources.counters.retries += 1
        self.group.relays.discard(self)
        self.tried = (*self.tried, self.group.target)
        resources.loop.close_later(self.socket.detach())
        self.server = -1
        self.watching &= ~SERVER
        self.down.ending = 0
        self.down.readable = False
        if self.waiting is not None:
            self.waiting.pop(self, None)
            self.waiting = None

    def _refuse(self, reason: str) -> None:
        self.listener.resources.counters.refused[reason] += 1
        self.abort()

    def _translated(self) -> bool:
        """Whether a rule redirected the client here; otherwise it connected to the proxy port itself."""
        client, family = self._client(), self.listener.family
        level = socket.IPPROTO_IP if family == socket.AF_INET else socket.IPPROTO_IPV6
        try:
            original = client.getsockopt(level, SO_ORIGINAL_DST, 28)
            # struct sockaddr_in: family, port, address; sockaddr_in6 has the channel label before the address.
            if struct.unpack_from("!H", original, 2)[0] != self.listener.port:
                return True
            here = socket.inet_pton(family, client.getsockname()[0])
            return here not in (original[4:8], original[8:24])
        except OSError:
            return False
        finally:
            client.detach()

    # ---- copying

    def _pump(self, channel: Channel) -> None:
        """Copy what can be copied, and do what follows from it. Raises OSError when a side is broken."""
        before = channel.counter.bytes
        more = channel.pump()
        if channel.held and channel.ended and channel.writable:
            self._send_last(channel)
        if self.connecting and channel.counter.bytes > before:
            self._established()
        if more:
            channel.queued = True
            self.listener.resources.loop.postpone(partial(self._pump_again, channel), self)
        elif not channel.writable:
            self._watch(CLIENT if channel is self.down else SERVER)
        elif channel.ended and not channel.finished and not channel.held and not channel.in_pipe:
            channel.finished = True
            if self.up.finished and self.down.finished:
                self._close()
            else:
                self.listener.resources.loop.postpone(partial(self._finish, channel), self)

    def _send_last(self, channel: Channel) -> None:
        other, sink = (self.down, self.socket) if channel is self.up else (self.up, self._client())
        try:
            if channel.send_last(sink):
                channel.finished = True
                if not other.finished:
                    sink.shutdown(socket.SHUT_WR)
        finally:
            if channel is self.down:
                sink.detach()
        if channel.finished and other.finished:
            self._close()

    def _pump_again(self, channel: Channel) -> None:
        channel.queued = False
        if not self.over:
            try:
                self._pump(channel)
            except OSError as error:
                self._failed(error)

    def _watch(self, side: int) -> None:
        """Watch for room to write on `side`."""
        if not self.watching & side:
            self.watching |= side
            fd = self.client if side == CLIENT else self.server
            with suppress(FileNotFoundError):  # not watched at all yet; it will be for writing as well
                self.listener.resources.loop.modify(fd, WATCHED | WRITE)

    def _finish(self, channel: Channel) -> None:
        """Shut down the sink, if the connection is still open."""
        if self.over:
            return
        if channel is self.down:
            client = self._client()
            with suppress(OSError):  # it was reset, which the loop reports as well
                client.shutdown(socket.SHUT_WR)
            client.detach()
        elif self.connecting and not self._connected():
            channel.finished = channel.writable = False
            self._watch(SERVER)
        else:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def _failed(self, error: OSError) -> None:
        if self.over:
            return
        if self.connecting and error.errno not in BROKEN:
            self._abandon_endpoint()
            self._connect()
        else:
            self.abort()

    def _client(self) -> socket.SocketType:
        """The client's descriptor as a socket, which the caller has to detach."""
        return RAW(self.listener.family, socket.SOCK_STREAM, 0, self.client)

    def _close(self) -> None:
        resources = self.listener.resources
        self.over = True
        resources.loop.close_later(self.client)
        if self.server >= 0:
            resources.loop.close_later(self.socket.detach())
        if self.group is not None:
            self.group.relays.discard(self)
        if self.waiting is not None:
            self.waiting.pop(self, None)
        if self.up.pipe is not None:
            self.up.release()
        if self.down.pipe is not None:
            self.down.release()
        resources.descriptors.left += 2
        resources.counters.connections -= 1
