"""A worker process of the forwarder: python -m kproxy.modes.userspace.worker CONTROL COUNTERS INDEX NUMBER SETTINGS.

CONTROL is the descriptor of a connected stream socket on which the daemon sends requests (see messages); COUNTERS that
of a memory file with the round-robin counters that all workers share. The worker is number INDEX of NUMBER; SETTINGS
are JSON. The process ends, and with it every connection, when the daemon closes its end, on purpose or by dying.

All workers listen on the same ports. The first one allocates a port and owns its round-robin counter; the last one,
which finds all the others' sockets bound, tells the kernel how to distribute connections over them.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import socket
import sys
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from kproxy import logs
from kproxy.errors import one_line
from kproxy.model.plans import Family, PortKey
from kproxy.model.plans import Protocol as Transport
from kproxy.modes.userspace import sockets
from kproxy.modes.userspace.balancer import Affinity, Balancer, IntArray, RoundRobinCounter, Target
from kproxy.modes.userspace.event_loop import READ, EventLoop
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Reach, Statistics
from kproxy.modes.userspace.messages import (
    Change,
    Count,
    Counted,
    Messages,
    Request,
    Settings,
    Update,
    Updated,
    encode,
    requests,
)
from kproxy.modes.userspace.resources import Descriptors, Resources, raise_limit
from kproxy.modes.userspace.tcp_listener import TcpListener
from kproxy.modes.userspace.udp_listener import UdpListener

RECEIVE = 65_536

log = logs.get("userspace")


class WorkerSlot(NamedTuple):
    """A worker's place among all of them: number `which` of `number`. counters: the memory that they share."""

    which: int
    number: int
    counters: IntArray

    @property
    def first(self) -> bool:
        return self.which == 0

    @property
    def last(self) -> bool:
        return self.which == self.number - 1

    def counter(self, index: int) -> RoundRobinCounter:
        return RoundRobinCounter(self.counters, index % len(self.counters), self.first)


class OpenListeners:
    """The listeners of one worker, of both families."""

    def __init__(self, settings: Settings, loop: EventLoop, descriptors: Descriptors, slot: WorkerSlot) -> None:
        self._slot = slot
        self._resources = Resources(settings, loop, descriptors)
        self._ports = sockets.ProxyPorts(*settings.port_range)
        self._open: dict[tuple[Family, ListenerKey], TcpListener | UdpListener] = {}
        self._by_client: set[tuple[Family, ListenerKey]] = set()
        self._affinities: dict[tuple[Family, PortKey], Affinity] = {}

    def update(self, family: Family, changes: Iterable[Change]) -> list[int | str | None]:
        """Make the changes. Returns for each the port, the reason why there is none, or None if it was closed."""
        return [self._change(family, change) for change in changes]

    def statistics(self) -> Statistics:
        return self._resources.counters.snapshot(self._resources.loop.failures)

    def _change(self, family: Family, change: Change) -> int | str | None:
        found = self._open.get((family, change.key))
        if change.listener is None:
            if found is not None:
                self._close(family, change.key, found)
            return None
        targets = tuple(dict.fromkeys((endpoint.ip, endpoint.port) for endpoint in change.listener.endpoints))
        try:
            if found is None:
                found = self._open[family, change.key] = self._listen(family, change, targets, change.listener)
            else:
                found.change(targets, change.listener.affinity_seconds)
            self._balance(family, change.key, found, bool(change.listener.affinity_seconds))
        except OSError as error:
            return one_line(error.strerror or str(error))
        except Exception as error:
            log.exception("Unexpected error, which is a bug in kproxy; one listener is missing", error, key=change.key)
            return one_line(f"unexpected {type(error).__name__}: {error}")
        return found.port

    def _listen(
        self, family: Family, change: Change, targets: tuple[Target, ...], wanted: Listener
    ) -> TcpListener | UdpListener:
        transport = change.key.key.protocol
        counter = self._slot.counter(change.counter)
        if self._slot.first:
            counter.value = 0
        bound = self._bound(family, change)
        port = bound.getsockname()[1]
        affinity = self._affinities.setdefault((family, change.key.key), Affinity())
        balancer = Balancer(targets, wanted.affinity_seconds, affinity, counter)
        made: type[TcpListener] | type[UdpListener] = TcpListener if transport is Transport.TCP else UdpListener
        try:
            if self._slot.first and self._slot.number > 1:
                sockets.share(bound)
            listener = made(self._resources, bound, balancer)
        except BaseException:
            bound.close()
            self._release(family, change.key, port)
            raise
        self._resources.descriptors.left -= 1
        return listener

    def _bound(self, family: Family, change: Change) -> socket.socket:
        """The socket for a listener, on a port that the first worker allocates and the others share. Raises OSError."""
        transport, first = change.key.key.protocol, self._slot.first
        if change.key.node_port:
            return sockets.on_loopback(family, change.key.node_port, shared=not first)
        return self._ports.open(family, transport) if first else sockets.join(family, transport, change.port)

    def _release(self, family: Family, key: ListenerKey, port: int) -> None:
        if self._slot.first and not key.node_port:
            self._ports.release(family, key.key.protocol, port)

    def _balance(self, family: Family, key: ListenerKey, found: TcpListener | UdpListener, by_client: bool) -> None:
        """Send all connections of a client with affinity to the same worker, the one that remembers it."""
        if self._slot.number > 1 and self._slot.last and by_client != ((family, key) in self._by_client):
            sockets.balance(found.listening, family, self._slot.number, by_client)
            self._by_client ^= {(family, key)}

    def _close(self, family: Family, key: ListenerKey, found: TcpListener | UdpListener) -> None:
        del self._open[family, key]
        self._by_client.discard((family, key))
        found.close()
        self._release(family, key, found.port)
        self._resources.descriptors.left += 1
        if not any((family, key._replace(reach=reach)) in self._open for reach in Reach):
            self._affinities.pop((family, key.key), None)


class Control:
    """Answers the daemon's requests, one per round, so that many of them do not hold up the connections."""

    def __init__(self, listeners: OpenListeners, loop: EventLoop, daemon: socket.socket) -> None:
        self._listeners = listeners
        self._loop = loop
        self._daemon = daemon
        self._messages = Messages(requests)
        daemon.setblocking(True)
        loop.add(daemon.fileno(), self, READ)

    def ready(self, fd: int, events: int) -> None:
        data = self._daemon.recv(RECEIVE)
        if not data:
            self._loop.stop()
        for request in self._messages.feed(data):
            self._daemon.sendall(encode(self._answer(request)))

    def abort(self) -> None:
        """End the worker, which is of no use without the daemon."""
        self._loop.stop()

    def _answer(self, request: Request) -> Updated | Counted:
        match request:
            case Update(family, changes):
                return Updated(self._listeners.update(family, changes))
            case Count():
                return Counted(self._listeners.statistics())


def main(argv: list[str]) -> None:
    control, counters, index, number = map(int, argv[1:5])
    settings = msgspec.json.decode(argv[5], type=Settings)
    logs.setup(settings.log_format, settings.verbosity)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the daemon decides when the worker ends
    limit = raise_limit()
    loop = EventLoop()
    slot = WorkerSlot(index, number, memoryview(mmap.mmap(counters, 0)).cast("I"))
    descriptors = Descriptors(min(limit, settings.descriptors or limit))
    Control(OpenListeners(settings, loop, descriptors, slot), loop, socket.socket(fileno=control))
    # Objects that exist now stay; connections come and go without leaving garbage.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        loop.run()
    except Exception as error:
        log.exception("The forwarder's worker ends after an unexpected error, which is a bug in kproxy", error)
        os._exit(1)
    os._exit(0)  # without closing thousands of connections one by one


if __name__ == "__main__":
    main(sys.argv)
