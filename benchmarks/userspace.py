"""Userspace mode's forwarder beside haproxy in TCP mode and a direct connection, on the same machine in turns.

Each of several rounds measures all three, so that whatever else the machine does meets all of them; a figure is the
median of the rounds.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.figures import Figure
from kproxy.errors import KernelError
from kproxy.model.plans import Endpoint, Family, PortKey, Protocol
from kproxy.modes.userspace.forwarder import ForwarderProcess
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Reach

ROUNDS = 5
SECONDS = 1.5
CLIENTS = 2  # processes, each with several connections at the same time
STARTING = 10.0
DIRECT, HAPROXY, FORWARDER = "direct", "haproxy", "forwarder"
HOST = "127.0.0.1"
HAPROXY_CONFIG = """\
global
  maxconn 2000
defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 60s
  timeout server 60s
"""


def measure(rounds: int = ROUNDS, seconds: float = SECONDS) -> Iterator[Figure]:
    """New connections and bytes a second, with the ratios of the others' figures to the forwarder's.

    Takes 2 * `rounds` * `seconds` for each of the three ways. Raises KernelError when one of them does not work.
    """
    with contextlib.ExitStack() as stack:
        answering, sending = stack.enter_context(_servers())
        ways = {DIRECT: (answering, sending), FORWARDER: stack.enter_context(_forwarder(answering, sending))}
        if shutil.which("haproxy"):
            ways[HAPROXY] = stack.enter_context(_haproxy(answering, sending))
        else:
            print("benchmarks: haproxy is not installed and is left out", file=sys.stderr)
        opened = _rounds("connect", {way: ports[0] for way, ports in ways.items()}, CLIENTS, rounds, seconds)
        pulled = _rounds("pull", {way: ports[1] for way, ports in ways.items()}, 1, rounds, seconds)
    note = f"median of {rounds} rounds of {seconds} s"
    yield from _figures("new connections", "/s", 1.0, opened, note)
    yield from _figures("bulk", "MB/s", 1e-6, pulled, note)


def _figures(what: str, unit: str, scale: float, values: Mapping[str, list[float]], note: str) -> Iterator[Figure]:
    middle = {way: statistics.median(found) for way, found in values.items()}
    for way, value in middle.items():
        yield Figure(f"{what}, {way}", 1, value * scale, unit, note=note)
    for way in (HAPROXY, DIRECT):
        if way in middle:
            each = [other / ours for other, ours in zip(values[way], values[FORWARDER], strict=True)]
            yield Figure(f"{what}, {way} / forwarder", 1, statistics.median(each), "x", note=note)


def _rounds(role: str, ports: Mapping[str, int], clients: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {way: [] for way in ports}
    for _ in range(rounds):
        for way, port in ports.items():
            found[way].append(_load(role, port, clients, seconds))
    return found


def _load(role: str, port: int, clients: int, seconds: float) -> float:
    """What `clients` processes got together in a second."""
    command = [sys.executable, "-m", "benchmarks.peers", role, str(seconds), str(port)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(clients)]
    total = 0.0
    for process in running:
        out, _ = process.communicate(timeout=seconds + STARTING)
        if process.returncode:
            raise KernelError(f"{' '.join(command)}: exit status {process.returncode}")
        total += float(out)
    return total


@contextlib.contextmanager
def _servers() -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "benchmarks.peers", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answering, sending = process.stdout.readline().split()
        try:
            yield int(answering), int(sending)
        finally:
            process.stdin.close()


@contextlib.contextmanager
def _forwarder(*targets: int) -> Iterator[tuple[int, int]]:
    forwarder = ForwarderProcess()
    keys = [ListenerKey(PortKey("default", "web", str(port), Protocol.TCP), Reach.CLUSTER) for port in targets]
    try:
        answer = forwarder.update(
            Family.IPV4,
            {key: Listener(Family.IPV4, (Endpoint(HOST, port),)) for key, port in zip(keys, targets, strict=True)},
        )
        first, second = (answer[key] for key in keys)
        if isinstance(first, str) or isinstance(second, str):
            raise KernelError(f"no proxy port: {first}, {second}")
        yield first, second
    finally:
        forwarder.close()


@contextlib.contextmanager
def _haproxy(*targets: int) -> Iterator[tuple[int, int]]:
    ports = _free_ports(len(targets))
    parts = [
        f"listen l{port}\n  bind {HOST}:{port}\n  server s {HOST}:{target}\n"
        for port, target in zip(ports, targets, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="kproxy-bench-") as folder:
        config = Path(folder, "haproxy.cfg")
        config.write_text(HAPROXY_CONFIG + "".join(parts))
        with subprocess.Popen(["haproxy", "-db", "-q", "-f", str(config)]) as process:
            try:
                _await(ports[-1])
                yield ports[0], ports[1]
            finally:
                process.kill()


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(number)]
        return [one.getsockname()[1] for one in made]


def _await(port: int) -> None:
    end = time.monotonic() + STARTING
    while True:
        try:
            socket.create_connection((HOST, port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise KernelError(f"haproxy does not listen on port {port}") from None
            time.sleep(0.05)
