"""Brings one family's iptables tables to what some ports need, whatever mode the rules are for.

Decides: when the difference between two states of a port is enough, when the kernel is read, and what is believed
afterwards. Leaves out: what rules look like (each mode's render), the differences themselves (delta, reconcile), and
cutting out what the kernel refuses (writing).

Nothing is kept of the rules but the values that they came from: rendering is a pure function, so the old rules of a
port are rendered again when it changes. After any failure nothing is believed and the next apply reads the kernel.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from kproxy import logs
from kproxy.errors import RestoreError
from kproxy.kernel.iptables import Tables
from kproxy.model.plans import Family, Frontend, PortKey
from kproxy.modes.base import Outcome
from kproxy.modes.xtables.cleanup import clean, superseded
from kproxy.modes.xtables.delta import Change, delta
from kproxy.modes.xtables.fragments import Base, Fragment
from kproxy.modes.xtables.reconcile import Reconciliation
from kproxy.modes.xtables.restore_writer import LIMITS, Writer
from kproxy.modes.xtables.restores import NODE, Owner
from kproxy.modes.xtables.saved import Saved

_log = logs.get("iptables")

P = TypeVar("P")
"""What a mode renders the rules of one port from; an immutable value that compares by content."""

NOTHING = Fragment()
# Even where the kernel tells of every change, it is read this often (seconds): what is believed must not rest on one
# source for ever.
READ_AT_LEAST = 3600.0


class Drift(Protocol):
    """Tells whether anyone else changed this family's tables. Used by one thread at a time."""

    @property
    def proves(self) -> bool:
        """Whether `changed() is False` proves that nothing changed (the generation notifications of nf_tables), or
        only makes it likely (comparing sizes)."""

    def reading(self) -> None:
        """The tables are about to be read: what others changed before this moment will be seen."""

    def wrote(self) -> None:
        """This dataplane has written; what it wrote is no drift."""

    def changed(self) -> bool:
        """Whether anyone else changed the tables since `reading`; also true when that is unknown."""


class NoDrift:
    """A Drift that notices nothing and proves nothing: only full checks find what others did."""

    proves = False

    def reading(self) -> None:
        """Nothing to note."""

    def wrote(self) -> None:
        """Nothing to note."""

    def changed(self) -> bool:
        return False


class ChainWriter(Generic[P]):
    """Programs one family through iptables-restore.

    base: what the node needs whatever its ports are. render: the rules of one port. clock: seconds, monotonic.
    """

    def __init__(
        self,
        family: Family,
        base: Base,
        render: Callable[[P], Fragment],
        tables: Tables,
        drift: Drift | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.family = family
        self._base, self._render = base, render
        self._tables = tables
        self._drift = drift or NoDrift()
        self._clock = clock
        self._held: dict[PortKey, P] = {}
        self._refused: dict[PortKey, tuple[P, str]] = {}
        self._abandoned: dict[Frontend, None] = {}
        self._totals: Counter[str] = Counter()
        self._trusted = False
        self._read_at: float | None = None

    def rebase(self, base: Base, render: Callable[[P], Fragment]) -> None:
        """What the node needs, or how rules look, has changed: the next apply compares everything with the kernel."""
        self._base, self._render, self._trusted = base, render, False

    def drifted(self) -> bool:
        """As Dataplane.drifted."""
        return self._drift.changed()

    def cleanup(self) -> None:
        """Remove all that kube-proxy or kproxy ever wrote into this backend's tables, in whatever mode."""
        self._trusted, self._held = False, {}
        clean(self._tables)
        self._drift.wrote()

    def apply(self, wanted: Mapping[PortKey, P], touched: Collection[PortKey] | None) -> Outcome:
        """As Dataplane.apply."""
        outcome = Outcome()
        full, believed = touched is None, self._trusted
        known = believed and not (full and self._drift.changed())
        if known and self._change(wanted, touched, outcome) and not (full and self._reading_is_due()):
            return self._done(outcome)
        before = outcome.transactions
        self._check(wanted, outcome)
        # A refused port writes and takes back every time.
        outcome.repaired = full and believed and not self._refused and outcome.transactions > before
        return self._done(outcome)

    # ---------------------------------------------------------------- by difference

    def _change(self, wanted: Mapping[PortKey, P], touched: Collection[PortKey] | None, outcome: Outcome) -> bool:
        """Write what differs between the held and the wanted plans; False when the kernel is not what was believed."""
        keys = {*self._held, *wanted} if touched is None else touched
        if touched is None:
            self._refused = {}  # a full check tries them again
        differing = [key for key in keys if self._differs(key, wanted.get(key))]
        for key in [key for key in self._refused if key not in wanted or key in differing]:
            del self._refused[key]
        if not differing:
            return True
        self._trusted = False
        totals = self._totals.copy()
        changes = self._changes(differing, wanted, totals)
        whole = lambda table, chain: self._whole(table, chain, wanted)  # noqa: E731
        try:
            Writer(self._tables, outcome, isolate=False).run(delta(changes, self._limit, whole))
        except RestoreError as error:
            _log.warning("A change was refused; comparing everything", family=self.family.value, why=str(error))
            return False
        for key in differing:
            if (plan := wanted.get(key)) is None:
                self._held.pop(key, None)
            else:
                self._held[key] = plan
        self._totals, self._trusted = totals, True
        return True

    def _differs(self, key: PortKey, plan: P | None) -> bool:
        """A refused plan is left alone until it changes."""
        return self._held.get(key) != plan and not (key in self._refused and self._refused[key][0] == plan)

    def _changes(self, keys: Iterable[PortKey], wanted: Mapping[PortKey, P], totals: Counter[str]) -> Iterator[Change]:
        for key in keys:
            old, new = self._fragment(self._held.get(key)), self._fragment(wanted.get(key))
            _count(totals, old, -1)
            _count(totals, new, 1)
            yield Change(key, old, new)

    def _whole(self, table: str, chain: str, wanted: Mapping[PortKey, P]) -> list[tuple[Owner, str]]:
        rules: list[tuple[Owner, str]] = [
            (key, rule.rule)
            for key, plan in wanted.items()
            for rule in self._fragment(self._held.get(key) if key in self._refused else plan).shared
            if (rule.table, rule.chain) == (table, chain)
        ]
        return [*rules, *((NODE, rule) for rule in self._base.shared.get((table, chain), ()))]

    # ---------------------------------------------------------------- by comparison with the kernel

    def _check(self, wanted: Mapping[PortKey, P], outcome: Outcome) -> None:
        """Make the kernel equal to the wanted plans, but for ports that it refuses: they keep what they had."""
        self._trusted = False
        self._refused = {}
        target = dict(wanted)
        refused = self._compare(target, outcome)
        if refused:
            self._refused = {key: (wanted[key], why) for key, why in refused.items()}
            for key in refused:
                _replace(target, key, self._held.get(key))
            # What the refused ports had written before the line that was refused goes again.
            for key in self._compare(target, outcome):
                del target[key]
        self._held = target
        self._trusted = True

    def _compare(self, target: Mapping[PortKey, P], outcome: Outcome) -> dict[PortKey, str]:
        self._drift.reading()
        saved = Saved(self._tables.save())
        comparison = Reconciliation(saved, self._base, self.family, self._limit)
        writer = Writer(self._tables, outcome, isolate=True)
        try:
            writer.run(comparison.restores((key, self._fragment(plan)) for key, plan in target.items()))
            writer.run(superseded(saved, self._base, self._limit, comparison.left))
        finally:
            self._drift.wrote()
            # Kept until an apply succeeds: what is gone from the kernel is not found a second time.
            self._abandoned.update(dict.fromkeys(comparison.abandoned))
        self._read_at = self._clock()
        self._totals = comparison.totals
        for why in writer.refused.values():
            _log.warning("Refused by the kernel", family=self.family.value, why=why)
        return writer.refused_ports

    # ---------------------------------------------------------------- small things

    @property
    def _limit(self) -> int:
        return LIMITS[self._tables.backend]

    def _fragment(self, plan: P | None) -> Fragment:
        return NOTHING if plan is None else self._render(plan)

    def _reading_is_due(self) -> bool:
        if not self._drift.proves or self._drift.changed() or self._read_at is None:
            return True
        return self._clock() - self._read_at >= READ_AT_LEAST

    def _done(self, outcome: Outcome) -> Outcome:
        if outcome.transactions:
            self._drift.wrote()
        outcome.abandoned, self._abandoned = tuple(self._abandoned), {}
        outcome.rejected = {key: why for key, (_, why) in self._refused.items()}
        outcome.rules_total = dict(self._totals)
        return outcome


def _count(totals: Counter[str], fragment: Fragment, sign: int) -> None:
    totals["nat"] += sign * sum(len(chain.rules) for chain in fragment.chains)
    for rule in fragment.shared:
        totals[rule.table] += sign


def _replace(target: dict[PortKey, P], key: PortKey, plan: P | None) -> None:
    if plan is None:
        target.pop(key, None)
    else:
        target[key] = plan
