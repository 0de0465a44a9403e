"""A real `kproxy run` against the API stand-in, alone in a network namespace, and the questions asked of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.cluster import NODE, Shape
from kproxy.errors import KernelError
from kproxy.lab.links import up
from kproxy.lab.namespaces import Namespace
from kproxy.model.plans import Family

__all__ = ["Daemon", "resident"]

METRICS = "http://127.0.0.1:10249/metrics"
WRITTEN = re.compile(
    r'^kubeproxy_sync_proxy_rules_last_timestamp_seconds\{ip_family="(\w+)"\} ([\d.e+]+)$', re.MULTILINE
)
PATIENCE = 300.0  # seconds; a benchmark that takes longer has found its answer


class Daemon:
    """As a context: the namespace and the server are ready when it begins, and everything is gone when it ends."""

    def __init__(self, shape: Shape, backend: str) -> None:
        """backend: "nft" or "legacy", of iptables mode; or "nftables", for that mode."""
        self.shape, self.backend = shape, backend
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self._port = 0

    def __enter__(self) -> Daemon:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="kproxy-bench-")))
        self._log = folder / "kproxy.log"
        self._environment = {"XTABLES_LOCKFILE": str(folder / "lock")}  # the host's lock is not ours to hold
        try:
            self.space = Namespace("bench")
            self._stack.callback(self.space.close)
            up(self.space)
            self._port = self._serve(folder / "port")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _serve(self, file: Path) -> int:
        families = ",".join(self.shape.families)
        shape = [str(self.shape.services), str(self.shape.endpoints), families]
        log = self._stack.enter_context(file.with_suffix(".log").open("wb"))
        server = self.space.spawn([sys.executable, "-m", "benchmarks.server", *shape, str(file)], log)
        if not _wait_for(lambda: file.exists() or server.poll() is not None) or not file.exists():
            raise KernelError(f"the API stand-in did not start: {file.with_suffix('.log').read_text()[-500:]}")
        return int(file.read_text())

    def start(self) -> None:
        """Start kproxy; nothing is programmed yet."""
        argv = [sys.executable, "-m", "kproxy", "run", "--master", f"http://127.0.0.1:{self._port}"]
        argv += ["--hostname-override", NODE, "--cluster-cidr", "10.128.0.0/9,fd00:244::/32"]
        argv += ["--conntrack-max-per-core", "0"]
        nftables = self.backend == "nftables"
        argv += ["--proxy-mode", "nftables"] if nftables else ["--iptables-backend", self.backend]
        log = self._stack.enter_context(self._log.open("wb"))
        self.started = time.time()
        self._process = self.space.spawn(argv, log, self._environment)

    def written(self, since: float) -> float:
        """When the last family's rules were all written after SINCE, both seconds since the epoch."""
        latest = 0.0

        def done() -> bool:
            nonlocal latest
            if self._process is None or self._process.poll() is not None:
                raise KernelError(f"kproxy run ended: {self._log.read_text()[-500:]}")
            times = self._timestamps()
            latest = max(times.values(), default=0.0)
            waited = min(times.values(), default=0.0) if since == self.started else latest
            return len(times) == len(Family) and waited > since

        if not _wait_for(done):
            raise KernelError(f"kproxy run wrote nothing in {PATIENCE:.0f} s: {self._log.read_text()[-500:]}")
        return latest

    def change(self, item: dict[str, Any]) -> float:
        """Replace an EndpointSlice on the server; when the server was asked to, seconds since the epoch."""
        name = item["metadata"]["name"]
        path = f"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/{name}"
        url = f"http://127.0.0.1:{self._port}{path}"
        request = urllib.request.Request(url, json.dumps(item).encode(), method="PUT")
        request.add_header("Content-Type", "application/json")
        start = time.time()
        self.space.call(_read, request)
        return start

    def memory(self) -> tuple[int, int]:
        """kproxy's resident memory now and at its highest, in bytes."""
        assert self._process is not None
        return resident(self._process.pid)

    def endpoints(self, family: Family) -> int:
        """How many times the kernel leads to an endpoint, by the kernel's tools and not by what kproxy says."""
        if self.backend == "nftables":
            table = "ip" if family is Family.IPV4 else "ip6"
            text = self.space.run(["nft", "-j", "list", "map", table, "kproxy", "endpoints"], timeout=PATIENCE)
            return sum(len(item["map"].get("elem", ())) for item in json.loads(text)["nftables"] if "map" in item)
        return self._rules(family, r"^-A KUBE-SEP-\w+ .*-j DNAT")

    def _rules(self, family: Family, pattern: str) -> int:
        stem = "iptables" if family is Family.IPV4 else "ip6tables"
        text = self.space.run([f"{stem}-{self.backend}-save"], timeout=PATIENCE, env=self._environment)
        return len(re.findall(pattern, text, re.MULTILINE))

    def _timestamps(self) -> dict[str, float]:
        try:
            text = self.space.call(_read, urllib.request.Request(METRICS)).decode()
        except OSError:
            return {}  # not listening yet
        return {family: float(when) for family, when in WRITTEN.findall(text) if float(when)}


def resident(pid: int | str) -> tuple[int, int]:
    """A process's resident memory now and at its highest (VmRSS and VmHWM of proc(5)), in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", text, re.MULTILINE))
    return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024


def _read(request: urllib.request.Request) -> bytes:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        content: bytes = answer.read()
        return content


def _wait_for(condition: Callable[[], bool], interval: float = 0.05) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(interval)
    return False
