"""The forwarder's processes, as the daemon holds them: started together, asked one after another, ended together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import msgspec

from kproxy.errors import KernelError
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
    packed,
)

PATIENCE = 30.0  # seconds that one request may take
MOST = 4
TURNS = 65_536  # listeners with a turn of their own; beyond that they share one
ONCE = 65_536

_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class Workers:
    """One life of all of them."""

    def __init__(self, settings: Settings) -> None:
        """Raises KernelError when they cannot be started."""
        number = settings.workers or min(MOST, len(os.sched_getaffinity(0)))
        self._crew: list[Worker] = []
        self._turns: dict[tuple[Family, ListenerKey], int] = {}
        self._free_turns = list(range(TURNS - 1, 0, -1))
        turns = os.memfd_create("kproxy-turns", os.MFD_CLOEXEC)
        try:
            os.truncate(turns, 4 * TURNS)
            for index in range(number):
                self._crew.append(Worker(settings, turns, index, number))
        except BaseException:
            self.end()
            raise
        finally:
            os.close(turns)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(worker.pid for worker in self._crew)

    def run(self) -> bool:
        """Whether all of them do."""
        return all(worker.runs() for worker in self._crew)

    def update(self, family: Family, part: dict[ListenerKey, Listener | None]) -> dict[ListenerKey, int | str]:
        """Have all of them make PART so. Raises OSError or msgspec.MsgspecError when one does not answer as it should.

        One after another: the order in which they come to a port is the order in which the kernel counts them.
        """
        changes = [self._placed(family, key, wanted) for key, wanted in part.items()]
        answers: dict[ListenerKey, int | str] = {}
        for worker in self._crew:
            answers |= self._ask(worker, family, [change for change in changes if _may(answers.get(change.key))])
            changes = [msgspec.structs.replace(change, port=_port(answers.get(change.key))) for change in changes]
        self._withdraw(family, [key for key, answer in answers.items() if isinstance(answer, str)])
        for key in [key for key in part if not _port(answers.get(key))]:
            self._free_turn(family, key)
        return answers

    def count(self) -> Statistics:
        """What they counted together. Raises OSError or msgspec.MsgspecError like `update`."""
        total = Statistics()
        for worker in self._crew:
            counted = worker.ask(Count())
            assert isinstance(counted, Counted)
            total = _sum(total, counted.statistics)
        return total

    def end(self) -> tuple[int, ...]:
        """End them for sure; their exit statuses, negative when a signal ended one."""
        return tuple(worker.end() for worker in self._crew)

    def _placed(self, family: Family, key: ListenerKey, wanted: Listener | None) -> Change:
        place = family, key
        if wanted is not None and place not in self._turns:
            self._turns[place] = self._free_turns.pop() if self._free_turns else 0
        return Change(key, wanted, 0, self._turns.get(place, 0))

    def _free_turn(self, family: Family, key: ListenerKey) -> None:
        turn = self._turns.pop((family, key), 0)
        if turn:
            self._free_turns.append(turn)

    def _ask(self, worker: Worker, family: Family, changes: list[Change]) -> dict[ListenerKey, int | str]:
        updated = worker.ask(Update(family, changes))
        assert isinstance(updated, Updated)
        pairs = zip(changes, updated.ports, strict=True)
        return {change.key: port for change, port in pairs if port is not None}

    def _withdraw(self, family: Family, keys: list[ListenerKey]) -> None:
        """What one of them could not have none of them has."""
        if keys:
            for worker in self._crew:
                worker.ask(Update(family, [Change(key, None) for key in keys]))


def _may(answer: int | str | None) -> bool:
    return not isinstance(answer, str)


def _port(answer: int | str | None) -> int:
    return answer if isinstance(answer, int) else 0


def _sum(one: Statistics, other: Statistics) -> Statistics:
    counts = {
        name: getattr(one, name) + getattr(other, name) for name in Statistics.__struct_fields__ if name != "refused"
    }
    reasons = {*one.refused, *other.refused}
    refused = {reason: one.refused.get(reason, 0) + other.refused.get(reason, 0) for reason in sorted(reasons)}
    return Statistics(**counts, refused=refused)


class Worker:
    """One life of one process."""

    def __init__(self, settings: Settings, turns: int, index: int, number: int) -> None:
        """As worker INDEX of NUMBER. turns: the descriptor of their shared memory. Raises KernelError."""
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = (theirs.fileno(), turns, index, number)
            try:
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "kproxy.modes.userspace.process", *map(str, arguments)),
                        msgspec.json.encode(settings).decode(),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), turns),
                )
            except OSError as error:
                ours.close()
                raise KernelError(f"the forwarder's process cannot be started: {error}") from error
        ours.settimeout(PATIENCE)
        self._socket = ours
        self._messages = Messages(_answers)

    @property
    def pid(self) -> int:
        return self._process.pid

    def runs(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: Request) -> Answer:
        """Raises OSError when it is gone or silent, msgspec.MsgspecError when it talks nonsense."""
        self._socket.sendall(packed(request))
        while True:
            data = self._socket.recv(ONCE)
            if not data:
                raise OSError
            if answers := list(self._messages.feed(data)):
                return answers[0]

    def end(self) -> int:
        """End it for sure; its exit status."""
        self._socket.close()
        if self.runs():
            self._process.kill()
        return self._process.wait()
