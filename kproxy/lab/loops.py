"""Clients that ask again and again in the background, to see whether a change of the node is noticed by any of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kproxy.lab.outcomes import Answered, Nothing
from kproxy.lab.scenarios import Port, Probe, Scenario
from kproxy.lab.trials import Trial
from kproxy.model.plans import Family, Protocol

PATIENCE = 2.0


class Ask(NamedTuple):
    """Who asks, where, and in which family."""

    probe: Probe
    port: Port
    family: Family

    def __str__(self) -> str:
        return f"{self.probe.source} by {self.probe.via.value}, {self.port.name}, {self.family.value}"


@dataclass(slots=True)
class Record:
    """What became of all attempts so far: how many were answered, and each failure with when it was, in seconds since
    the beginning, and whose."""

    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@contextlib.contextmanager
def asking(trial: Trial, scenario: Scenario, asks: Iterable[Ask], pause: float) -> Iterator[Record]:
    """One client for each of ASKS, while the block runs. pause: seconds between an answer and the next question."""
    record, stop, begin = Record(), threading.Event(), time.monotonic()

    def client(ask: Ask) -> None:
        probe, port, family = ask
        while not stop.is_set():
            outcome = trial.ask(probe, scenario, family, port, PATIENCE)
            if port.protocol is Protocol.UDP and outcome is Nothing.TIMED_OUT:
                # A datagram that was under way may be lost; whoever uses UDP asks again.
                outcome = trial.ask(probe, scenario, family, port, PATIENCE)
            if isinstance(outcome, Answered):
                record.answered[str(ask)] += 1
            else:
                record.failures.append(f"{time.monotonic() - begin:.2f} {ask}: {outcome}")
            stop.wait(pause)

    threads = [threading.Thread(target=client, args=(ask,), name="asking") for ask in asks]
    for thread in threads:
        thread.start()
    try:
        yield record
    finally:
        stop.set()
        for thread in threads:
            thread.join()
