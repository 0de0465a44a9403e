"""From starting the process to every rule in the kernel, and from a change at the API server to the kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from benchmarks.cluster import Shape, endpoint_slice
from benchmarks.figures import Figure
from benchmarks.processes import Daemon
from kproxy.errors import KernelError
from kproxy.model.plans import Family

__all__ = ["cold_start", "fastest"]

APART = 1.3  # seconds between two changes, more than minSyncPeriod's default: each must be one sync of its own
MEGABYTE = 1e6


def cold_start(
    shape: Shape, backend: str, seconds: float | None = None, megabytes: float | None = None, changes: int = 5
) -> Iterator[Figure]:
    """Run kproxy once on a cluster of this shape. seconds, megabytes: what starting and its memory may take."""
    label = f"{backend}, {'dual-stack' if len(shape.families) > 1 else 'IPv4'}"
    with Daemon(shape, backend) as daemon:
        daemon.start()
        took = daemon.written(daemon.started) - daemon.started
        now, peak = daemon.memory()
        yield Figure(f"{label}: from start to all rules in the kernel", shape.services, took, "s", seconds)
        yield Figure(f"{label}: resident memory then", shape.services, now / MEGABYTE, "MB", megabytes)
        yield Figure(f"{label}: resident memory at its highest", shape.services, peak / MEGABYTE, "MB")
        delays = [_change(daemon, shape, turn) for turn in range(changes)]
        if delays:
            what = f"{label}: from a change at the API server to the kernel, median"
            yield Figure(what, shape.services, median(delays) * 1000, "ms")
        check(daemon, changes)


def fastest(runs: Sequence[Sequence[Figure]]) -> list[Figure]:
    """The run that started fastest, which is the one that others on the machine disturbed least; all starts noted."""
    best = min(runs, key=lambda run: run[0].value)
    note = "starts: " + ", ".join(f"{run[0].value:.2f} {run[0].unit}" for run in runs)
    return [replace(best[0], note=note), *best[1:]]


def _change(daemon: Daemon, shape: Shape, turn: int) -> float:
    """One endpoint of a Service stops serving; seconds until the kernel knows."""
    time.sleep(APART)
    item = endpoint_slice(shape, turn * shape.services // 10, Family.IPV4, shape.endpoints - 1)
    start = daemon.change(item)
    return daemon.written(start) - start


def check(daemon: Daemon, gone: int) -> None:
    """The kernel has what the figures claim. Raises KernelError. gone: IPv4 endpoints taken out since."""
    for family in daemon.shape.families:
        wanted = daemon.shape.services * daemon.shape.endpoints - (gone if family is Family.IPV4 else 0)
        found = daemon.endpoints(family)
        if found != wanted:
            raise KernelError(f"{family}: the kernel has {found} rules to endpoints, not {wanted}")
