"""The listeners of one worker: each change of one, and what all of them counted.

Several workers may listen on the same ports. The first of them chooses a port and says whose turn it is when endpoints
change; the last, which finds all the others there, tells the kernel how to choose among them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kproxy.errors import one_line
from kproxy.model.plans import Family, PortKey
from kproxy.model.plans import Protocol as Transport
from kproxy.modes.userspace import sockets
from kproxy.modes.userspace.balancer import Affinity, Balancer, Cells, Target, Turn
from kproxy.modes.userspace.common import Common
from kproxy.modes.userspace.descriptors import Descriptors
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Reach, Statistics
from kproxy.modes.userspace.loop import Loop
from kproxy.modes.userspace.messages import Change, Settings
from kproxy.modes.userspace.tcp import Acceptor
from kproxy.modes.userspace.udp import Receiver

Service = Acceptor | Receiver


class Crew(NamedTuple):
    """The workers, seen from one of them. which: the place that it has among `number`; turns: memory that all share."""

    which: int
    number: int
    turns: Cells

    @property
    def first(self) -> bool:
        return self.which == 0

    @property
    def last(self) -> bool:
        return self.which == self.number - 1

    def turn(self, place: int) -> Turn:
        return Turn(self.turns, place % len(self.turns), self.first)


class Engine:
    """Holds the listeners of both families."""

    def __init__(self, settings: Settings, loop: Loop, descriptors: Descriptors, crew: Crew) -> None:
        self._crew = crew
        self._common = Common(settings, loop, descriptors)
        self._ports = sockets.ProxyPorts(*settings.port_range)
        self._services: dict[tuple[Family, ListenerKey], Service] = {}
        self._steered: set[tuple[Family, ListenerKey]] = set()
        self._affinities: dict[tuple[Family, PortKey], Affinity] = {}

    def update(self, family: Family, changes: Iterable[Change]) -> list[int | str | None]:
        """Make these so; for each its port, why there is none, or None when it was closed."""
        return [self._change(family, change) for change in changes]

    def statistics(self) -> Statistics:
        return self._common.counters.snapshot()

    def _change(self, family: Family, change: Change) -> int | str | None:
        place = family, change.key
        service = self._services.get(place)
        if change.listener is None:
            if service is not None:
                self._close(family, change.key, service)
            return None
        targets = tuple(dict.fromkeys((endpoint.ip, endpoint.port) for endpoint in change.listener.endpoints))
        try:
            if service is None:
                self._services[place] = service = self._open(family, change, targets, change.listener)
            else:
                service.change(targets, change.listener.affinity_seconds)
            self._steer(family, change.key, service, bool(change.listener.affinity_seconds))
        except OSError as error:
            return one_line(error.strerror or str(error))
        return service.port

    def _open(self, family: Family, change: Change, targets: tuple[Target, ...], wanted: Listener) -> Service:
        transport = change.key.key.protocol
        turn = self._crew.turn(change.turn)
        if self._crew.first:
            turn.index = 0
            listening = self._ports.open(family, transport)
            if self._crew.number > 1:
                sockets.share(listening)
        else:
            listening = sockets.join(family, transport, change.port)
        affinity = self._affinities.setdefault((family, change.key.key), Affinity())
        balancer = Balancer(targets, wanted.affinity_seconds, affinity, turn)
        made: type[Acceptor] | type[Receiver] = Acceptor if transport is Transport.TCP else Receiver
        port = listening.getsockname()[1]
        try:
            service = made(self._common, listening, balancer)
        except OSError:
            self._give_back(family, transport, port)
            raise
        self._common.descriptors.left -= 1
        return service

    def _give_back(self, family: Family, transport: Transport, port: int) -> None:
        if self._crew.first:
            self._ports.give_back(family, transport, port)

    def _steer(self, family: Family, key: ListenerKey, service: Service, by_client: bool) -> None:
        """A client with affinity has to meet the worker that remembers it."""
        if self._crew.number > 1 and self._crew.last and by_client != ((family, key) in self._steered):
            sockets.steer(service.listening, family, self._crew.number, by_client)
            self._steered ^= {(family, key)}

    def _close(self, family: Family, key: ListenerKey, service: Service) -> None:
        del self._services[family, key]
        self._steered.discard((family, key))
        service.close()
        self._give_back(family, key.key.protocol, service.port)
        self._common.descriptors.left += 1
        if not any((family, ListenerKey(key.key, reach)) in self._services for reach in Reach):
            self._affinities.pop((family, key.key), None)
