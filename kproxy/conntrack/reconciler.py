"""Deletes the stale connection tracking entries of one IP family after the rules have changed.

Decides: when the table has to be read at all, and what is still to be done after a failure. Leaves out: which entries
are stale (kproxy.conntrack.stale_flows) and how they are read and deleted (kproxy.conntrack.table).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from kproxy.conntrack.stale_flows import TRACKED, Frontends
from kproxy.conntrack.table import Conntrack
from kproxy.model.plans import Family, Frontend, PortKey, ServicePlan


class Reconciled(NamedTuple):
    """What one pass did: entries looked at and deleted, and how long it took. ran: the table was read at all."""

    ran: bool = False
    seen: int = 0
    deleted: int = 0
    seconds: float = 0.0


class Reconciler:
    """Keeps the flows of one family in step with its plans. Call it after the rules are in the kernel, never before:
    a packet that comes in between would bring the old entry back."""

    def __init__(self, family: Family, conntrack: Conntrack, clock: Callable[[], float] = time.monotonic) -> None:
        self.family = family
        self._conntrack, self._clock = conntrack, clock
        self._frontends = Frontends()
        self._retired: set[Frontend] = set()
        self._due = False

    def reconcile(
        self,
        wanted: Mapping[PortKey, ServicePlan],
        touched: Iterable[PortKey] | None,
        node_ips: Collection[str],
        abandoned: Iterable[Frontend] = (),
    ) -> Reconciled:
        """Delete the entries that no longer lead where WANTED leads.

        wanted: the plans that the kernel now has, of every protocol; TCP is passed over. touched: the ports that may
        differ from the last call, None for all (then the table is read in any case). node_ips: the node's addresses of
        this family that take node ports. abandoned: frontends that the kernel held for no Service any more.
        Raises KernelError; what is left to do is then done by the next call.
        """
        started = self._clock()
        changed, retired = self._frontends.update(wanted, touched)
        retired.update(f for f in abandoned if f.protocol in TRACKED and f not in self._frontends)
        self._retired |= retired
        self._due |= changed or bool(retired) or touched is None
        if not self._due:
            return Reconciled()
        looked_for = frozenset(self._retired)
        seen, deleted = self._sweep(looked_for, node_ips)
        self._due = False
        if touched is None and not retired:
            # Until a later full pass they stay: a packet under way may leave its entry just after the table was read.
            self._retired -= looked_for
        return Reconciled(True, seen, deleted, self._clock() - started)

    def _sweep(self, retired: Collection[Frontend], node_ips: Collection[str]) -> tuple[int, int]:
        protocols = self._frontends.protocols() | {f.protocol for f in retired}
        if not protocols:
            return 0, 0
        flows = self._conntrack.flows(self.family, protocols)
        stale = self._frontends.stale(flows, retired, node_ips)
        return len(flows), self._conntrack.delete(stale) if stale else 0
