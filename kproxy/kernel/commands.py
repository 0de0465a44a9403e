"""Running the host's commands, behind a seam of two methods.

Decides: how a command is started (no shell, no inherited descriptors, the C locale), and which process ids count as
ours when the kernel says who changed its tables. Leaves out: what the commands mean, and retrying them.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from kproxy.errors import CommandError
from kproxy.kernel import host_checks

MISSING = 127  # what a shell reports for a command that it cannot find
TIMED_OUT = 124  # what timeout(1) reports
# For so many seconds after a command's end a change under its process id is still taken for its own: enough to read
# what the kernel said of it, and soon over, since programs in other containers have the same ids.
REMEMBERED = 5.0
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


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
    """Runs commands on the host."""

    def run(self, argv: Sequence[str], stdin: bytes | None = None, timeout: float = 60.0) -> Completed:
        """Run ARGV to its end, at most TIMEOUT seconds; STDIN None means an empty input.

        A failing command is no error here, its status tells. Raises CommandError when it cannot be started (status
        MISSING when there is no such command) and when it was killed for taking too long (TIMED_OUT).
        """

    def which(self, name: str) -> str | None:
        """The path of a command, None when the host has none of that name."""


def checked(runner: Runner, argv: Sequence[str], stdin: bytes | None = None, timeout: float = 60.0) -> Completed:
    """Run ARGV and raise CommandError unless it ends with status 0."""
    done = runner.run(argv, stdin, timeout)
    if not done.ok:
        raise CommandError(argv, done.status, done.stderr)
    return done


class Commands:
    """The host's own commands. Safe to use from several threads."""

    def __init__(
        self, environment: Mapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """environment: added to this process's own for every command. clock: in seconds, never set back."""
        path = os.environ.get("PATH") or SEARCH_PATH
        self._environment = {**os.environ, "PATH": path, **(environment or {}), "LC_ALL": "C", "LANG": "C"}
        self._ended: dict[int, float] = {}  # by process id: when, by the monotonic clock; infinity while it runs
        self._clock, self._lock = clock, threading.Lock()

    def run(self, argv: Sequence[str], stdin: bytes | None = None, timeout: float = 60.0) -> Completed:
        """As Runner.run."""
        with self._start(argv) as process, self._remembered(process.pid):
            try:
                stdout, stderr = process.communicate(stdin or b"", timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                _, stderr = process.communicate()
                said = stderr.decode(errors="replace").strip()
                message = f"took longer than {timeout:g} s" + (f": {said}" if said else "")
                raise CommandError(argv, TIMED_OUT, message) from None
            except BaseException:
                process.kill()
                raise
        return Completed(process.returncode, stdout, stderr.decode(errors="replace"), process.pid)

    def which(self, name: str) -> str | None:
        """As Runner.which."""
        return shutil.which(name, path=self._environment["PATH"])

    def recent_pids(self) -> frozenset[int]:
        """This process, its threads, and the children that run or have just ended: what these change is our doing."""
        since = self._clock() - REMEMBERED
        with self._lock:
            self._ended = {pid: ended for pid, ended in self._ended.items() if ended > since}
            return frozenset((os.getpid(), *_threads(), *self._ended))

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
                argv, stdin=pipe, stdout=pipe, stderr=pipe, env=self._environment, close_fds=True, cwd="/"
            )
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            raise CommandError(argv, MISSING if missing else 126, error.strerror or str(error)) from None
        except ValueError as error:  # a NUL in an argument
            raise CommandError(argv, 126, str(error)) from None


def _threads() -> list[int]:
    """The ids under which the kernel may name this process. In a container it names no threads (see
    kproxy.netfilter.notifications), and others' processes may have their ids."""
    if not host_checks.are_the_kernels():
        return []
    return [thread.native_id for thread in threading.enumerate() if thread.native_id]
