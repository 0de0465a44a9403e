"""A forwarder in memory: it hands out proxy ports and remembers what it was told, and forwards nothing."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from kproxy.errors import KernelError
from kproxy.model.plans import Family
from kproxy.modes.userspace.listeners import ForwarderBusy, Listener, ListenerKey, Statistics

Place = tuple[Family, ListenerKey]


class FakeForwarder:
    """The Forwarder of kproxy.modes.userspace.listeners, in memory. Used from any thread.

    listeners, ports: what listens now, and where. updates: what each call asked for, in order, failed ones included.
    counted: what `statistics` returns; may be replaced. first_port: the first proxy port; no port is given out twice,
    so that a listener that was closed and came back is seen to have another one. busy: while it is set, updates fail
    with ForwarderBusy.
    """

    def __init__(self, first_port: int = 40_000) -> None:
        self.listeners: dict[Place, Listener] = {}
        self.ports: dict[Place, int] = {}
        self.updates: list[tuple[Family, dict[ListenerKey, Listener | None]]] = []
        self.counted = Statistics()
        self.busy = False
        self._next = first_port
        self._refused: dict[Place, str] = {}
        self._lost: set[Family] = set()
        self._running = False
        self._closed = False
        self._lock = threading.Lock()

    # ---- what a test does to it

    def die(self) -> None:
        """Lose everything, as when the process was killed. `update` fails once for each family that had listeners."""
        with self._lock:
            self._forget()
            self._running = False

    def refuse(self, family: Family, key: ListenerKey, reason: str = "no port is free") -> None:
        """From now on answer with REASON when this listener is to be opened; one that listens already goes on."""
        self._refused[family, key] = reason

    def permit(self, family: Family, key: ListenerKey) -> None:
        """Take a refusal back."""
        self._refused.pop((family, key), None)

    # ---- Forwarder

    def update(self, family: Family, changes: Mapping[ListenerKey, Listener | None]) -> Mapping[ListenerKey, int | str]:
        with self._lock:
            self.updates.append((family, dict(changes)))
            if self._closed:
                raise KernelError("the forwarder was closed")
            if family in self._lost:
                self._lost.discard(family)
                raise KernelError("the forwarder has ended; its listeners are lost")
            if self.busy:
                raise ForwarderBusy("the forwarder is busy")
            self._running = True
            answers = ((key, self._change(family, key, wanted)) for key, wanted in changes.items())
            return {key: answer for key, answer in answers if answer is not None}

    def alive(self, family: Family) -> bool:
        return not self._closed and family not in self._lost

    def end_unused(self) -> bool:
        if self.busy:
            raise ForwarderBusy("the forwarder is busy")
        if self.ports or not self._running:
            return True
        self._running = self.counted.connections > 0
        return not self._running

    @property
    def running(self) -> bool:
        """Whether its processes run."""
        return self._running

    def statistics(self) -> Statistics:
        if self._closed or self._lost:
            raise KernelError("the forwarder has ended")
        return self.counted

    def close(self) -> None:
        with self._lock:
            self._forget()
            self._closed = True

    # ---- inside

    def _change(self, family: Family, key: ListenerKey, wanted: Listener | None) -> int | str | None:
        place = family, key
        if wanted is None:
            self.listeners.pop(place, None)
            self.ports.pop(place, None)
            return None
        if place not in self.ports:
            if reason := self._refused.get(place) or self._taken(family, key):
                return reason
            self.ports[place] = key.node_port or self._next
            self._next += 1
        self.listeners[place] = wanted
        return self.ports[place]

    def _taken(self, family: Family, key: ListenerKey) -> str:
        """Why the key's node port cannot be listened on; "" when it can."""
        taken = key.node_port and any(of is family and key.node_port == k.node_port for of, k in self.ports)
        return "Address already in use" if taken else ""

    def _forget(self) -> None:
        self._lost |= {family for family, _ in self.ports}
        self.listeners.clear()
        self.ports.clear()
