"""TCP: connections taken on a proxy port, and those that are open."""

from __future__ import annotations

import os
import socket
from functools import partial

from kproxy import logs
from kproxy.modes.userspace.balancer import Balancer, Target
from kproxy.modes.userspace.common import DESCRIPTORS, NO_DESCRIPTOR, RAW, Common
from kproxy.modes.userspace.loop import READ
from kproxy.modes.userspace.relays import AT_ONCE, Place, Relay

BACKLOG = 4096
BATCH = 64
STEADY = 4  # full batches in a row, after which more is tried at once
PAUSE = 0.1  # seconds

log = logs.get("userspace")


class Acceptor:
    """One listening socket, and all connections that came through it. Owns the socket."""

    def __init__(self, common: Common, listening: socket.socket, balancer: Balancer) -> None:
        """listening: bound, non-blocking; it is taken over. Raises OSError when it cannot listen."""
        self.common = common
        self.balancer = balancer
        self.family = socket.AddressFamily(listening.family)
        self.port: int = listening.getsockname()[1]
        self._places: dict[Target, Place] = {}
        self.listening = RAW(listening.family, listening.type, 0, listening.detach())
        self.listening.setblocking(False)
        self.listening.listen(BACKLOG)
        self._batch, self._full = 1, 0
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
                self._batch, self._full = (self._batch + 1) // 2, 0
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
                log.error("A connection cannot be forwarded and is cut", error, client=str(address[0]))
                relay.abort()
        self._full += 1
        if self._full == STEADY:
            self._batch, self._full = min(BATCH, 2 * self._batch), 0

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
