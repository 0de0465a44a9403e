"""One family's listeners at the forwarder: what they were told, and the proxy ports that they have.

Tells the forwarder only what changed. When the forwarder has ended nothing is remembered, as nothing listens any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kproxy.errors import KernelError
from kproxy.model.plans import Family, PortKey
from kproxy.modes.userspace.listeners import Forwarder, Listener, ListenerKey


class ListenersLost(KernelError):
    """The forwarder has ended, and with it every listener; the next call finds a new one."""


class ListenerTable:
    """Used by one thread at a time; `port` by any."""

    def __init__(self, family: Family, forwarder: Forwarder) -> None:
        self._family, self._forwarder = family, forwarder
        self._held: dict[ListenerKey, tuple[Listener, int]] = {}

    def alive(self) -> bool:
        """Cheap: whether what was opened still listens."""
        return self._forwarder.alive()

    def check(self) -> None:
        """Raises ListenersLost when this family's listeners are gone."""
        if self._held and not self._forwarder.alive():
            self._update({})

    def port(self, key: ListenerKey) -> int:
        """The proxy port of a listener, 0 when there is none."""
        held = self._held.get(key)
        return held[1] if held else 0

    def names(self) -> frozenset[PortKey]:
        """The Service ports that have a listener."""
        return frozenset(key for key, _ in self._held)

    def open(self, wanted: Mapping[ListenerKey, Listener]) -> dict[ListenerKey, str]:
        """Let these listen, as they are given here. Returns those that cannot be had, each with one line of why.

        Raises ListenersLost, or KernelError when no forwarder can be started.
        """
        changes = {key: new for key, new in wanted.items() if key not in self._held or self._held[key][0] != new}
        refused = {}
        for key, answer in self._update(changes).items() if changes else ():
            if isinstance(answer, int):
                self._held[key] = wanted[key], answer
            else:
                self._held.pop(key, None)
                refused[key] = answer
        return refused

    def close(self, keys: Iterable[ListenerKey]) -> None:
        """Take no more for these. Raises as `open` does."""
        if going := [key for key in keys if key in self._held]:
            self._update(dict.fromkeys(going))
            for key in going:
                del self._held[key]

    def _update(self, changes: Mapping[ListenerKey, Listener | None]) -> Mapping[ListenerKey, int | str]:
        try:
            return self._forwarder.update(self._family, changes)
        except KernelError as error:
            if not self._held:
                raise
            self._held.clear()
            raise ListenersLost(str(error)) from error
