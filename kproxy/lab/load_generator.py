"""An open-loop load generator: opens connections at a fixed rate, whatever happens to earlier ones.

Run as `python -m kproxy.lab.load_generator`, a process of its own, so that the lab's process does not affect its rate
and timeouts. It reads one line of JSON from standard input (`Plan`), prints "ready" once its lasting connections are
open, runs until standard input ends, and then prints its results as one line of JSON (`Results`). Times are seconds of
the monotonic clock, which all processes of a host share.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
TOTAL_RETRANSMISSIONS = 100  # offset of tcpi_total_retrans in struct tcp_info, include/uapi/linux/tcp.h
QUESTION = b"who\n"


class Target(NamedTuple):
    """Where to connect to: from which namespace, over TCP or UDP, and which pods may answer."""

    name: str
    space: str
    udp: bool
    ip: str
    port: int
    pods: tuple[str, ...]


class Failure(NamedTuple):
    """A failure: when the attempt began (for a lasting connection, when it was noticed), its target, and the reason."""

    when: float
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The load to generate, as the generator reads it.

    rate: connections a second, over all targets in turn. held: the targets of lasting connections, one each (over UDP,
    a flow that keeps its source port). beat: seconds between two lines on a lasting connection. patience: seconds to
    wait for an answer. spaces: files of the namespaces, by name.
    """

    targets: tuple[Target, ...]
    held: tuple[Target, ...]
    spaces: Mapping[str, str]
    rate: float
    beat: float
    patience: float


@dataclass(slots=True)
class Results:
    """The results of a run.

    made, answered: connections (or single datagrams) by target. held: lasting connections. beats: answers on them.
    failures: in order. again: TCP connections whose first segment was retransmitted, which a user notices as a delay of
    a second. late: the largest delay behind the rate, in seconds.
    """

    made: dict[str, int] = field(default_factory=Counter)
    answered: dict[str, int] = field(default_factory=Counter)
    held: int = 0
    beats: int = 0
    failures: list[Failure] = field(default_factory=list)
    again: list[Failure] = field(default_factory=list)
    late: float = 0.0


@dataclass(slots=True, eq=False)
class _Attempt:
    """One pending connection or datagram."""

    target: Target
    socket: socket.socket
    since: float
    heard: bytes = b""


@dataclass(slots=True, eq=False)
class _Lasting:
    """A lasting connection or flow. waiting: when each line without an answer was sent."""

    target: Target
    socket: socket.socket
    pod: str
    waiting: deque[float] = field(default_factory=deque)


class _Spaces:
    """Makes sockets in any of the namespaces, from this one thread."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._fds = {name: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for name, path in files.items()}
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._here = ""

    def socket(self, target: Target) -> socket.socket:
        if target.space != self._here:
            if self._libc.setns(self._fds[target.space], CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter the namespace {target.space}")
            self._here = target.space
        family = socket.AF_INET6 if ":" in target.ip else socket.AF_INET
        return socket.socket(family, socket.SOCK_DGRAM if target.udp else socket.SOCK_STREAM)


class _Generator:
    def __init__(self, plan: Plan) -> None:
        self.results = Results()
        self._plan = plan
        self._spaces = _Spaces(plan.spaces)
        self._selector = selectors.DefaultSelector()
        self._attempts: deque[_Attempt] = deque()
        self._open: set[_Attempt] = set()
        self._lasting: list[_Lasting] = []

    def hold(self) -> None:
        """Open the lasting connections."""
        for target in self._plan.held:
            try:
                self._lasting.append(self._lasting_one(target))
            except (OSError, ValueError) as error:
                self._fail(target, f"no lasting connection: {_words(error)}")
        self.results.held = len(self._lasting)

    def run(self) -> None:
        """Run until standard input ends, and finish what was begun."""
        self._selector.register(sys.stdin, selectors.EVENT_READ, None)
        began, opened, beats, going = time.monotonic(), 0, 0, True
        while going or self._open:
            now = time.monotonic()
            while going and (due := began + opened / self._plan.rate) <= now:
                self.results.late = max(self.results.late, now - due)
                self._begin(self._plan.targets[opened % len(self._plan.targets)], now)
                opened += 1
            pause = self._plan.beat / max(1, len(self._lasting))
            while going and self._lasting and began + beats * pause <= now:
                self._beat(self._lasting[beats % len(self._lasting)], now)
                beats += 1
            for key, _ in self._selector.select(0.002 if going else 0.02):
                if key.data is None:
                    going = False
                    self._selector.unregister(sys.stdin)
                else:
                    self._hear(key.data)
            self._check_timeouts(time.monotonic())
        self._last_beats()

    # ---- connections that end at once

    def _begin(self, target: Target, now: float) -> None:
        self.results.made[target.name] += 1
        own = self._spaces.socket(target)
        own.setblocking(False)
        attempt = _Attempt(target, own, now)
        try:
            own.connect_ex((target.ip, target.port))
            if target.udp:
                own.send(QUESTION)
        except OSError as error:
            own.close()
            self._fail(target, _words(error))
            return
        self._attempts.append(attempt)
        self._open.add(attempt)
        self._selector.register(own, selectors.EVENT_READ, attempt)

    def _answer(self, attempt: _Attempt) -> None:
        try:
            data = attempt.socket.recv(4096)
            attempt.heard += data
            if data and not attempt.heard.endswith(b"\n"):
                return
            if not attempt.target.udp and _sent_again(attempt.socket):
                self.results.again.append(Failure(attempt.since, attempt.target.name, "sent again"))
            pod = _pod(attempt.heard)
            if pod in attempt.target.pods:
                self.results.answered[attempt.target.name] += 1
            else:
                self._fail(attempt.target, f"answered by {pod}", attempt.since)
        except (OSError, ValueError) as error:
            self._fail(attempt.target, _words(error), attempt.since)
        self._end(attempt)

    def _end(self, attempt: _Attempt) -> None:
        self._open.discard(attempt)
        self._selector.unregister(attempt.socket)
        attempt.socket.close()

    def _check_timeouts(self, now: float) -> None:
        while self._attempts and (self._attempts[0] not in self._open or self._timed_out(self._attempts[0].since, now)):
            attempt = self._attempts.popleft()
            if attempt in self._open:
                self._fail(attempt.target, "timed out", attempt.since)
                self._end(attempt)
        for each in list(self._lasting):
            if each.waiting and self._timed_out(each.waiting[0], now):
                self._lose(each, "no answer any more")

    def _timed_out(self, since: float, now: float) -> bool:
        return now - since > self._plan.patience

    # ---- lasting ones

    def _lasting_one(self, target: Target) -> _Lasting:
        own = self._spaces.socket(target)
        own.settimeout(self._plan.patience)
        own.connect((target.ip, target.port))
        if target.udp:
            own.send(QUESTION)
        pod = _pod(own.recv(4096))
        own.setblocking(False)
        made = _Lasting(target, own, pod)
        self._selector.register(own, selectors.EVENT_READ, made)
        return made

    def _beat(self, each: _Lasting, now: float) -> None:
        try:
            each.socket.send(QUESTION)
            each.waiting.append(now)
        except OSError as error:
            self._lose(each, _words(error))

    def _hear(self, what: _Attempt | _Lasting) -> None:
        if isinstance(what, _Attempt):
            self._answer(what)
        elif what in self._lasting:
            self._echo(what)

    def _echo(self, each: _Lasting) -> None:
        try:
            data = each.socket.recv(4096)
            if not data:
                self._lose(each, "closed")
            elif each.target.udp and _pod(data) != each.pod:
                self._lose(each, f"moved from {each.pod} to {_pod(data)}")
            else:
                for _ in range(1 if each.target.udp else data.count(b"\n")):
                    each.waiting.popleft()
                    self.results.beats += 1
        except (OSError, ValueError) as error:
            self._lose(each, _words(error))

    def _lose(self, each: _Lasting, why: str) -> None:
        self._fail(each.target, f"lasting: {why}")
        self._lasting.remove(each)
        self._selector.unregister(each.socket)
        each.socket.close()

    def _last_beats(self) -> None:
        until = time.monotonic() + self._plan.patience
        while any(each.waiting for each in self._lasting) and time.monotonic() < until:
            for key, _ in self._selector.select(0.02):
                self._hear(key.data)
        for each in [each for each in self._lasting if each.waiting]:
            self._lose(each, "no answer any more")

    def _fail(self, target: Target, why: str, since: float | None = None) -> None:
        self.results.failures.append(Failure(time.monotonic() if since is None else since, target.name, why))


def _pod(data: bytes) -> str:
    """The pod that answered. Raises ValueError if it is not an answer of the lab's servers."""
    if not data:
        raise ValueError("closed without an answer")
    return str(json.loads(data)["pod"])


def _sent_again(connection: socket.socket) -> bool:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TOTAL_RETRANSMISSIONS + 4)
    (number,) = struct.unpack_from("=I", info, TOTAL_RETRANSMISSIONS)
    return bool(number)


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def _main() -> None:
    generator = _Generator(msgspec.json.decode(sys.stdin.readline(), type=Plan))
    generator.hold()
    print("ready", flush=True)
    generator.run()
    print(msgspec.json.encode(generator.results).decode(), flush=True)


if __name__ == "__main__":
    _main()
