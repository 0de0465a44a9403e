"""The forwarder's listeners: each change of one, and what all of them counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from kproxy.errors import one_line
from kproxy.model.plans import Family, PortKey
from kproxy.model.plans import Protocol as Transport
from kproxy.modes.userspace.balancer import Affinity, Balancer, Target
from kproxy.modes.userspace.descriptors import Descriptors
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Reach, Statistics
from kproxy.modes.userspace.loop import Loop
from kproxy.modes.userspace.messages import Settings
from kproxy.modes.userspace.sockets import ProxyPorts
from kproxy.modes.userspace.tcp import Acceptor, Common
from kproxy.modes.userspace.udp import Receiver

__all__ = ["Engine"]


class Service(Protocol):
    """One listener at work."""

    port: int

    def change(self, targets: tuple[Target, ...], affinity_seconds: float) -> None: ...

    def close(self) -> None: ...


class Engine:
    """Holds the listeners of both families."""

    def __init__(self, settings: Settings, loop: Loop, descriptors: Descriptors) -> None:
        self._common = Common(settings, loop, descriptors)
        self._ports = ProxyPorts(*settings.port_range)
        self._services: dict[tuple[Family, ListenerKey], Service] = {}
        self._affinities: dict[tuple[Family, PortKey], Affinity] = {}

    def update(self, family: Family, changes: Iterable[tuple[ListenerKey, Listener | None]]) -> list[int | str | None]:
        """Make these so; as listeners.Forwarder.update."""
        return [self._change(family, key, wanted) for key, wanted in changes]

    def statistics(self) -> Statistics:
        return self._common.counters.snapshot()

    def _change(self, family: Family, key: ListenerKey, wanted: Listener | None) -> int | str | None:
        service = self._services.get((family, key))
        if wanted is None:
            if service is not None:
                self._close(family, key, service)
            return None
        targets = tuple(dict.fromkeys((endpoint.ip, endpoint.port) for endpoint in wanted.endpoints))
        if service is not None:
            service.change(targets, wanted.affinity_seconds)
            return service.port
        try:
            service = self._open(family, key, targets, wanted.affinity_seconds)
        except OSError as error:
            return one_line(error.strerror or str(error))
        self._services[family, key] = service
        return service.port

    def _open(self, family: Family, key: ListenerKey, targets: tuple[Target, ...], seconds: float) -> Service:
        transport = key.key.protocol
        listening = self._ports.open(family, transport)
        self._common.descriptors.left -= 1
        affinity = self._affinities.setdefault((family, key.key), Affinity())
        balancer = Balancer(targets, seconds, affinity)
        made = Acceptor if transport is Transport.TCP else Receiver
        return made(self._common, listening, balancer)

    def _close(self, family: Family, key: ListenerKey, service: Service) -> None:
        del self._services[family, key]
        service.close()
        self._ports.give_back(family, key.key.protocol, service.port)
        self._common.descriptors.left += 1
        if not any((family, ListenerKey(key.key, reach)) in self._services for reach in Reach):
            self._affinities.pop((family, key.key), None)
