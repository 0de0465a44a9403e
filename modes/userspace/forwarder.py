"""The daemon's side of the forwarder: starts its workers, passes changes of listeners to them, and restarts them.

Both families' threads use it, and the one that serves metrics. A worker that does not answer holds up only the thread
that asks it (for ANSWER_TIMEOUT, after which all workers are restarted); the others are told that the forwarder is busy
after BUSY_AFTER, and do without.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping

from kproxy import logs
from kproxy.errors import KernelError
from kproxy.model.plans import Family
from kproxy.modes.userspace.listeners import ForwarderBusy, Listener, ListenerKey, Statistics
from kproxy.modes.userspace.messages import Settings
from kproxy.modes.userspace.worker_processes import AnswerOverdue, WorkerError, WorkerProcesses

BUSY_AFTER = 0.4  # seconds without an answer to somebody else's request
STATISTICS_TIMEOUT = 1.0  # seconds
POLL = 0.05  # seconds
ENDED = "the forwarder's process has ended"

log = logs.get("userspace")


class ForwarderProcess:
    """A Forwarder that runs worker processes, in the network namespace of the thread that makes them start.

    The lock is held for one request to the workers at a time.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Starts nothing yet; the first `update` does."""
        self._settings = settings if settings is not None else Settings()
        self._lock = threading.Lock()
        self._workers: WorkerProcesses | None = None
        self._listening: dict[Family, set[ListenerKey]] = {family: set() for family in Family}
        self._lost: set[Family] = set()  # families whose listeners were lost and that were not told yet
        self._closed = False

    def update(self, family: Family, changes: Mapping[ListenerKey, Listener | None]) -> Mapping[ListenerKey, int | str]:
        with self._exclusive():
            workers = self._running(family)
            try:
                with self._losing():
                    found = workers.update(family, dict(changes))
            except KernelError:
                self._lost.discard(family)  # this error tells it
                raise
            opened = {key for key, port in found.items() if isinstance(port, int)}
            self._listening[family] -= changes.keys() - opened
            self._listening[family] |= opened
            return found

    def alive(self, family: Family) -> bool:
        if self._closed or family in self._lost:
            return False
        workers = self._workers
        return not self._listening[family] or (workers is not None and workers.running())

    def statistics(self) -> Statistics:
        with self._exclusive():
            workers = self._workers
            if workers is None:
                if self._closed or self._lost:
                    raise KernelError(ENDED)
                return Statistics()
            with self._losing():
                try:
                    return workers.count(STATISTICS_TIMEOUT)
                except AnswerOverdue as error:  # costs this reading only
                    raise ForwarderBusy(str(error)) from error

    def end_unused(self) -> bool:
        """End the workers when no family has a listener and no connection is open; the next `update` starts others.

        Returns False while connections are open. Raises ForwarderBusy, or another KernelError when they have ended.
        """
        with self._exclusive():
            if (workers := self._workers) is None or any(self._listening.values()):
                return True
            with self._losing():
                counted = workers.count(STATISTICS_TIMEOUT)
            if counted.connections or counted.sessions:
                return False
            workers.end()
            self._workers = None
            log.v(2).info("Forwarder ended, as nothing listens any more", pids=workers.pids)
            return True

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes' ids; none before they were started or after they were found to have ended."""
        workers = self._workers
        return workers.pids if workers is not None else ()

    def close(self) -> None:
        """End all workers. May be called again. Threads that wait for an answer get an error at once."""
        self._closed = True
        if (workers := self._workers) is not None:
            workers.kill()
        with self._lock:
            if self._workers is not None:
                self._workers.end()
                self._workers = None

    # ---- inside

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the lock. Raises ForwarderBusy when whoever has it waits for an answer that does not come."""
        while not self._lock.acquire(timeout=POLL):
            workers = self._workers
            if workers is not None and workers.unanswered_for() > BUSY_AFTER:
                raise ForwarderBusy("the forwarder is busy: it has not answered an earlier request")
        try:
            yield
        finally:
            self._lock.release()

    def _running(self, family: Family) -> WorkerProcesses:
        if self._closed:
            raise KernelError("the forwarder was closed")
        if self._workers is not None and not self._workers.running():
            self._lose("it ended")
        if family in self._lost:
            self._lost.discard(family)
            raise KernelError(ENDED)
        if self._workers is None:
            self._workers = WorkerProcesses(self._settings)
            log.v(2).info("Forwarder started", pids=self._workers.pids)
        return self._workers

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        """End all workers when one of them fails, as it is unknown how much of the request they did."""
        try:
            yield
        except WorkerError as error:
            self._lose(str(error))
            raise KernelError(f"{ENDED}: {error}") from error

    def _lose(self, why: str) -> None:
        assert self._workers is not None
        pids = self._workers.pids
        log.error(
            "A forwarder process has ended, and all forwarded connections with it; starting the forwarder again",
            why=why,
            pids=pids,
            statuses=self._workers.end(),
        )
        self._workers = None
        self._lost |= {family for family, keys in self._listening.items() if keys}
        for keys in self._listening.values():
            keys.clear()
