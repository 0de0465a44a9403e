"""A network namespace, kept by an open file descriptor, and a few threads of this process inside it.

A thread may be in another network namespace than the rest of its process (setns(2)), and a socket stays in the
namespace in which it was made. So a probe is a function call rather than a process, and a command started from such a
thread runs in the namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

from kproxy.errors import CommandError, KernelError

CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
THREADS = 8
UNLESS_ORPHANED = '[ "$PPID" = "$0" ] && exec "$@"'

P = ParamSpec("P")
T = TypeVar("T")


class Namespace:
    """A new, empty network namespace. Closing it ends the processes started in it and removes it."""

    def __init__(self, name: str) -> None:
        """Raises KernelError where this process may not create one."""
        self.name = name
        self._processes: list[subprocess.Popen[bytes]] = []
        with ThreadPoolExecutor(1) as maker:  # a thread that has left our namespace must not be used for anything else
            self.fd = maker.submit(_unshare).result()
        self._pool = ThreadPoolExecutor(
            THREADS, thread_name_prefix=f"lab-{name}", initializer=_enter, initargs=(self.fd,)
        )

    @property
    def path(self) -> str:
        """The path for `nsenter --net=PATH` while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `function` in a thread of this namespace; at most THREADS of them run at once."""
        return self._pool.submit(function, *args, **kwargs)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in this namespace and return its result."""
        return self.submit(function, *args, **kwargs).result()

    def sysctl(self, values: Mapping[str, str]) -> None:
        """Set kernel parameters, named as under /proc/sys/net; one that this kernel lacks is skipped."""

        def write() -> None:
            for key, value in values.items():
                path = Path("/proc/sys/net") / key
                if path.exists():
                    path.write_text(value)

        self.call(write)

    def run(
        self, argv: Sequence[str], stdin: str = "", timeout: float = 120, env: Mapping[str, str] | None = None
    ) -> str:
        """Run a command to its end and return its standard output; raises CommandError when it fails."""
        done = self.call(
            subprocess.run, argv, input=stdin, capture_output=True, text=True, timeout=timeout, env=_environment(env)
        )
        if done.returncode:
            raise CommandError(argv, done.returncode, done.stderr)
        return str(done.stdout)

    def spawn(
        self, argv: Sequence[str], output: IO[bytes] | int, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command that runs on; `output` takes both its streams. The kernel kills it should we die first."""
        process = self.call(_popen, tied(argv), output, _environment(env))
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End the processes started here and close the namespace, which the kernel removes with its last user."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(timeout=10)
        self._processes.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def tied(argv: Sequence[str], dies_of: str = "KILL") -> list[str]:
    """ARGV wrapped so that the kernel sends the command the signal `dies_of` when this process dies; its pid stays.

    Without setpriv(1) it is `argv` as it is. prctl(2), PR_SET_PDEATHSIG: a parent that has died before causes no
    signal.
    """
    if not shutil.which("setpriv"):
        return [*argv]
    return ["setpriv", "--pdeathsig", dies_of, "--", "/bin/sh", "-c", UNLESS_ORPHANED, str(os.getpid()), *argv]


def unavailable(tools: Sequence[str] = ("iptables-save", "iptables-restore")) -> str:
    """The reason why no lab can be built here, as one line; "" if it can. tools: the commands that are needed."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found"
    try:
        Namespace("check").close()
    except KernelError as error:
        return str(error)
    return ""


def _unshare() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        code = ctypes.get_errno()
        hint = " (root or CAP_SYS_ADMIN is needed)" if code == errno.EPERM else ""
        raise KernelError(f"cannot make a network namespace: {os.strerror(code)}{hint}")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET):
        raise KernelError(f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}")


def _popen(argv: Sequence[str], output: IO[bytes] | int, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env)


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, **(extra or {})}
