"""A proxy under measurement: its process on the node, and what that costs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import yaml

from benchmarks import processes
from benchmarks.cluster import NODE
from benchmarks.processes import Usage
from benchmarks.suite.subjects import Launch, backend, configuration, words
from kproxy.errors import KernelError, one_line
from kproxy.lab.namespaces import Namespace
from kproxy.lab.proxies import choose_backend

TOOLS = ("", "-save", "-restore")
LOOK = 0.1  # seconds between two looks at its memory
QUIET, LENGTH = 0.02, 0.5  # seconds of processor time in so many seconds: what is less is rest
ENDING = 20.0


class Proxy:
    """As a context: started when it begins, gone with all its children when it ends."""

    def __init__(self, launch: Launch, node: Namespace, kubeconfig: Path, folder: Path, keep_periods: bool) -> None:
        self._node, self._log = node, folder / "proxy.log"
        mode, self._backend, config = launch.subject.mode, backend(launch.subject.mode), folder / "config.yaml"
        config.write_text(yaml.safe_dump(configuration(mode, str(kubeconfig), keep_periods)))
        values = {"config": str(config), "kubeconfig": str(kubeconfig), "node": NODE, "mode": mode.partition("-")[0]}
        self._argv = words(launch.template, values)
        self._environment = {
            "PATH": f"{_tools(folder, self._backend)}{os.environ['PATH']}",
            "XTABLES_LOCKFILE": str(folder / "lock"),  # the host's lock is not ours to hold
        }
        self._ended = threading.Event()
        self._highest = 0
        self.began = 0.0

    def __enter__(self) -> Proxy:
        if self._backend != "auto":
            choose_backend(self._node, self._backend)
        with self._log.open("wb") as log:
            self.began = time.monotonic()
            try:
                self._process: subprocess.Popen[bytes] = self._node.spawn(self._argv, log, self._environment)
            except OSError as error:
                raise KernelError(f"{self._argv[0]}: {error.strerror}") from error
        self._watcher = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()
        members = self.members()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(ENDING)
        for pid in members[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def check(self) -> None:
        """Raises KernelError when it runs no more."""
        if (status := self._process.poll()) is not None:
            raise KernelError(f"it ended with status {status}: {self.last_words()}")

    def last_words(self) -> str:
        """The end of its log, for a line."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return one_line(lines[-1] if lines else "no log", 300)

    def members(self) -> list[int]:
        """The ids of its processes, its own first."""
        return processes.members(self._process.pid)

    def usage(self) -> Usage:
        return processes.usage(self._process.pid)

    def highest(self) -> int:
        """Resident bytes of all its processes together at their highest, as far as looks ten times a second saw it.

        A process counts when two looks in a row saw it. One that was only just forked has its parent's pages, and would
        count them twice.
        """
        return max(self._highest, processes.memory(self._process.pid)[1])

    def _watch(self) -> None:
        before: Mapping[int, int] = {}
        while not self._ended.wait(LOOK):
            now = self.usage().resident
            self._highest = max(self._highest, sum(size for pid, size in now.items() if pid in before))
            before = now


def quiet(proxy: Proxy, seconds: float) -> None:
    """Wait until `proxy` rests, `seconds` at most. Raises KernelError when it ended."""
    end, before = time.monotonic() + seconds, proxy.usage().cpu
    while time.monotonic() < end:
        time.sleep(LENGTH)
        proxy.check()
        now = proxy.usage().cpu
        if now - before < QUIET:
            return
        before = now


def _tools(folder: Path, wanted: str) -> str:
    """What comes first on the PATH so that `iptables` is the `wanted` one; "" where any will do."""
    if wanted == "auto":
        return ""
    place = folder / f"iptables-{wanted}"
    place.mkdir(exist_ok=True)
    for stem in ("iptables", "ip6tables"):
        for tool in TOOLS:
            target, link = shutil.which(f"{stem}-{wanted}{tool}"), place / f"{stem}{tool}"
            if target and not link.is_symlink():
                link.symlink_to(target)
    return f"{place}:"
