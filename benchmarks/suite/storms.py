"""A rolling update of a tenth of all endpoints, a hundred writes a second, and how soon packets follow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from benchmarks.suite.objects import storm
from benchmarks.suite.probing import Prober
from benchmarks.suite.results import Quantity
from benchmarks.suite.trials import PATIENCE, Trial
from kproxy.errors import KernelError

SHARE = 0.1
RATE = 100.0  # writes a second
WATCHED = 5  # one write of so many, and the last one
PAUSE = 0.0005
LOOK_UP = 0.1


@dataclass(slots=True)
class _Storm:
    """What is known of it so far. waiting: an endpoint that is to be seen, its Service and when it was written."""

    waiting: dict[str, tuple[str, float]] = field(default_factory=dict)
    took: list[float] = field(default_factory=list)
    last: float = 0.0
    proven: float = 0.0


def measure(trial: Trial, prober: Prober) -> None:
    """Each write replaces one endpoint. Every fifth is timed, from the write to the connection that proves it."""
    if not trial.limits.storm:
        return
    size = trial.shape
    turns = storm(size.services, size.endpoints, SHARE, RATE, trial.limits.storm)
    whole = round(size.services * size.endpoints * SHARE)
    trial.begin("storm", len(turns))
    state, before, began = _Storm(), trial.proxy.usage().cpu, time.monotonic()
    writing = trial.writer.control.submit(_write, trial, turns, state)
    trial.world.client.call(_watch, trial, prober, state, writing)
    spent, seconds = trial.proxy.usage().cpu - before, state.last - began
    note = f"{len(turns)} of {whole} writes" if len(turns) < whole else f"{whole} writes"
    note += f", {len(turns) / max(seconds, len(turns) / RATE):.0f} a second"
    trial.record(Quantity.STORM, state.took, note)
    trial.record(Quantity.STORM_SETTLED, [max(0.0, state.proven - state.last)], note)
    trial.record(Quantity.STORM_CPU, [spent], note)


def _write(trial: Trial, turns: Sequence[int], state: _Storm) -> None:
    """In the control namespace."""
    began = time.monotonic()
    for place, number in enumerate(turns):
        change = trial.objects.replace(number)
        time.sleep(max(0.0, began + place / RATE - time.monotonic()))
        state.last = time.monotonic()
        if place % WATCHED == 0 or place == len(turns) - 1:
            state.waiting[change.addresses[0]] = trial.objects.ip(number), state.last
        trial.writer.send(change.write)
        trial.progress.step()


def _watch(trial: Trial, prober: Prober, state: _Storm, writing: Future[None]) -> None:
    """In the client's namespace: ask every Service that is waited for, in turn, until none is."""
    end, look = time.monotonic() + trial.limits.storm + PATIENCE, 0.0
    while not writing.done() or state.waiting:
        for ip, _ in list(state.waiting.values()):
            found, now = prober.attempt(ip), time.monotonic()
            if seen := state.waiting.pop(found, None):
                state.took.append(now - seen[1])
                state.proven = now
        if time.monotonic() > look:
            trial.proxy.check()
            look = time.monotonic() + LOOK_UP
        if time.monotonic() > end:
            raise KernelError(f"{len(state.waiting)} changes were not seen in {PATIENCE:.0f} s")
        time.sleep(PAUSE)
    writing.result()
