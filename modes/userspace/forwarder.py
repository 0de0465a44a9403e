"""The daemon's side of the forwarder: starts its processes, tells them what to listen for, and notices their end."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from kproxy import logs
from kproxy.errors import KernelError
from kproxy.model.plans import Family
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Statistics
from kproxy.modes.userspace.messages import Settings
from kproxy.modes.userspace.workers import Workers

SLICE = 64  # changes in one request; the processes forward between two of them
GONE = "the forwarder's process has ended"

T = TypeVar("T")

log = logs.get("userspace")


class ForwarderProcess:
    """As listeners.Forwarder. The processes run in the network namespace of the thread that makes them start."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Nothing is started yet; the first `update` does that."""
        self._settings = settings if settings is not None else Settings()
        self._lock = threading.Lock()
        self._workers: Workers | None = None
        self._listening: dict[Family, set[ListenerKey]] = {family: set() for family in Family}
        self._lost: set[Family] = set()
        self._closed = False

    def update(self, family: Family, changes: Mapping[ListenerKey, Listener | None]) -> Mapping[ListenerKey, int | str]:
        """As listeners.Forwarder.update."""
        with self._lock:
            workers = self._running(family)
            answer: dict[ListenerKey, int | str] = {}
            rest = iter(changes.items())
            while part := dict(itertools.islice(rest, SLICE)):
                answer |= self._update(workers, family, part)
            return answer

    def alive(self) -> bool:
        """As listeners.Forwarder.alive."""
        if self._closed or self._lost:
            return False
        workers = self._workers
        return workers is None or workers.run() or not any(self._listening.values())

    def statistics(self) -> Statistics:
        """As listeners.Forwarder.statistics; before the first `update` nothing was counted."""
        with self._lock:
            if self._workers is None:
                if self._closed or self._lost:
                    raise KernelError(GONE)
                return Statistics()
            return self._asking(self._workers.count)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes' ids, none before they were started or after they were found to have ended."""
        workers = self._workers
        return workers.pids if workers is not None else ()

    def close(self) -> None:
        """As listeners.Forwarder.close. May be called again."""
        self._closed = True
        with self._lock:
            if self._workers is not None:
                self._workers.end()
                self._workers = None

    # ---- inside

    def _running(self, family: Family) -> Workers:
        if self._closed:
            raise KernelError("the forwarder was closed")
        if self._workers is not None and not self._workers.run():
            self._lose()
        if family in self._lost:
            self._lost.discard(family)
            raise KernelError(GONE)
        if self._workers is None:
            self._workers = Workers(self._settings)
            log.v(2).info("Forwarder started", pids=self._workers.pids)
        return self._workers

    def _update(
        self, workers: Workers, family: Family, part: dict[ListenerKey, Listener | None]
    ) -> dict[ListenerKey, int | str]:
        try:
            made = self._asking(lambda: workers.update(family, part))
        except KernelError:
            self._lost.discard(family)  # this error tells it
            raise
        opened = {key for key, port in made.items() if isinstance(port, int)}
        self._listening[family] -= part.keys() - opened
        self._listening[family] |= opened
        return made

    def _asking(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (OSError, msgspec.MsgspecError) as error:
            # Whatever they did or did not do, nothing of it is left.
            self._lose()
            raise KernelError(f"{GONE}: {error}" if str(error) else GONE) from error

    def _lose(self) -> None:
        assert self._workers is not None
        pids = self._workers.pids
        log.error(
            "The forwarder's process has ended, and its connections with it; another is started",
            pids=pids,
            statuses=self._workers.end(),
        )
        self._workers = None
        self._lost |= {family for family, keys in self._listening.items() if keys}
        for keys in self._listening.values():
            keys.clear()
