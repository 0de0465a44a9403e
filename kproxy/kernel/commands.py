"""Runs the host's commands, behind a seam of two methods.

Decides: how a command is started (no shell, no inherited descriptors, the C locale, a process group of its own), how
long it may take and how much it may print, and which process ids are ours when the kernel reports who changed its
tables. Leaves out: what the commands mean, and retrying them.

A command that takes too long is killed with its process group and is waited for no longer than KILLED seconds: one that
is stuck in the kernel cannot even be killed, and the caller goes on without it. Nothing waits for a process that a
command left running in the background.
"""

from __future__ import annotations

import math
import os
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Protocol

from kproxy.errors import CommandError
from kproxy.kernel import host_checks

NOT_EXECUTABLE, MISSING = 126, 127  # the statuses of a shell for a command that it cannot run, or cannot find
TIMED_OUT = 124  # the status of timeout(1)
TOO_LONG = 125  # for a command that printed more than OUTPUT_LIMIT
REMEMBERED = 5.0
"""Seconds after a command's end in which a change under its process id is still taken for its own: enough to read the
kernel's notification of it, and soon over, since programs in other containers have the same ids."""
LINGER = 0.5
"""Seconds to read on after a command's end while a process that it left behind holds its output open."""
KILLED = 1.0
"""Seconds to wait for the end of a command that was killed."""
OUTPUT_LIMIT = 1 << 28
"""Bytes of standard output that a command may print; iptables-save prints a tenth of it for 10,000 Services."""
ERRORS_LIMIT = 1 << 16
"""Bytes of standard error that are kept, from its start; the rest is read and dropped."""
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ran to its end: exit status (negative: killed by that signal), both streams, process id."""

    status: int
    stdout: bytes = b""
    stderr: str = ""
    pid: int = 0

    @property
    def ok(self) -> bool:
        return self.status == 0


class Runner(Protocol):
    """Runs commands on the host. Safe to use from several threads."""

    def run(self, argv: Sequence[str], stdin: bytes | None = None, timeout: float = 60.0) -> Completed:
        """Run `argv` to its end, at most `timeout` seconds; `stdin` None means an empty input.

        A command that fails does not raise; see the status. Raises CommandError when the command cannot be started
        (status MISSING when there is no such command), and when it was killed because it took too long (TIMED_OUT) or
        printed too much (TOO_LONG).
        """

    def which(self, name: str) -> str | None:
        """The path of a command, None when the host has none of that name."""


def checked(runner: Runner, argv: Sequence[str], stdin: bytes | None = None, timeout: float = 60.0) -> Completed:
    """Run `argv` and raise CommandError unless it ends with status 0."""
    done = runner.run(argv, stdin, timeout)
    if not done.ok:
        raise CommandError(argv, done.status, done.stderr)
    return done


class Commands:
    """The host's own commands."""

    def __init__(
        self, environment: Mapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """environment: added to this process's own for every command. clock: in seconds, never set back."""
        path = os.environ.get("PATH") or SEARCH_PATH
        self._environment = {**os.environ, "PATH": path, **(environment or {}), "LC_ALL": "C", "LANG": "C"}
        self._ended: dict[int, float] = {}  # by process id: when, by `clock`; infinity while it runs
        self._clock, self._lock = clock, threading.Lock()

    def run(self, argv: Sequence[str], stdin: bytes | None = None, timeout: float = 60.0) -> Completed:
        process = self._start(argv)
        with self._remembered(process.pid):
            exchange = _Exchange(process, stdin or b"", timeout)
            try:
                failure = exchange.run()
                said = exchange.errors.decode(errors="replace")
                if failure is not None:
                    status, reason = failure
                    raise CommandError(argv, status, reason + (f": {said.strip()}" if said.strip() else ""))
                return Completed(process.returncode, bytes(exchange.output), said, process.pid)
            finally:
                _end(process)

    def which(self, name: str) -> str | None:
        return shutil.which(name, path=self._environment["PATH"])

    def recent_pids(self) -> frozenset[int]:
        """The ids of this process, its threads, and the children that run or have just ended: what these change is our
        own doing. Safe to call while other threads run commands."""
        since = self._clock() - REMEMBERED
        with self._lock:
            self._ended = {pid: ended for pid, ended in self._ended.items() if ended > since}
            children = list(self._ended)
        return frozenset((os.getpid(), *_threads(), *children))

    @contextmanager
    def _remembered(self, pid: int) -> Iterator[None]:
        with self._lock:
            self._ended[pid] = math.inf
        try:
            yield
        finally:
            with self._lock:
                self._ended[pid] = self._clock()

    def _start(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        try:
            return subprocess.Popen(
                argv, stdin=pipe, stdout=pipe, stderr=pipe, env=self._environment, cwd="/", process_group=0, bufsize=0
            )
        except OSError as error:
            status = MISSING if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
            raise CommandError(argv, status, error.strerror or str(error)) from None
        except ValueError as error:  # a NUL in an argument
            raise CommandError(argv, NOT_EXECUTABLE, str(error)) from None


class _Exchange:
    """Writes a command's input and reads both of its outputs, until it has ended or has to be killed."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes, timeout: float) -> None:
        self.output, self.errors = bytearray(), bytearray()
        self._process, self._left, self._timeout = process, memoryview(stdin), timeout
        self._deadline = time.monotonic() + timeout
        self._check_at = time.monotonic() + LINGER
        self._ended = False

    def run(self) -> tuple[int, str] | None:
        """None when the command has ended, else the status and the reason for which it has to be killed."""
        with selectors.DefaultSelector() as selector:
            for stream, events in (
                (self._process.stdin, selectors.EVENT_WRITE),
                (self._process.stdout, selectors.EVENT_READ),
                (self._process.stderr, selectors.EVENT_READ),
            ):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, events)
            while selector.get_map():
                ready = selector.select(max(0.0, min(LINGER, self._deadline - time.monotonic())))
                for key, _ in ready:
                    if not self._transfer(key.fileobj):  # type: ignore[arg-type]
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                if len(self.output) > OUTPUT_LIMIT:
                    return TOO_LONG, f"printed more than {OUTPUT_LIMIT} bytes"
                self._notice_end()
                if time.monotonic() >= self._deadline:
                    break
        return self._wait()

    def _transfer(self, stream: IO[bytes]) -> bool:
        """Read and write what the pipes allow now; returns whether there may be more."""
        try:
            if stream is self._process.stdin:
                written = os.write(stream.fileno(), self._left[:_AT_ONCE]) if self._left else 0
                self._left = self._left[written:]
                return bool(self._left)
            data = os.read(stream.fileno(), _AT_ONCE)
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        if stream is self._process.stdout:
            self.output += data
        elif len(self.errors) < ERRORS_LIMIT:
            self.errors += data
        return bool(data)

    def _notice_end(self) -> None:
        """After the command's end, read on for LINGER seconds at most."""
        if self._ended or (now := time.monotonic()) < self._check_at:
            return
        self._check_at = now + LINGER
        if self._process.poll() is not None:
            self._ended = True
            self._deadline = min(self._deadline, now + LINGER)

    def _wait(self) -> tuple[int, str] | None:
        try:
            self._process.wait(0 if self._ended else max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return TIMED_OUT, f"took longer than {self._timeout:g} s"
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipes; kill the process group of a command that has not ended."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILLED)


def _threads() -> list[int]:
    """The ids under which the kernel may report this process. In a container it reports none of the threads' ids (see
    kproxy.netfilter.notifications), and processes of others may have them."""
    if not host_checks.in_initial_pid_namespace():
        return []
    return [thread.native_id for thread in threading.enumerate() if thread.native_id]
