"""Bytes written to the kernel per change, measured by strace, so that it works for any proxy.

Counts messages on netlink sockets (nf_tables, IPVS, ipset, conntrack, addresses) and the socket options that replace
legacy tables and IPVS. Reading is not counted, although a request for a list is a few bytes.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.suite.probing import Prober
from benchmarks.suite.results import Quantity
from benchmarks.suite.trials import LOOSE, Trial
from kproxy.errors import KernelError
from kproxy.lab.proxies import wait_for

CHANGES = 5
REST = 0.5  # seconds after a change's proof, for what is written later


def measure(trial: Trial, prober: Prober) -> None:
    """Replace a few endpoints while strace follows the proxy and what it starts. Latencies mean nothing here."""
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
            tracer.send_signal(signal.SIGINT)  # it detaches from them and ends
            tracer.wait(timeout=30)


def _attached(pid: int) -> bool:
    """Whether every thread of a process is traced, or it is gone."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return all("\nTracerPid:\t0\n" not in (thread / "status").read_text() for thread in threads)
    except OSError:
        return not Path(f"/proc/{pid}").exists()


CALLS = ("sendto", "sendmsg", "write", "writev", "setsockopt")

_BEGUN = re.compile(r"^(?P<pid>\d+) +(?P<text>.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(?P<pid>\d+) +<\.\.\. \w+ resumed>(?P<rest>.*)$")
_CALL = re.compile(r"^\d+ +(?P<name>\w+)\(\d+<(?P<what>[A-Za-z0-9]+)\S*, (?P<rest>.*)\) += (?P<result>-?\d+)")
_OPTION = re.compile(r"^SOL_(?:IP|IPV6|RAW), (?P<name>.+), [^,]+, (?P<size>\d+)$")
# IPT_SO_SET_* and IP6T_SO_SET_* (64 and 65), IP_VS_SO_SET_* (1153 up): include/uapi/linux/netfilter_ipv4/ip_tables.h
# and include/uapi/linux/ip_vs.h. strace knows some of the names.
_TABLES = re.compile(r"IP6?T_SO_SET|IP_VS_SO_SET|^0x4[01]\b|^0x48[0-9a-f]\b")


def written(lines: Iterable[str]) -> int:
    """The bytes of the calls that succeeded, from the lines that strace wrote. Pure."""
    total, begun = 0, dict[str, str]()
    for line in lines:
        line = line.rstrip("\n")
        if start := _BEGUN.match(line):
            begun[start["pid"]] = f"{start['pid']} {start['text']}"
            continue
        if end := _RESUMED.match(line):
            line = begun.pop(end["pid"], "") + end["rest"]
        total += _bytes(line)
    return total


def _bytes(line: str) -> int:
    call = _CALL.match(line)
    if call is None or int(call["result"]) < 0:
        return 0
    if call["name"] == "setsockopt":
        option = _OPTION.match(call["rest"])
        return int(option["size"]) if option and _TABLES.search(option["name"]) else 0
    return int(call["result"]) if call["what"] == "NETLINK" else 0
