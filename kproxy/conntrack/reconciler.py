"""Deletes the stale connection tracking entries of one IP family after its rules have changed.

Decides: when the table has to be read at all, and what remains to be done after a failure. Leaves out: which entries
are stale (kproxy.conntrack.stale_flows) and how they are read and deleted (kproxy.conntrack.table).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from kproxy.conntrack.stale_flows import TRACKED, LiveFrontends
from kproxy.conntrack.table import Conntrack
from kproxy.model.plans import Family, Frontend, PortKey, ServicePlan


class Reconciled(NamedTuple):
    """The result of one pass: whether the table was read, entries read and deleted, and the seconds that it took."""

    ran: bool = False
    seen: int = 0
    deleted: int = 0
    seconds: float = 0.0


class Reconciler:
    """Deletes the stale flows of one family whenever its plans have changed. Used by that family's thread alone.

    After each sync, once the rules are in the kernel (never before: a packet in between would recreate the old entry):

        reconciler.note(plans, touched)        # remembers what changed; no I/O
        reconciler.delete_stale(node_ips)      # reads the table if anything is due; may be repeated until it succeeds

    `reconcile` does both. What was noted stays `due` until a pass succeeds, so a caller whose pass failed just calls
    `delete_stale` again later; more notes may come in between.
    """

    def __init__(self, family: Family, conntrack: Conntrack, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds, monotonic."""
        self.family = family
        self._conntrack, self._clock = conntrack, clock
        self._live = LiveFrontends()
        self._pending: dict[PortKey, Exception] = {}  # ports that could not be noted
        self._retired: set[Frontend] = set()
        self._swept: set[Frontend] = set()  # retired frontends that a successful pass has looked for
        self._due = self._full = False

    @property
    def due(self) -> bool:
        """Whether flows may be stale that no successful pass has looked for yet."""
        return self._due or bool(self._pending)

    def reconcile(
        self,
        wanted: Mapping[PortKey, ServicePlan],
        touched: Iterable[PortKey] | None,
        node_ips: Collection[str],
        abandoned: Iterable[Frontend] = (),
    ) -> Reconciled:
        """Note the plans and delete what is stale now. See `note` and `delete_stale`."""
        self.note(wanted, touched, abandoned)
        return self.delete_stale(node_ips)

    def note(
        self,
        wanted: Mapping[PortKey, ServicePlan],
        touched: Iterable[PortKey] | None,
        abandoned: Iterable[Frontend] = (),
    ) -> None:
        """Remember what the next pass has to look for.

        wanted: the plans that the kernel now has, of every protocol; TCP is ignored. touched: the ports that may differ
        from the last call; None for all, and then the table is read in any case. abandoned: frontends that the kernel
        held although no Service has them any more.
        If one port's plan raises an exception, the other ports are noted, the exception is raised, and the next call
        tries that port again.
        """
        keys = set(touched) if touched is not None else {*self._live.keys(), *wanted}
        if touched is None:
            self._due = self._full = True
        self._retire(f for f in abandoned if f.protocol in TRACKED and f not in self._live)
        update = self._live.update(wanted, keys | self._pending.keys())
        self._pending = update.failed
        self._due |= update.changed
        self._retire(update.retired)
        for failure in update.failed.values():
            raise failure

    def delete_stale(self, node_ips: Collection[str]) -> Reconciled:
        """Delete the entries that no longer lead where the noted plans lead. Does nothing unless something is due.

        node_ips: the node's addresses of this family that accept node ports.
        Raises KernelError; everything that was due is still due then.
        """
        if not self._due:
            return Reconciled()
        started = self._clock()
        looked_for = frozenset(self._retired)
        seen, deleted = self._sweep(looked_for, node_ips)
        if self._full:
            # Not earlier: a packet under way may leave its entry just after the first pass has read the table.
            self._retired -= self._swept
        self._swept = set(looked_for & self._retired)
        self._due = self._full = False
        return Reconciled(True, seen, deleted, self._clock() - started)

    def _retire(self, frontends: Iterable[Frontend]) -> None:
        retired = set(frontends)
        self._retired |= retired
        self._swept -= retired
        self._due |= bool(retired)

    def _sweep(self, retired: Collection[Frontend], node_ips: Collection[str]) -> tuple[int, int]:
        protocols = self._live.protocols() | {f.protocol for f in retired}
        if not protocols:
            return 0, 0
        flows = self._conntrack.flows(self.family, protocols)
        stale = self._live.stale(flows, retired, node_ips)
        return len(flows), self._conntrack.delete(stale) if stale else 0
