"""One family's listeners: what the forwarder was told of each, and the proxy port that it has.

Tells the forwarder only what changed, in small batches. When the forwarder has ended the table is empty, as nothing
listens any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice

from kproxy.errors import KernelError
from kproxy.model.plans import Family, PortKey
from kproxy.modes.userspace.listeners import Forwarder, ForwarderBusy, Listener, ListenerKey

BATCH = 64  # changes in one request; workers forward, and the other family is served, between two of them


class ListenersLost(KernelError):
    """The forwarder has ended, and with it every listener; the next call starts a new one."""


class ListenerTable:
    """The open listeners of one family. Used by one thread at a time; `port` by any.

    closing: listeners that nobody wants any more but that a busy forwarder has not closed; `close` tries again.
    """

    def __init__(self, family: Family, forwarder: Forwarder) -> None:
        self._family, self._forwarder = family, forwarder
        self._open: dict[ListenerKey, tuple[Listener, int]] = {}
        self.closing: set[ListenerKey] = set()

    def alive(self) -> bool:
        """Whether everything that was opened still listens. Cheap."""
        return not self._open or self._forwarder.alive(self._family)

    def check(self) -> None:
        """Raises ListenersLost when this family's listeners are gone."""
        if not self.alive():
            with suppress(ForwarderBusy):
                self._update({})

    def port(self, key: ListenerKey) -> int:
        """The proxy port of a listener, 0 if there is none."""
        found = self._open.get(key)
        return found[1] if found else 0

    def all(self) -> frozenset[ListenerKey]:
        """The open listeners."""
        return frozenset(self._open)

    def names(self) -> frozenset[PortKey]:
        """The Service ports that have a listener."""
        return frozenset(listener.key for listener in self._open)

    def open(self, wanted: Mapping[ListenerKey, Listener]) -> dict[ListenerKey, str]:
        """Open these listeners, or change them to what is given. Returns those that failed, with the reason (one line).

        A listener that failed because the forwarder is busy stays as it was; any other one that failed is closed.
        Raises ListenersLost, or KernelError when no forwarder can be started.
        """
        self.closing.difference_update(wanted)
        changes = {key: new for key, new in wanted.items() if key not in self._open or self._open[key][0] != new}
        failed: dict[ListenerKey, str] = {}
        for batch in _batches(changes):
            try:
                answers = self._update({key: wanted[key] for key in batch})
            except ForwarderBusy as busy:
                return failed | {key: str(busy) for key in changes if not self._is(key, wanted[key], failed)}
            for key, answer in answers.items():
                if isinstance(answer, int):
                    self._open[key] = wanted[key], answer
                else:
                    self._open.pop(key, None)
                    failed[key] = answer
        return failed

    def close(self, keys: Iterable[ListenerKey]) -> None:
        """Close these listeners, and those that a busy forwarder did not close before. Raises ListenersLost."""
        self.closing.update(key for key in keys if key in self._open)
        for batch in _batches(list(self.closing)):
            try:
                self._update(dict.fromkeys(batch))
            except ForwarderBusy:
                return
            for key in batch:
                del self._open[key]
            self.closing.difference_update(batch)

    def _is(self, key: ListenerKey, wanted: Listener, failed: Mapping[ListenerKey, str]) -> bool:
        return key in failed or (key in self._open and self._open[key][0] == wanted)

    def _update(self, changes: Mapping[ListenerKey, Listener | None]) -> Mapping[ListenerKey, int | str]:
        try:
            return self._forwarder.update(self._family, changes)
        except ForwarderBusy:
            raise
        except KernelError as error:
            self.closing.clear()
            if not self._open:
                raise
            self._open.clear()
            raise ListenersLost(str(error)) from error


def _batches(keys: Iterable[ListenerKey]) -> Iterator[list[ListenerKey]]:
    rest = iter(keys)
    while batch := list(islice(rest, BATCH)):
        yield batch
