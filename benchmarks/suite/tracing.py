"""Bytes written to the kernel per change, seen by strace, so that it works for any proxy."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.suite.probing import Prober
from benchmarks.suite.results import Quantity
from benchmarks.suite.traces import CALLS, written
from benchmarks.suite.trials import LOOSE, Trial
from kproxy.errors import KernelError
from kproxy.lab.proxies import wait_for

CHANGES = 5
REST = 0.5  # seconds after a change's proof, for what is written later


def measure(trial: Trial, prober: Prober) -> None:
    """A few endpoints replaced while strace follows the proxy and what it starts. Its times are nobody's business."""
    if shutil.which("strace") is None:
        trial.problem("bytes written to the kernel: strace is not installed")
        return
    samples = []
    with TemporaryDirectory(prefix="kproxy-trace-") as folder, _traced(trial, Path(folder, "trace")) as trace:
        read = 0
        for turn in trial.turns("bytes to the kernel", min(CHANGES, trial.limits.changes), warm_up=1):
            trial.reach(prober, trial.objects.replace(trial.probed[turn % len(trial.probed)]), LOOSE)
            time.sleep(REST)
            content = trace.read_bytes()
            if turn >= 0:
                samples.append(float(written(content[read:].decode(errors="replace").splitlines())))
            read = content.rfind(b"\n") + 1
    trial.record(Quantity.BYTES_PER_CHANGE, samples, "an endpoint replaced")


@contextlib.contextmanager
def _traced(trial: Trial, file: Path) -> Iterator[Path]:
    """Raises KernelError where a process cannot be traced."""
    members = trial.proxy.members()
    argv = ["strace", "-f", "-qq", "-yy", "-e", f"trace={','.join(CALLS)}", "-e", "signal=none", "-e", "verbose=none"]
    argv += ["-s", "0", "-o", str(file), *(part for pid in members for part in ("-p", str(pid)))]
    with file.with_suffix(".log").open("w+b") as log:
        tracer = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            wait_for(lambda: tracer.poll() is not None or all(map(_attached, members)), 10)
            if tracer.poll() is not None:
                raise KernelError(f"strace: {file.with_suffix('.log').read_text()[:200]}")
            yield file
        finally:
            tracer.send_signal(signal.SIGINT)  # it lets go of them and ends
            tracer.wait(timeout=30)


def _attached(pid: int) -> bool:
    """Whether every thread of a process is traced, or it is gone."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return all("\nTracerPid:\t0\n" not in (thread / "status").read_text() for thread in threads)
    except OSError:
        return not Path(f"/proc/{pid}").exists()
