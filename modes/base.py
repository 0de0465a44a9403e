"""The interface between a proxier and a mode: one Dataplane per mode and IP family.

The proxier says which plans the kernel should hold and which of them changed; the mode writes the difference. A mode
remembers what it has written, and replaces that only after the kernel took the whole transaction, so the proxier needs
no knowledge of chains, sets or virtual servers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from kproxy.errors import KernelError
from kproxy.model.plans import Family, Frontend, PortKey, ServicePlan


@dataclass(slots=True)
class Outcome:
    """What one apply did.

    rejected: the ports that the kernel refused, with one line of why; everything else is programmed.
    abandoned: frontends found in the kernel that belong to no Service any more (stale UDP flows to them are deleted).
    rules_total, rules_written: per table, for the metrics, without jumps in built-in chains. bytes_written,
    transactions: for benchmarks.
    unreadable: what of the kernel's state could not be read by the last full check ("table filter"), each with one line
    of why; the ports are programmed nevertheless, but what others change there may go unnoticed.
    repaired: a full check found differences that were not asked for (somebody else edited or flushed).
    faults: ports that could not be rendered because of an unexpected exception; they are in `rejected` too.
    refusals: a line for each change that the kernel refused, whatever was done about it. It takes every change that is
    in order, so each is a port that it cannot serve, another program's work, or a bug.
    """

    rejected: dict[PortKey, str] = field(default_factory=dict)
    abandoned: tuple[Frontend, ...] = ()
    rules_total: dict[str, int] = field(default_factory=dict)
    rules_written: dict[str, int] = field(default_factory=dict)
    bytes_written: int = 0
    transactions: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    repaired: bool = False
    faults: dict[PortKey, Exception] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Adds `refusals` to a KernelError that ends the apply, as nobody sees this Outcome then."""
        try:
            yield
        except KernelError as error:
            error.refusals = (*self.refusals, *error.refusals)
            raise


class Dataplane(Protocol):
    """Writes one IP family's plans to the kernel. Used by one thread, but for `names`."""

    @property
    def family(self) -> Family: ...

    def apply(self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None) -> Outcome:
        """Bring the kernel to `wanted`.

        touched: the ports that may differ from the last successful apply, missing from `wanted` when they are gone.
        None: nothing is known, compare everything with what the kernel really holds and write what differs.
        Raises KernelError when nothing could be written; then the next call must be a full one.
        """

    def drifted(self) -> bool:
        """Whether somebody else changed what this dataplane wrote since its last apply. Cheap. Raises KernelError."""

    def housekeeping(self) -> float | None:
        """Do what is due without any change (delete endpoints that are gone once their connections have ended).

        Returns the seconds until it wants to be called again, None when there is nothing to wait for; an apply may
        change that. Raises KernelError when it could not; then it is called again soon.
        """

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """The names that a plan has in the kernel (chains, map entries, virtual servers, proxy ports), for people.

        Cheap; called from any thread, whatever else is under way.
        """
