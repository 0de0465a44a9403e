"""A load on a lab's Services while something is done to the node: who came through, and who did not, when and why."""

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
from kproxy.lab.openloop import Failure, Plan, Tally, Target
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
"""By which ways a Service of type LoadBalancer is asked, and from where."""


class Pace(NamedTuple):
    """rate: new connections a second. held: lasting TCP connections; flows: lasting UDP flows. beat: seconds between
    two lines on each of these. patience: seconds for an answer."""

    rate: float = 200.0
    held: int = 50
    flows: int = 10
    beat: float = 0.5
    patience: float = 3.0


@dataclass(slots=True)
class Load:
    """A load under way; `tally` is there once the block has ended.

    marks: what was done to the node, and when (seconds of the monotonic clock), so that failures can be told apart.
    """

    tally: Tally = field(default_factory=Tally)
    marks: list[tuple[float, str]] = field(default_factory=list)

    def mark(self, what: str) -> None:
        """Something is done to the node from here on."""
        self.marks.append((time.monotonic(), what))

    def failures(self) -> list[str]:
        """A line for each failure, with seconds since what was done last."""
        return [self._line(each) for each in self.tally.failures]

    def delays(self) -> list[str]:
        """The same for connections whose first segment was lost."""
        return [self._line(each) for each in self.tally.again]

    def summary(self) -> str:
        """One line of figures."""
        tally = self.tally
        made, answered = sum(tally.made.values()), sum(tally.answered.values())
        return (
            f"{made} connections, {answered} answered, {tally.held} lasting with {tally.beats} answers, "
            f"{len(tally.failures)} failures, {len(tally.again)} delayed, at most {tally.late * 1000:.0f} ms late"
        )

    def _line(self, failure: Failure) -> str:
        before = [mark for mark in self.marks if mark[0] <= failure.when]
        when, what = before[-1] if before else (failure.when, "the beginning")
        return f"{failure.when - when:.3f} s after {what}: {failure.name}: {failure.why}"


def targets(scenarios: Iterable[Scenario], families: Sequence[Family] = tuple(Family)) -> list[Target]:
    """Every way to Services of type LoadBalancer, by TCP and by UDP, in turn."""
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
def load(cluster: Cluster, wanted: Sequence[Target], pace: Pace = Pace()) -> Iterator[Load]:  # noqa: B008
    """Clients at work on all targets while the block runs. Raises KernelError when the client's process fails."""
    streams, datagrams = ([t for t in wanted if t.udp is udp] for udp in (False, True))
    held = (*islice(cycle(streams), pace.held), *islice(cycle(datagrams), pace.flows))
    spaces = {name: cluster.spaces[name].path for name in {target.space for target in wanted}}
    plan = Plan(tuple(wanted), held, spaces, pace.rate, pace.beat, pace.patience)
    found = Load()
    with subprocess.Popen(
        [sys.executable, "-m", "kproxy.lab.openloop"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            begin = _tell(process, plan)
            if begin != "ready\n":
                raise KernelError(f"no load: {_last_words(process)}")
            yield found
            found.tally = _result(process, pace)
        finally:
            process.kill()


def _tell(process: subprocess.Popen[str], plan: Plan) -> str:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process was started without pipes")
    process.stdin.write(msgspec.json.encode(plan).decode() + "\n")
    process.stdin.flush()
    return process.stdout.readline()


def _result(process: subprocess.Popen[str], pace: Pace) -> Tally:
    out, errors = process.communicate(timeout=10 * pace.patience)
    if process.returncode:
        raise KernelError(f"the load ended: {errors[-300:]}")
    return msgspec.json.decode(out, type=Tally)


def _last_words(process: subprocess.Popen[str]) -> str:
    process.kill()
    return process.communicate()[1][-300:]
