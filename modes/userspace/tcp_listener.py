"""A TCP listener on a proxy port: accepts connections, and drains those whose endpoint has gone."""

from __future__ import annotations

import os
import socket
from functools import partial

from kproxy.modes.userspace.balancer import Balancer, Target
from kproxy.modes.userspace.event_loop import READ
from kproxy.modes.userspace.resources import DESCRIPTORS, NO_DESCRIPTOR, RAW, Resources
from kproxy.modes.userspace.tcp_relay import RESET_ON_CLOSE, EndpointRelays, Relay

BACKLOG = 4096
BATCH = 64
GROW_AFTER = 4  # full batches in a row, after which larger ones are tried
PAUSE = 0.1  # seconds


class TcpListener:
    """One listening socket and all connections accepted from it. Owns the socket."""

    def __init__(self, resources: Resources, listening: socket.socket, balancer: Balancer) -> None:
        """listening: bound and non-blocking; the listener takes it over. Raises OSError when it cannot listen."""
        self.resources = resources
        self.balancer = balancer
        self.family = socket.AddressFamily(listening.family)
        self.port: int = listening.getsockname()[1]
        self._relays: dict[Target, EndpointRelays] = {}
        self.listening = RAW(listening.family, listening.type, 0, listening.detach())
        self.listening.setblocking(False)
        self.listening.listen(BACKLOG)
        self._batch, self._full = 1, 0
        resources.loop.add(self.listening.fileno(), self, READ)

    def change(self, targets: tuple[Target, ...], affinity_seconds: float) -> None:
        """Forward to these endpoints from now on; connections to others are drained."""
        self.balancer.change(targets, affinity_seconds)
        staying = frozenset(targets)
        loop = self.resources.loop
        for target, group in list(self._relays.items()):
            if target in staying:
                group.drain_until = 0.0
            elif not group.relays:
                del self._relays[target]
            elif not group.drain_until:
                group.drain_until = loop.now + self.resources.settings.drain_seconds
                loop.at(group.drain_until, partial(self._end_drain, group, group.drain_until), self)

    def close(self) -> None:
        """Accept no more connections; those that are open are drained. The port is free when this returns."""
        self.change((), 0)
        self.resources.loop.close(self.listening.detach())

    def relays_to(self, target: Target) -> EndpointRelays:
        group = self._relays.get(target)
        if group is None:
            group = self._relays[target] = EndpointRelays(target)
        return group

    # ---- Handler

    def ready(self, fd: int, events: int) -> None:
        """Accept some of the waiting connections; the loop calls again while there are more."""
        accept, left = self.listening._accept, self.resources.descriptors  # type: ignore[attr-defined]
        for _ in range(self._batch):
            if left.left < 2:
                self._refuse()
                return
            try:
                client, address = accept()
            except BlockingIOError:
                self._batch, self._full = (self._batch + 1) // 2, 0
                return
            except OSError as error:
                if error.errno in NO_DESCRIPTOR:
                    self._refuse()
                    return
                continue  # the client has gone already
            os.set_blocking(client, False)
            self.resources.counters.accepted += 1
            relay = Relay(self, client, address[0])
            try:
                relay.start()
            except Exception as error:
                self.resources.loop.failed(error, relay)
        self._full += 1
        if self._full == GROW_AFTER:
            self._batch, self._full = min(BATCH, 2 * self._batch), 0

    def abort(self) -> None:
        """Do nothing: the listener goes on with the next event."""

    # ---- inside

    def _refuse(self) -> None:
        """Reset the waiting connections, so that clients learn it and the loop is not called for them over and over."""
        descriptors, counters = self.resources.descriptors, self.resources.counters
        descriptors.lend()
        try:
            for _ in range(BATCH):
                client = RAW(self.family, socket.SOCK_STREAM, 0, self.listening._accept()[0])  # type: ignore[attr-defined]
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                client.close()
                counters.accepted += 1
                counters.refused[DESCRIPTORS] += 1
                descriptors.report("a TCP connection")
        except BlockingIOError:
            pass
        except OSError:
            self._pause()
        finally:
            descriptors.restore()

    def _pause(self) -> None:
        """Stop accepting for a moment, as not even the reserve was of use."""
        loop, listening = self.resources.loop, self.listening

        def resume() -> None:
            if listening.fileno() >= 0:
                loop.modify(listening.fileno(), READ)

        loop.modify(listening.fileno(), 0)
        loop.at(loop.now + PAUSE, resume, self)

    def _end_drain(self, group: EndpointRelays, deadline: float) -> None:
        """Reset what is still open, unless the endpoint has come back in the meantime."""
        if group.drain_until == deadline:
            self._relays.pop(group.target, None)
            self.resources.counters.reset += len(group.relays)
            for relay in list(group.relays):
                relay.abort()
