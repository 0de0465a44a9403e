"""Brings one family's iptables tables to what some Service ports need, in whatever mode the rules are rendered.

Decides: when the difference between two states of a port is enough, when the kernel is read, and what is trusted
afterwards. Leaves out: the rules themselves (each mode's render), the differences (reconcile), and isolating what the
kernel refuses (restore_writer).

Of the rules only the values that they were rendered from are kept: rendering is a pure function, so the old rules of a
port are rendered again when it changes. After any failure nothing is trusted and the next apply reads the kernel.

Where a table cannot be read because of what others have in it, a full check writes the ports' chains without a
comparison: at first, when others changed something, and now and then where that would go unnoticed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from kproxy import logs
from kproxy.errors import RestoreError, one_line
from kproxy.kernel.iptables import Tables
from kproxy.model.plans import Family, Frontend, PortKey
from kproxy.modes.base import Outcome
from kproxy.modes.xtables.cleanup import clean, superseded
from kproxy.modes.xtables.reading import read
from kproxy.modes.xtables.reconcile import Change, Reconciliation, delta
from kproxy.modes.xtables.restore_writer import LIMITS, Writer
from kproxy.modes.xtables.restores import NODE, Owner
from kproxy.modes.xtables.rules import Base, Chain, Fragment

_log = logs.get("iptables")

P = TypeVar("P")
"""What a mode renders the rules of one port from; an immutable value that compares by content."""

NOTHING = Fragment()
READ_AT_LEAST = 3600.0
"""Seconds after which the tables are read even if the kernel notified of no change: trust must not rest on one
source."""
REWRITE_AFTER = 30.0
"""Seconds after which chains that cannot be read are written again where others' changes may go unnoticed."""


class RenderFault(Exception):
    """Rendering the port KEY raised `error`, an unexpected exception."""

    def __init__(self, key: PortKey, error: Exception) -> None:
        super().__init__(f"{key}: {fault_reason(error)}")
        self.error = error


def fault_reason(error: Exception) -> str:
    """The line of `Outcome.rejected` for a port that could not be rendered because of ERROR."""
    return one_line(f"unexpected {type(error).__name__}: {error}")


class Drift(Protocol):
    """Notices changes of this family's tables by other programs. Used by one thread at a time."""

    @property
    def proves(self) -> bool:
        """Whether `changed() is False` proves that nothing changed (the generation notifications of nf_tables), or
        only makes it likely (comparing sizes)."""

    def reading(self) -> None:
        """Note that the tables are about to be read: that read will see what others changed before this moment."""

    def wrote(self) -> None:
        """Note that this dataplane has written: its own writes are not drift."""

    def changed(self) -> bool:
        """Whether others changed the tables since `reading`; also true when that is unknown."""


class NoDrift:
    """A Drift that notices nothing and proves nothing: only full checks find what others did."""

    proves = False

    def reading(self) -> None:
        """Do nothing."""

    def wrote(self) -> None:
        """Do nothing."""

    def changed(self) -> bool:
        return False


class ChainWriter(Generic[P]):
    """Programs one family through iptables-restore. Used by one thread; shares nothing with the other family's.

    base: what the node needs regardless of its ports. render: the rules of one port. clock: seconds, monotonic.

    A port whose rendering raises an exception is rejected and keeps the rules that it had, unless those cannot be
    rendered either. It is rendered again whenever it is touched.
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
        self._faults: dict[PortKey, Exception] = {}
        self._abandoned: dict[Frontend, None] = {}
        self._totals: Counter[str] = Counter()
        self._trusted = False
        self._read_at: float | None = None
        self._rewritten_at = float("-inf")
        self._unreadable: dict[str, str] = {}

    def rebase(self, base: Base, render: Callable[[P], Fragment]) -> None:
        """Replace `base` and `render`: the next apply compares everything with the kernel."""
        self._base, self._render, self._trusted = base, render, False

    def drifted(self) -> bool:
        """Whether another program changed the tables since the last apply. Cheap."""
        return self._drift.changed()

    def cleanup(self) -> None:
        """Delete all that kube-proxy or kproxy ever wrote into this backend's tables, in whatever mode."""
        self._trusted, self._held = False, {}
        clean(self._tables)
        self._drift.wrote()

    def apply(self, wanted: Mapping[PortKey, P], touched: Collection[PortKey] | None) -> Outcome:
        """Bring the kernel to WANTED; touched: as in Dataplane.apply."""
        outcome = Outcome()
        full, trusted, whole = touched is None, self._trusted, not self._unreadable
        drifted = full and self._drift.changed()
        known = trusted and not drifted
        with outcome.kept_on_failure():
            if known and self._change(wanted, touched, outcome) and not (full and self._reading_is_due()):
                return self._done(outcome)
            before = outcome.transactions
            self._check(wanted, outcome, believe=known and self._trusted and self._notices())
        if drifted:  # who flushes one table flushes the next, while this was written
            self._rewritten_at = float("-inf")
        # A refused port is written and deleted again at every check.
        refused = self._refused or self._faults
        outcome.repaired = full and trusted and not refused and outcome.transactions > before
        outcome.repaired &= drifted or (whole and not self._unreadable)  # else it may have been as it should
        return self._done(outcome)

    # ---------------------------------------------------------------- by difference

    def _change(self, wanted: Mapping[PortKey, P], touched: Collection[PortKey] | None, outcome: Outcome) -> bool:
        """Write what differs between the held and the wanted plans; False when everything has to be compared."""
        keys = {*self._held, *wanted} if touched is None else touched
        if touched is None:
            self._refused = {}  # a full check tries them again
        differing = [key for key in keys if self._differs(key, wanted.get(key))]
        for key in [key for key in self._refused if key not in wanted or key in differing]:
            del self._refused[key]
        self._faults = {} if touched is None else {k: e for k, e in self._faults.items() if k not in keys}
        if not differing:
            return True
        self._trusted = False
        totals = self._totals.copy()
        changes = self._changes(differing, wanted, totals)
        whole = lambda table, chain: self._whole(table, chain, wanted)  # noqa: E731
        try:
            Writer(self._tables, outcome, isolate=False).run(delta(changes, self._limit, whole))
        except RestoreError as error:
            _log.warning("The kernel refused a change; comparing everything", family=self.family.value, why=str(error))
            return False
        except RenderFault as error:
            _log.warning("Old rules cannot be rendered; comparing everything", family=self.family.value, why=str(error))
            return False
        for key in differing:
            if key not in self._faults:
                _replace(self._held, key, wanted.get(key))
        self._totals, self._trusted = totals, True
        return True

    def _differs(self, key: PortKey, plan: P | None) -> bool:
        """A refused plan is left alone until it changes."""
        return self._held.get(key) != plan and not (key in self._refused and self._refused[key][0] == plan)

    def _changes(self, keys: Iterable[PortKey], wanted: Mapping[PortKey, P], totals: Counter[str]) -> Iterator[Change]:
        for key in keys:
            try:
                new = self._fragment(key, wanted.get(key))
            except RenderFault as fault:
                self._faults[key] = fault.error
                continue
            old = self._fragment(key, self._held.get(key))
            _count(totals, old, -1)
            _count(totals, new, 1)
            yield Change(key, old, new)

    def _whole(self, table: str, chain: str, wanted: Mapping[PortKey, P]) -> list[tuple[Owner, str]]:
        rules: list[tuple[Owner, str]] = [
            (key, rule.rule)
            for key, plan in wanted.items()
            for rule in self._fragment(key, self._held.get(key) if self._keeps_old(key) else plan).shared
            if (rule.table, rule.chain) == (table, chain)
        ]
        return [*rules, *((NODE, rule) for rule in self._base.shared.get((table, chain), ()))]

    # ---------------------------------------------------------------- by comparison with the kernel

    def _check(self, wanted: Mapping[PortKey, P], outcome: Outcome, believe: bool) -> None:
        """Make the kernel equal to the wanted plans, except for ports that are refused: they keep what they had.

        believe: chains that cannot be read are as they were written last.
        """
        self._trusted = False
        self._refused, self._faults = {}, {}
        target = dict(wanted)
        refused = self._compare(target, outcome, believe)
        if refused:
            self._refused = {key: (wanted[key], why) for key, why in refused.items()}
            for key in refused:
                _replace(target, key, self._held.get(key))
            # This deletes what the refused ports had written before the line that was refused.
            for key in self._compare(target, outcome, believe=False):
                del target[key]
        self._held = target
        self._trusted = True

    def _compare(self, target: dict[PortKey, P], outcome: Outcome, believe: bool) -> dict[PortKey, str]:
        """Write what differs between the kernel and TARGET; returns the ports that the kernel refused."""
        if not believe:  # else what others change meanwhile has to be noticed, as it is not read
            self._drift.reading()
        saved = read(self._tables, self._base)
        ours = {table for table, _ in (*self._base.owned, *self._base.shared, *self._base.jumps)}
        self._unreadable = {f"table {table}": why for table, why in saved.unreadable.items() if table in ours}
        believed = self._believed if believe else _nothing
        comparison = Reconciliation(saved, self._base, self.family, self._limit, believed)
        writer = Writer(self._tables, outcome, isolate=True)
        try:
            writer.run(comparison.restores(self._fragments(target)))
            writer.run(superseded(saved, self._base, self._limit, comparison.left))
        finally:
            if not believe or outcome.transactions:
                self._drift.wrote()
            # Kept until an apply succeeds: what is gone from the kernel is not found a second time.
            self._abandoned.update(dict.fromkeys(comparison.abandoned))
        self._read_at = self._clock()
        if not believe:
            self._rewritten_at = self._read_at
        self._totals = comparison.totals
        for why in writer.refused.values():
            _log.warning("The kernel refused rules", family=self.family.value, why=why)
        return writer.refused_ports

    def _fragments(self, target: dict[PortKey, P]) -> Iterator[tuple[PortKey, Fragment]]:
        """The rules of TARGET. Where a plan cannot be rendered, TARGET gets the one that is held, if that can be."""
        for key, plan in tuple(target.items()):
            try:
                fragment = self._fragment(key, plan)
            except RenderFault as fault:
                self._faults[key] = fault.error
                held = self._held.get(key)
                try:
                    fragment = self._fragment(key, held)
                except RenderFault:
                    held, fragment = None, NOTHING
                _replace(target, key, held)
            yield key, fragment

    def _believed(self, key: PortKey) -> Collection[Chain]:
        try:
            return self._fragment(key, self._held.get(key)).chains
        except RenderFault:
            return ()

    def _notices(self) -> bool:
        """Whether nothing that others change where nothing can be read stays unnoticed for long."""
        return self._drift.proves or self._clock() - self._rewritten_at < REWRITE_AFTER

    # ---------------------------------------------------------------- small things

    @property
    def _limit(self) -> int:
        return LIMITS[self._tables.backend]

    def _fragment(self, key: PortKey, plan: P | None) -> Fragment:
        """The rules of a plan, NOTHING for none. Raises RenderFault."""
        if plan is None:
            return NOTHING
        try:
            return self._render(plan)
        except Exception as error:
            raise RenderFault(key, error) from error

    def _keeps_old(self, key: PortKey) -> bool:
        return key in self._refused or key in self._faults

    def _reading_is_due(self) -> bool:
        if not self._drift.proves or self._unreadable or self._drift.changed() or self._read_at is None:
            return True
        return self._clock() - self._read_at >= READ_AT_LEAST

    def _done(self, outcome: Outcome) -> Outcome:
        if outcome.transactions:
            self._drift.wrote()
        outcome.abandoned, self._abandoned = tuple(self._abandoned), {}
        outcome.rejected = {key: why for key, (_, why) in self._refused.items()}
        outcome.rejected |= {key: fault_reason(error) for key, error in self._faults.items()}
        outcome.faults = dict(self._faults)
        outcome.rules_total = dict(self._totals)
        outcome.unreadable = dict(self._unreadable)
        return outcome


def _nothing(key: PortKey) -> Collection[Chain]:
    return ()


def _count(totals: Counter[str], fragment: Fragment, sign: int) -> None:
    totals["nat"] += sign * sum(len(chain.rules) for chain in fragment.chains)
    for rule in fragment.shared:
        totals[rule.table] += sign


def _replace(target: dict[PortKey, P], key: PortKey, plan: P | None) -> None:
    if plan is None:
        target.pop(key, None)
    else:
        target[key] = plan
