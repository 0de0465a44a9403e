"""The forwarder's worker processes as the daemon controls them: started, asked and ended together.

Whatever a worker does wrong (it ends, is silent, or sends an invalid answer) is a WorkerError; the caller ends all of
them then. Leaves out: restarting them, and who may ask when (kproxy.modes.userspace.forwarder).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress

import msgspec

from kproxy.errors import KernelError, one_line
from kproxy.model.plans import Family
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Statistics
from kproxy.modes.userspace.messages import (
    Answer,
    Change,
    Count,
    Counted,
    Messages,
    Request,
    Settings,
    Update,
    Updated,
    answers,
    encode,
)

START_TIMEOUT = 30.0  # seconds for a worker's first answer, which includes its start
ANSWER_TIMEOUT = 10.0  # seconds for any other
END_TIMEOUT = 5.0  # seconds for the kernel to end a killed process
MAX_WORKERS = 4
COUNTERS = 65_536  # listeners with a round-robin counter of their own; any more share one
RECEIVE = 65_536


class WorkerError(KernelError):
    """A worker has ended, does not answer in time, or sent an invalid answer."""


class AnswerOverdue(WorkerError):
    """The time for an answer is over. The worker may be asked again; the late answer is discarded."""


class WorkerProcesses:
    """One generation of workers. Not for two threads at a time, but for `running`, `unanswered_for` and `kill`."""

    def __init__(self, settings: Settings) -> None:
        """Raises KernelError when they cannot be started."""
        number = settings.workers or min(MAX_WORKERS, len(os.sched_getaffinity(0)))
        self._workers: list[WorkerProcess] = []
        self._counters: dict[tuple[Family, ListenerKey], int] = {}
        self._free_counters = list(range(COUNTERS - 1, 0, -1))
        self._asked_at: float | None = None
        memory = os.memfd_create("kproxy-round-robin", os.MFD_CLOEXEC)
        try:
            os.truncate(memory, 4 * COUNTERS)
            for index in range(number):
                self._workers.append(WorkerProcess(settings, memory, index, number))
        except BaseException:
            self.end()
            raise
        finally:
            os.close(memory)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(worker.pid for worker in self._workers)

    def running(self) -> bool:
        """Whether all workers are running."""
        return all(worker.running() for worker in self._workers)

    def unanswered_for(self) -> float:
        """Seconds for which a worker that has started has not answered the present request; 0 without one."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    def update(self, family: Family, part: dict[ListenerKey, Listener | None]) -> dict[ListenerKey, int | str]:
        """Have all workers make the changes. Returns what Forwarder.update does. Raises WorkerError.

        One after another: the order in which they bind a port is the order by which the kernel numbers their sockets.
        """
        changes = [self._change(family, key, wanted) for key, wanted in part.items()]
        found: dict[ListenerKey, int | str] = {}
        for worker in self._workers:
            found |= self._update(worker, family, [c for c in changes if not isinstance(found.get(c.key), str)])
            changes = [msgspec.structs.replace(change, port=_port(found.get(change.key))) for change in changes]
        self._withdraw(family, [key for key, answer in found.items() if isinstance(answer, str)])
        for key in [key for key in part if not _port(found.get(key))]:
            self._release_counter(family, key)
        return found

    def count(self, seconds: float) -> Statistics:
        """The sum of the workers' counters. Raises AnswerOverdue when they take longer than `seconds`, or
        WorkerError."""
        until = time.monotonic() + seconds
        total = Statistics()
        for worker in self._workers:
            counted = self._ask(worker, Count(), until - time.monotonic())
            if not isinstance(counted, Counted):
                raise WorkerError("a worker answered with something other than its counters")
            total = _sum(total, counted.statistics)
        return total

    def kill(self) -> None:
        """Kill all workers, so that whoever waits for an answer gets an error at once. From any thread."""
        for worker in self._workers:
            worker.kill()

    def end(self) -> tuple[int | None, ...]:
        """Kill all workers and wait a little. Returns their exit statuses; None for one that has not ended yet."""
        self.kill()
        return tuple(worker.end() for worker in self._workers)

    def _change(self, family: Family, key: ListenerKey, wanted: Listener | None) -> Change:
        place = family, key
        if wanted is not None and place not in self._counters:
            self._counters[place] = self._free_counters.pop() if self._free_counters else 0
        return Change(key, wanted, 0, self._counters.get(place, 0))

    def _release_counter(self, family: Family, key: ListenerKey) -> None:
        counter = self._counters.pop((family, key), 0)
        if counter:
            self._free_counters.append(counter)

    def _update(self, worker: WorkerProcess, family: Family, changes: list[Change]) -> dict[ListenerKey, int | str]:
        updated = self._ask(worker, Update(family, changes), ANSWER_TIMEOUT)
        if not isinstance(updated, Updated) or len(updated.ports) != len(changes):
            raise WorkerError("a worker answered with something other than its ports")
        found = {}
        for change, port in zip(changes, updated.ports, strict=True):
            if not _answers(change, port):
                raise WorkerError(f"a worker answered {port!r} for {change.key}")
            if port is not None:
                found[change.key] = port if isinstance(port, int) else one_line(port)
        return found

    def _withdraw(self, family: Family, keys: list[ListenerKey]) -> None:
        """Close these in every worker: what one of them could not open, none of them has."""
        if keys:
            for worker in self._workers:
                self._update(worker, family, [Change(key, None) for key in keys])

    def _ask(self, worker: WorkerProcess, request: Request, seconds: float) -> Answer:
        if not worker.started:
            return worker.ask(request, START_TIMEOUT)
        self._asked_at = time.monotonic()
        try:
            return worker.ask(request, seconds)
        finally:
            self._asked_at = None


def _answers(change: Change, port: int | str | None) -> bool:
    """Whether PORT is an answer to `change`."""
    if isinstance(port, int):
        return change.listener is not None and 0 < port < 65_536 and change.port in (0, port)
    return (port is None) == (change.listener is None)


def _port(answer: int | str | None) -> int:
    return answer if isinstance(answer, int) else 0


def _sum(one: Statistics, other: Statistics) -> Statistics:
    counts = {
        name: getattr(one, name) + getattr(other, name) for name in Statistics.__struct_fields__ if name != "refused"
    }
    reasons = {*one.refused, *other.refused}
    refused = {reason: one.refused.get(reason, 0) + other.refused.get(reason, 0) for reason in sorted(reasons)}
    return Statistics(**counts, refused=refused)


class WorkerProcess:
    """One worker process, and the socket over which it is asked. started: it has answered once."""

    def __init__(self, settings: Settings, memory: int, index: int, number: int) -> None:
        """Start worker `index` of `number`. memory: descriptor of the shared counters. Raises KernelError."""
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = (theirs.fileno(), memory, index, number)
            try:
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "kproxy.modes.userspace.worker", *map(str, arguments)),
                        msgspec.json.encode(settings).decode(),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), memory),
                )
            except OSError as error:
                ours.close()
                raise KernelError(f"the forwarder's process cannot be started: {error}") from error
        self.started = False
        self._socket = ours
        self._messages = Messages(answers)
        self._unanswered = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: Request, seconds: float) -> Answer:
        """The answer to `request`. Raises AnswerOverdue after `seconds`, or WorkerError.

        Answers to earlier requests that were overdue are read first and discarded.
        """
        until = time.monotonic() + seconds
        while self._unanswered:
            self._receive(until)
        try:
            self._socket.settimeout(_remaining(until))
            self._socket.sendall(encode(request))
        except OSError as error:
            raise WorkerError(f"a request could not be sent: {error}") from error
        self._unanswered = 1
        while True:
            if received := self._receive(until):
                self.started = True
                return received[-1]

    def kill(self) -> None:
        if self.running():
            self._process.kill()

    def end(self) -> int | None:
        """Kill it. Returns its exit status, negative when a signal ended it; None when it has not ended in time."""
        self._socket.close()
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(END_TIMEOUT)
        return None

    def _receive(self, until: float) -> list[Answer]:
        try:
            self._socket.settimeout(_remaining(until))
            data = self._socket.recv(RECEIVE)
            received = list(self._messages.feed(data))
        except TimeoutError as error:
            raise AnswerOverdue("a worker does not answer") from error
        except (OSError, msgspec.MsgspecError) as error:
            raise WorkerError(f"a worker's answer cannot be read: {error}") from error
        if not data:
            raise WorkerError("a worker has ended")
        self._unanswered -= len(received)
        if self._unanswered < 0:
            raise WorkerError("a worker sent an answer to another request")
        return received


def _remaining(until: float) -> float:
    """Seconds until then as a timeout, which may not be 0."""
    return max(0.001, until - time.monotonic())
