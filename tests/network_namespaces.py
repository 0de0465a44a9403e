"""Network namespaces for tests of the real kernel: fixtures that give a test one of its own, and commands in one."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import pytest

from kproxy.kernel.commands import Commands, Completed
from kproxy.lab.namespaces import Namespace, unavailable

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)  # os.unshare and os.setns came with Python 3.12


@pytest.fixture
def netns() -> Iterator[None]:
    """The test's thread, and the commands and threads that it starts, are in a fresh network namespace with lo up."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if LIBC.unshare(CLONE_NEWNET):
            pytest.skip(f"no network namespace to be had: {os.strerror(ctypes.get_errno())}")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            assert LIBC.setns(home, CLONE_NEWNET) == 0, "cannot get back into the network namespace of the tests"
    finally:
        os.close(home)


@pytest.fixture
def shell(netns: None) -> Callable[..., str]:
    """Runs a command line with an input in the namespace and returns its output; skips the test without the command."""

    def run(line: str, stdin: str = "") -> str:
        tool = line.split()[0]
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
        done = subprocess.run(["sh", "-c", line], input=stdin, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout

    return run


@contextmanager
def fresh_namespace(name: str, *tools: str) -> Iterator[Namespace]:
    """A namespace of that name, closed in the end; skips the test where it, or one of the tools, cannot be had."""
    if reason := unavailable(tools):
        pytest.skip(reason)
    with closing(Namespace(name)) as space:
        yield space


class InNamespace:
    """The host's commands, run inside a network namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._commands = Commands()

    def run(self, argv: Sequence[str], stdin: bytes | None = None, timeout: float = 60.0) -> Completed:
        return self._namespace.call(self._commands.run, argv, stdin, timeout)

    def which(self, name: str) -> str | None:
        return self._commands.which(name)
