"""The proxy under test: a real `kproxy run` process on a node of the lab, and the folder of manifests it follows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kproxy.config.defaults import METRICS_PORT
from kproxy.errors import KernelError
from kproxy.lab import probes
from kproxy.lab.clusters import CLUSTER_CIDRS
from kproxy.lab.namespaces import Namespace

LONGEST_PAUSE = 0.2  # seconds between two looks at what is waited for
LAST_SYNC = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{"


class Manifests:
    """A folder that a proxy follows; files are replaced atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "manifests"
        self._spare = folder / "spare"
        self.folder.mkdir()

    def put(self, name: str, objects: Iterable[Mapping[str, Any]]) -> None:
        """Write NAME.yaml."""
        self._spare.write_text(yaml.safe_dump_all(objects, sort_keys=False))
        os.replace(self._spare, self.folder / f"{name}.yaml")

    def remove(self, name: str) -> None:
        (self.folder / f"{name}.yaml").unlink()


class Proxy:
    """`kproxy run` in a namespace, as node1.

    manifests: the folder that it follows; None when ARGUMENTS say how to reach an API server. log: where its log goes.
    """

    def __init__(self, space: Namespace, manifests: Path | None, log: Path, arguments: Sequence[str] = ()) -> None:
        self.space, self.log = space, log
        # Not the iptables lock of the host, which all namespaces would share.
        self.environment = {"XTABLES_LOCKFILE": str(log.with_suffix(".lock"))}
        self._argv = [
            *(sys.executable, "-m", "kproxy", "run"),
            *(("--manifests", str(manifests)) if manifests else ()),
            *("--hostname-override", "node1", "--cluster-cidr", CLUSTER_CIDRS),
            *arguments,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. It has not programmed anything yet when this returns."""
        with self.log.open("ab") as log:
            self._process = self.space.spawn(self._argv, log, self.environment)

    @property
    def pid(self) -> int:
        """Its process id. Raises RuntimeError if it was not started."""
        if self._process is None:
            raise RuntimeError("the proxy was not started")
        return self._process.pid

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, with_signal: signal.Signals = signal.SIGTERM, timeout: float = 60) -> int:
        """Send the signal and return the exit status (negative: the signal that ended it)."""
        if self._process is None:
            raise RuntimeError("the proxy was not started")
        self._process.send_signal(with_signal)
        return self._process.wait(timeout)

    def await_ready(self, ready: Callable[[], bool], seconds: float = 300) -> None:
        """Wait until READY holds. Raises KernelError with the end of the log if that takes too long or it ends."""
        if not wait_for(lambda: ready() or not self.running(), seconds) or not self.running():
            raise KernelError(f"kproxy run did not come up: {self.tail(300)}")

    def synced(self) -> int:
        """The number of families that it has programmed since it started, according to its metrics."""
        try:
            _, _, text = self.space.call(probes.http_status, "127.0.0.1", METRICS_PORT, "/metrics")
        except OSError:
            return 0
        lines = [line for line in text.splitlines() if line.startswith(LAST_SYNC)]
        return sum(float(line.rsplit(" ", 1)[1]) > 0 for line in lines)

    def tail(self, size: int = 2000) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""


def choose_backend(space: Namespace, backend: str) -> None:
    """Create the chain by which a kubelet shows which iptables the node uses: "nft" or "legacy"."""
    for command in ("iptables", "ip6tables"):
        space.run([f"{command}-{backend}", "-w", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"])


def wait_for(condition: Callable[[], bool], seconds: float, pause: float = 0.02) -> bool:
    """Wait until CONDITION holds, at most so many seconds; returns whether it does.

    pause: seconds between two looks, at the least: on a slow or busy processor looks would keep from its work what they
    wait for, so they take no more than a third of the time.
    """
    until = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if condition():
            return True
        now = time.monotonic()
        if now > until:
            return False
        time.sleep(max(pause, min(2 * (now - began), LONGEST_PAUSE)))
