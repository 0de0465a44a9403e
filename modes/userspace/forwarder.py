"""The daemon's side of the forwarder: starts its process, tells it what to listen for, and notices its end."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping

import msgspec

from kproxy import logs
from kproxy.errors import KernelError
from kproxy.model.plans import Family
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Statistics
from kproxy.modes.userspace.messages import Answer, Count, Counted, Messages, Request, Settings, Update, Updated, packed

__all__ = ["ForwarderProcess"]

PATIENCE = 30.0  # seconds that one request may take
SLICE = 64  # changes in one request; the process forwards between two of them
ONCE = 65_536
GONE = "the forwarder's process has ended"

log = logs.get("userspace")
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class ForwarderProcess:
    """As listeners.Forwarder. The process runs in the network namespace of the thread that makes it start."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Nothing is started yet; the first `update` does that."""
        self._settings = settings if settings is not None else Settings()
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._listening: dict[Family, set[ListenerKey]] = {family: set() for family in Family}
        self._lost: set[Family] = set()
        self._closed = False

    def update(self, family: Family, changes: Mapping[ListenerKey, Listener | None]) -> Mapping[ListenerKey, int | str]:
        """As listeners.Forwarder.update."""
        with self._lock:
            process = self._running(family)
            answer: dict[ListenerKey, int | str] = {}
            parts = iter(changes.items())
            while part := list(itertools.islice(parts, SLICE)):
                answer |= self._ask_update(process, family, part)
            return answer

    def alive(self) -> bool:
        """As listeners.Forwarder.alive."""
        if self._closed or self._lost:
            return False
        process = self._process
        return process is None or process.runs() or not any(self._listening.values())

    def statistics(self) -> Statistics:
        """As listeners.Forwarder.statistics; before the first `update` nothing was counted."""
        with self._lock:
            if self._process is None and not self._closed and not self._lost:
                return Statistics()
            if self._process is None:
                raise KernelError(GONE)
            counted = self._ask(self._process, Count())
            assert isinstance(counted, Counted)
            return counted.statistics

    @property
    def pid(self) -> int:
        """The process's id, 0 when none was started or it was found to have ended."""
        process = self._process
        return process.pid if process is not None else 0

    def close(self) -> None:
        """As listeners.Forwarder.close. May be called again."""
        self._closed = True
        with self._lock:
            if self._process is not None:
                self._process.end()
                self._process = None

    # ---- inside

    def _running(self, family: Family) -> _Process:
        if self._closed:
            raise KernelError("the forwarder was closed")
        if self._process is not None and not self._process.runs():
            self._lose()
        if family in self._lost:
            self._lost.discard(family)
            raise KernelError(GONE)
        if self._process is None:
            self._process = _Process(self._settings)
            log.v(2).info("Forwarder started", pid=self._process.pid)
        return self._process

    def _ask_update(
        self, process: _Process, family: Family, part: list[tuple[ListenerKey, Listener | None]]
    ) -> dict[ListenerKey, int | str]:
        try:
            updated = self._ask(process, Update(family, part))
        except KernelError:
            self._lost.discard(family)  # this error tells it
            raise
        assert isinstance(updated, Updated)
        made = {key: port for (key, _), port in zip(part, updated.ports, strict=True) if port is not None}
        for key, _ in part:
            if isinstance(made.get(key), int):
                self._listening[family].add(key)
            else:
                self._listening[family].discard(key)
        return made

    def _ask(self, process: _Process, request: Request) -> Answer:
        try:
            return process.ask(request)
        except (OSError, msgspec.MsgspecError) as error:
            # Whatever it did or did not do, nothing of it is left.
            self._lose()
            raise KernelError(f"{GONE}: {error}" if str(error) else GONE) from error

    def _lose(self) -> None:
        assert self._process is not None
        status = self._process.end()
        log.error("The forwarder's process has ended", pid=self._process.pid, status=status)
        self._process = None
        self._lost |= {family for family, keys in self._listening.items() if keys}
        for keys in self._listening.values():
            keys.clear()


class _Process:
    """One life of the process."""

    def __init__(self, settings: Settings) -> None:
        """Raises KernelError when it cannot be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "kproxy.modes.userspace.process", str(theirs.fileno())]
            try:
                self._process = subprocess.Popen(
                    [*command, msgspec.json.encode(settings).decode()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
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
        """Raises OSError when it is gone or silent."""
        self._socket.sendall(packed(request))
        while True:
            data = self._socket.recv(ONCE)
            if not data:
                raise OSError
            if answers := list(self._messages.feed(data)):
                return answers[0]

    def end(self) -> int:
        """End it for sure; the exit status, negative when a signal ended it."""
        self._socket.close()
        if self.runs():
            self._process.kill()
        return self._process.wait()
