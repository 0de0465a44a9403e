"""A load on a lab's Services while something is done to the node, and a report of what failed, when and why."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import NamedTuple

import msgspec

from kproxy.errors import KernelError
from kproxy.lab.clusters import Cluster
from kproxy.lab.load_generator import Failure, Plan, Results, Target
from kproxy.lab.scenarios import Scenario, Via
from kproxy.model.plans import Family, Protocol

WAYS = (
    ("client", Via.CLUSTER_IP),
    ("client", Via.NODE_PORT),
    ("client", Via.BALANCER),
    ("caller", Via.CLUSTER_IP),
    ("caller", Via.NODE_PORT),
    ("caller", Via.BALANCER),
    ("node1", Via.CLUSTER_IP),
)
"""The clients and addresses by which a Service of type LoadBalancer is tried."""


class Rates(NamedTuple):
    """The size and pace of a load.

    rate: new connections a second. held: lasting TCP connections. flows: lasting UDP flows. beat: seconds between two
    lines on each of these. patience: seconds to wait for an answer.
    """

    rate: float = 200.0
    held: int = 50
    flows: int = 10
    beat: float = 0.5
    patience: float = 3.0


@dataclass(slots=True)
class Load:
    """A running load; its `results` are there once the block has ended.

    marks: what was done to the node and when (seconds of the monotonic clock), to which failures are related.
    """

    results: Results = field(default_factory=Results)
    marks: list[tuple[float, str]] = field(default_factory=list)

    def mark(self, what: str) -> None:
        """Note that something is done to the node now."""
        self.marks.append((time.monotonic(), what))

    def failures(self) -> list[str]:
        """A line for each failure, with the seconds since the last mark."""
        return [self._line(each) for each in self.results.failures]

    def delays(self) -> list[str]:
        """The same for connections whose first segment was retransmitted."""
        return [self._line(each) for each in self.results.again]

    def summary(self) -> str:
        """One line of figures."""
        results = self.results
        made, answered = sum(results.made.values()), sum(results.answered.values())
        return (
            f"{made} connections, {answered} answered, {results.held} lasting with {results.beats} answers, "
            f"{len(results.failures)} failures, {len(results.again)} delayed, at most {results.late * 1000:.0f} ms late"
        )

    def _line(self, failure: Failure) -> str:
        before = [mark for mark in self.marks if mark[0] <= failure.when]
        when, what = before[-1] if before else (failure.when, "the beginning")
        return f"{failure.when - when:.3f} s after {what}: {failure.name}: {failure.why}"


def targets(scenarios: Iterable[Scenario], families: Sequence[Family] = tuple(Family)) -> list[Target]:
    """All targets of Services of type LoadBalancer: every client, address and port, over TCP and UDP."""
    return [
        Target(
            f"{source} to {scenario.name} by {via.value}, {port.protocol.value}, {family.value}",
            source,
            port.protocol is Protocol.UDP,
            scenario.address(via, family),
            scenario.port(via, port),
            tuple(end.pod for end in scenario.ends),
        )
        for source, via in WAYS
        for scenario in scenarios
        for family in families
        for port in scenario.ports
    ]


@contextlib.contextmanager
def load(cluster: Cluster, wanted: Sequence[Target], rates: Rates = Rates()) -> Iterator[Load]:  # noqa: B008
    """Runs the load generator on all targets during the block. Raises KernelError when it fails."""
    streams, datagrams = ([t for t in wanted if t.udp is udp] for udp in (False, True))
    held = (*islice(cycle(streams), rates.held), *islice(cycle(datagrams), rates.flows))
    spaces = {name: cluster.spaces[name].path for name in {target.space for target in wanted}}
    plan = Plan(tuple(wanted), held, spaces, rates.rate, rates.beat, rates.patience)
    found = Load()
    with subprocess.Popen(
        [sys.executable, "-m", "kproxy.lab.load_generator"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            begin = _tell(process, plan)
            if begin != "ready\n":
                raise KernelError(f"the load generator did not start: {_last_words(process)}")
            yield found
            found.results = _result(process, rates)
        finally:
            process.kill()


def _tell(process: subprocess.Popen[str], plan: Plan) -> str:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process was started without pipes")
    process.stdin.write(msgspec.json.encode(plan).decode() + "\n")
    process.stdin.flush()
    return process.stdout.readline()


def _result(process: subprocess.Popen[str], rates: Rates) -> Results:
    out, errors = process.communicate(timeout=10 * rates.patience)
    if process.returncode:
        raise KernelError(f"the load generator failed: {errors[-300:]}")
    return msgspec.json.decode(out, type=Results)


def _last_words(process: subprocess.Popen[str]) -> str:
    process.kill()
    return process.communicate()[1][-300:]
