"""Clients that ask again and again in the background, to see whether a change of the node is noticed by any of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kproxy.lab.outcomes import Answered, Nothing
from kproxy.lab.scenarios import Port, Probe, Scenario
from kproxy.lab.trials import Trial
from kproxy.model.plans import Family, Protocol

__all__ = ["Record", "asking"]

PAUSE = 0.01
PATIENCE = 2.0


@dataclass(slots=True)
class Record:
    """What became of all attempts so far: how many were answered, and each failure with when it was, in seconds since
    the beginning, and whose."""

    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@contextlib.contextmanager
def asking(
    trial: Trial, scenario: Scenario, probes: Sequence[Probe], ports: Sequence[Port], families: Sequence[Family]
) -> Iterator[Record]:
    """One client for each probe, port and family, asking as fast as it is answered while the block runs."""
    record, stop, begin = Record(), threading.Event(), time.monotonic()

    def client(probe: Probe, port: Port, family: Family) -> None:
        who = f"{probe.source} by {probe.via.value}, {port.name}, {family.value}"
        while not stop.is_set():
            outcome = trial.ask(probe, scenario, family, port, PATIENCE)
            if port.protocol is Protocol.UDP and outcome is Nothing.TIMED_OUT:
                # A datagram that was under way may be lost; whoever uses UDP asks again.
                outcome = trial.ask(probe, scenario, family, port, PATIENCE)
            if isinstance(outcome, Answered):
                record.answered[who] += 1
            else:
                record.failures.append(f"{time.monotonic() - begin:.2f} {who}: {outcome}")
            stop.wait(PAUSE)

    threads = [
        threading.Thread(target=client, args=(probe, port, family), name="asking")
        for probe in probes
        for port in ports
        for family in families
    ]
    for thread in threads:
        thread.start()
    try:
        yield record
    finally:
        stop.set()
        for thread in threads:
            thread.join()
