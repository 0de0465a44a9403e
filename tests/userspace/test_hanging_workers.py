"""A worker that hangs or talks nonsense costs the caller that asked it, for a bounded time, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kproxy.errors import KernelError
from kproxy.model.plans import Family
from kproxy.modes.userspace import worker_processes
from kproxy.modes.userspace.forwarder import ForwarderProcess
from kproxy.modes.userspace.listeners import ForwarderBusy, Statistics
from kproxy.modes.userspace.messages import Counted, Settings, Update, Updated, encode
from tests.userspace.peers import WEB, Port, endpoint, eventually, forwarding, named, say

pytestmark = pytest.mark.slow  # starts processes

TWO = Settings(workers=2)
SOON = 2.0


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes, "ANSWER_TIMEOUT", SOON)


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Call(threading.Thread):
    """A call in a thread of its own: how long it took, and the error that it raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.seconds = 0.0
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        began = time.monotonic()
        try:
            self._call()
        except Exception as error:
            self.error = error
        self.seconds = time.monotonic() - began


@pytest.mark.parametrize("which", [0, 1])
def test_while_one_family_waits_for_a_worker_the_other_is_told_at_once(which: int) -> None:
    with named(1) as (one,), endpoint(say(b"six"), "::1") as six, forwarding(one, settings=TWO) as port:
        other = Port(port.forwarder, Family.IPV6, WEB).lead_to(six)
        os.kill(port.forwarder.pids[which], signal.SIGSTOP)
        waiting = Call(lambda: port.lead_to(six))
        time.sleep(0.1)
        for call in (lambda: other.lead_to(one), port.forwarder.statistics):
            prompt = Call(call)
            prompt.join(5)
            assert isinstance(prompt.error, ForwarderBusy)
            assert prompt.seconds < 0.8
        assert other.alive(), "nothing is lost yet"
        waiting.join(SOON + 3)
        assert SOON <= waiting.seconds < SOON + 1.5
        assert "does not answer" in str(waiting.error)
        # As after any end of a worker: each family hears of it once, and has new ones then.
        assert not other.alive()
        with pytest.raises(KernelError, match="has ended"):
            other.lead_to(six)
        assert (port.lead_to(one).fetch(), other.lead_to(six).fetch()) == (b"0", b"six")


def test_a_worker_that_hangs_for_a_moment_costs_nothing_but_a_scrape() -> None:
    with named(1) as (one,), forwarding(one, settings=TWO) as port:
        pids = port.forwarder.pids
        with hanging(pids[1]):
            for _ in range(2):
                scrape = Call(port.forwarder.statistics)
                scrape.join(5)
                assert isinstance(scrape.error, ForwarderBusy)
                assert scrape.seconds < 1.5
        port.fetch()
        assert port.lead_to(one).fetch() == b"0"
        assert eventually(lambda: port.forwarder.statistics().accepted == 2)
        assert port.forwarder.pids == pids


def test_closing_does_not_wait_for_a_worker_that_hangs() -> None:
    with named(1) as (one,), forwarding(one, settings=TWO) as port:
        os.kill(port.forwarder.pids[0], signal.SIGSTOP)
        waiting = Call(lambda: port.lead_to(one))
        time.sleep(0.1)
        closing = Call(port.forwarder.close)
        closing.join(5)
        assert closing.seconds < 1
        waiting.join(5)
        assert isinstance(waiting.error, KernelError)


WORKER = """
import socket, sys, time
control = socket.socket(fileno=int(sys.argv[2]))
while control.recv(65536):
    control.sendall(bytes.fromhex(sys.argv[1]))
"""

GARBAGE = {
    "not a message": b"\x00\x00\x00\x04\xff\xff\xff\xff",
    "a message of another kind": b"\x00\x00\x00\x07\x81\xa4type\x01",
    "a huge message": b"\xff\xff\xff\xff",
    "counters instead of ports": encode(Counted(Statistics())),
    "too few ports": encode(Updated([])),
    "too many ports": encode(Updated([4000, 4001])),
    "a port that is none": encode(Updated([70_000])),
    "a closed listener that was to be opened": encode(Updated([None])),
    "two answers": encode(Updated([4000])) * 2,
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_worker_that_answers_garbage_is_a_kernel_error_and_replaced(
    monkeypatch: pytest.MonkeyPatch, garbage: bytes
) -> None:
    start: Any = subprocess.Popen

    def corrupt(argv: list[str], **options: Any) -> Any:
        return start([sys.executable, "-c", WORKER, garbage.hex(), argv[3]], **options)

    with named(1) as (one,):
        forwarder = ForwarderProcess(Settings(workers=1))
        port = Port(forwarder, Family.IPV4, WEB)
        try:
            with monkeypatch.context() as patched:
                patched.setattr(subprocess, "Popen", corrupt)
                with pytest.raises(KernelError, match="has ended: a worker"):
                    port.lead_to(one)
                assert forwarder.pids == ()
            assert port.lead_to(one).fetch() == b"0"
        finally:
            forwarder.close()


def test_counters_that_are_none_are_a_kernel_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with named(1) as (one,), forwarding(one, settings=TWO) as port:
        port.fetch()
        monkeypatch.setattr(worker_processes, "Count", lambda: Update(Family.IPV4, []))
        with pytest.raises(KernelError, match="other than its counters"):
            port.forwarder.statistics()
        assert not port.alive()
