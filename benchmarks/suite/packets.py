"""What connections through Services cost: how many new ones a second, and how long one waits for its first answer."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from benchmarks.suite.network import SERVICE_PORT, TARGET_PORT, World
from benchmarks.suite.probing import Prober
from benchmarks.suite.results import Quantity
from benchmarks.suite.trials import Trial
from kproxy.errors import CommandError, KernelError

ROUNDS = 3
FIRST_ANSWERS = 200
WARM_UP = 20
PEERS = [sys.executable, "-m", "benchmarks.peers"]


def measure(trial: Trial, prober: Prober) -> None:
    """Clients and servers, a process of each for every processor; the clients use several Services in turn."""
    addresses = [trial.objects.ip(number) for number in trial.probed]
    clients, seconds = os.cpu_count() or 1, trial.limits.packets
    trial.begin("packets", ROUNDS + 1)
    with prober.aside(), _servers(trial.world, clients):
        ask = [*PEERS, "ask", str(WARM_UP + FIRST_ANSWERS), str(SERVICE_PORT), *addresses]
        (told,) = _run(trial.world, [ask], 60)
        trial.record(Quantity.FIRST_PACKET, json.loads(told)[WARM_UP:])
        trial.progress.step()
        rates = []
        for _ in range(ROUNDS if seconds else 0):
            connect = [*PEERS, "connect", str(seconds), str(SERVICE_PORT), *addresses]
            rates.append(sum(map(float, _run(trial.world, [connect] * clients, seconds + 60))))
            trial.progress.step()
        if rates:
            trial.record(Quantity.CONNECTIONS, rates, f"{clients} clients, {clients} servers")
    trial.proxy.check()


@contextlib.contextmanager
def _servers(world: World, count: int) -> Iterator[None]:
    """So many processes that answer for all endpoints."""
    servers = [world.pods.spawn([*PEERS, "answer", str(TARGET_PORT)], subprocess.PIPE) for _ in range(count)]
    try:
        for server in servers:
            assert server.stdout is not None
            if server.stdout.readline() != b"ready\n":
                raise KernelError("a server of the benchmark did not start")
        yield
    finally:
        for server in servers:
            server.kill()
            server.communicate()


def _run(world: World, commands: Sequence[Sequence[str]], timeout: float) -> list[str]:
    """Run all of them at once in the client's namespace; what each printed. Raises KernelError."""

    def one(argv: Sequence[str]) -> str:
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            raise KernelError(f"the clients did not end within {timeout:.0f} s") from None
        if done.returncode:
            raise CommandError(argv, done.returncode, done.stderr)
        return done.stdout

    return [each.result() for each in [world.client.submit(one, argv) for argv in commands]]
