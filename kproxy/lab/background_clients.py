"""Clients that connect repeatedly in the background, to show whether a change of the node affects any of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kproxy.lab.deployment import Deployment
from kproxy.lab.probes import Answered, Nothing
from kproxy.lab.scenarios import Port, Probe, Scenario
from kproxy.model.plans import Family, Protocol

TIMEOUT = 2.0


class Ask(NamedTuple):
    """One client: its probe, the port, and the family."""

    probe: Probe
    port: Port
    family: Family

    def __str__(self) -> str:
        return f"{self.probe.source} by {self.probe.via.value}, {self.port.name}, {self.family.value}"


@dataclass(slots=True)
class Record:
    """The results so far: how many attempts of each client were answered, and each failure, with its time in seconds
    since the beginning and its client."""

    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@contextlib.contextmanager
def asking(deployment: Deployment, scenario: Scenario, asks: Iterable[Ask], pause: float) -> Iterator[Record]:
    """One client for each of `asks` during the block. pause: seconds between an answer and the next attempt."""
    record, stop, begin = Record(), threading.Event(), time.monotonic()

    def client(ask: Ask) -> None:
        probe, port, family = ask
        while not stop.is_set():
            outcome = deployment.ask(probe, scenario, family, port, TIMEOUT)
            if port.protocol is Protocol.UDP and outcome is Nothing.TIMED_OUT:
                # A datagram in flight may be lost; UDP clients retry.
                outcome = deployment.ask(probe, scenario, family, port, TIMEOUT)
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
