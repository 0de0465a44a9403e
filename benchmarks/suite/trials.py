"""One proxy at one size of the cluster: what all of its measurements work with."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.cluster import Shape
from benchmarks.suite.network import World
from benchmarks.suite.objects import Change, Objects, Write, spread
from benchmarks.suite.options import Limits
from benchmarks.suite.probing import Prober
from benchmarks.suite.proxies import Proxy
from benchmarks.suite.results import Measurement, Problem, Progress, Quantity, Subject
from benchmarks.suite.servers import Writer
from kproxy.errors import KernelError

PATIENCE = 300.0  # seconds; a change that takes longer has found its answer
TIGHT, LOOSE = 0.0002, 0.01  # seconds between two attempts: to time a change, and to cost the proxy little
PROBED = 8  # Services that are watched, spread through the cluster
FEWEST = 3


@dataclass(slots=True)
class Findings:
    """What a run has found so far."""

    measurements: list[Measurement] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(slots=True)
class Trial:
    """The proxy runs, and serves the cluster."""

    subject: Subject
    shape: Shape
    objects: Objects
    writer: Writer
    world: World
    proxy: Proxy
    limits: Limits
    progress: Progress
    findings: Findings

    @property
    def probed(self) -> list[int]:
        """The Services that are watched."""
        return spread(self.shape.services, PROBED)

    def record(self, quantity: Quantity, samples: Sequence[float], note: str = "") -> None:
        name, size = self.subject.name, self.shape
        found = Measurement(name, size.services, size.endpoints, quantity, tuple(samples), note)
        self.findings.measurements.append(found)

    def problem(self, why: str) -> None:
        self.findings.problems.append(Problem(self.subject.name, self.shape.services, why))
        self.progress.say(f"{self.subject.name}, {self.shape.services:,} Services: {why}")

    def begin(self, what: str, total: int) -> None:
        self.progress.begin(self.subject.name, self.shape.services, what, total)

    def turns(self, what: str, count: int, warm_up: int = 0) -> Iterator[int]:
        """-WARM_UP to `count` - 1, the numbers below zero to be left out of the figures; fewer when time runs out."""
        self.begin(what, warm_up + count)
        end = time.monotonic() + self.limits.phase
        for turn in range(-warm_up, count):
            if turn >= min(FEWEST, count) and time.monotonic() > end:
                return
            yield turn
            self.progress.step()

    def shortened(self, samples: Sequence[float]) -> str:
        """A note where time ran out."""
        return f"{len(samples)} in {self.limits.phase:.0f} s" if len(samples) < self.limits.changes else ""

    def reach(self, prober: Prober, change: Change, pause: float = TIGHT) -> float:
        """Make a change and wait for a connection to one of its new endpoints; seconds from write to proof."""
        return self.prove(prober, change.write, self.objects.ip(change.number), change.addresses, pause)

    def prove(self, prober: Prober, write: Write, ip: str, proof: Collection[str], pause: float = TIGHT) -> float:
        """Send `write` and wait until what asks IP meets `proof` (see Prober); seconds. Raises KproxyError."""
        writing = self.writer.control.submit(self.writer.send, write)

        def check() -> None:
            self.proxy.check()
            if writing.done():
                writing.result()

        proven = self.await_proof(prober, ip, proof, pause, check)
        return proven - writing.result().began

    def await_proof(
        self, prober: Prober, ip: str, proof: Collection[str], pause: float, check: Callable[[], None]
    ) -> float:
        """As the prober's, and what takes too long is a KernelError."""
        try:
            return prober.await_proof(ip, proof, time.monotonic() + PATIENCE, pause, check)
        except TimeoutError as error:
            raise KernelError(f"after {PATIENCE:.0f} s {error}") from error
