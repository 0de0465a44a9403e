"""What a run of the suite found: values, and their form as JSON. Pure.

A run holds measurements. Each is of one subject (a proxy in one mode), at one size of the cluster, of one quantity, and
keeps every sample, so that percentiles, plots and ratios can all be made of it later. All of a run's samples were taken
with one clock on one machine; figures of different runs are not compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from kproxy.errors import InvalidConfig


class Quantity(StrEnum):
    """What is measured. Each has one unit, in which its samples are: see `unit`."""

    COLD_START = "cold-start"  # from the start of the process to the first packet delivered to the last Service
    ENDPOINT_CHANGE = "endpoint-change"  # from the API write to the first packet that proves it
    NEW_SERVICE = "new-service"
    DELETED_SERVICE = "deleted-service"
    CPU_PER_CHANGE = "cpu-per-change"  # of the proxy and its children, user and system
    BYTES_PER_CHANGE = "bytes-per-change"  # written to the kernel
    MEMORY = "memory"  # resident, of the proxy and its children, at rest after the cold start
    MEMORY_PEAK = "memory-peak"
    STORM = "storm"  # from a write of the storm to the packet that proves it
    STORM_SETTLED = "storm-settled"  # from the storm's last write until the last of it is proven
    STORM_CPU = "storm-cpu"  # over the whole storm
    CONNECTIONS = "connections"  # new ones through a Service
    FIRST_PACKET = "first-packet"  # from a client's first packet to its first answer

    @property
    def unit(self) -> str:
        """Of the samples: "s", "B" or "1/s"."""
        return _UNITS.get(self, "s")

    @property
    def label(self) -> str:
        """For tables, plots and reports."""
        return _LABELS[self]

    @property
    def more_is_better(self) -> bool:
        return self is Quantity.CONNECTIONS


_UNITS = {
    Quantity.BYTES_PER_CHANGE: "B",
    Quantity.MEMORY: "B",
    Quantity.MEMORY_PEAK: "B",
    Quantity.CONNECTIONS: "1/s",
}
_LABELS = {
    Quantity.COLD_START: "cold start to the first delivered packet",
    Quantity.ENDPOINT_CHANGE: "an endpoint replaced",
    Quantity.NEW_SERVICE: "a new Service",
    Quantity.DELETED_SERVICE: "a deleted Service",
    Quantity.CPU_PER_CHANGE: "processor time per change",
    Quantity.BYTES_PER_CHANGE: "written to the kernel per change",
    Quantity.MEMORY: "resident memory",
    Quantity.MEMORY_PEAK: "resident memory at its highest",
    Quantity.STORM: "a change within a storm",
    Quantity.STORM_SETTLED: "a storm's last change",
    Quantity.STORM_CPU: "processor time of a storm",
    Quantity.CONNECTIONS: "new connections",
    Quantity.FIRST_PACKET: "a connection's first answer",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A proxy in one mode. name: unique in the run, for people ("kproxy nftables"). command: how it was started."""

    name: str
    mode: str
    command: str
    baseline: bool = False


@dataclass(frozen=True, slots=True)
class Measurement:
    """samples: in the quantity's unit, in the order in which they were taken; at least one."""

    subject: str
    services: int
    endpoints: int
    quantity: Quantity
    samples: tuple[float, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """What could not be measured, and why. services: 0 where it holds at every size."""

    subject: str
    services: int
    why: str


@dataclass(frozen=True, slots=True)
class Run:
    """machine: processor, cores, memory, kernel, distribution, versions of Python, kproxy and the tools; by name."""

    started: str  # RFC 3339, UTC
    seconds: float
    machine: dict[str, str]
    arguments: tuple[str, ...]
    subjects: tuple[Subject, ...]
    measurements: tuple[Measurement, ...]
    problems: tuple[Problem, ...] = ()


def encode(run: Run) -> bytes:
    """As JSON, with a version of the form."""
    content: dict[str, Any] = {"version": 1, **msgspec.to_builtins(run)}
    return msgspec.json.format(msgspec.json.encode(content), indent=1)


def decode(text: bytes) -> Run:
    """What `encode` made. Raises InvalidConfig where it is something else."""
    try:
        return msgspec.json.decode(text, type=Run)
    except msgspec.DecodeError as error:
        raise InvalidConfig([f"not the results of a benchmark: {error}"]) from error


class Progress(Protocol):
    """Shows how far a run is. Called from the thread that measures."""

    def begin(self, subject: str, services: int, what: str, total: int) -> None:
        """A phase of `total` steps begins; the previous one is over."""

    def step(self) -> None:
        """One more step of the phase is done."""

    def say(self, line: str) -> None:
        """Show a line: a result or a problem."""
