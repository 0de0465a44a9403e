"""nftables mode's Dataplane: writes one family's plans to its table.

Decides: when the difference between two plans is enough, when the table is read, and what is believed afterwards.
Leaves out: what plans become (render), who needs what (ownership), the order of writing (delta), which generation of
nf_tables is expected (kproxy.netfilter.table), how others' edits are undone (repair), how a listing is compared
(compare), and which port a refusal belongs to (refusals).

A change is one transaction on the elements of its ports. Others' edits are undone from what the kernel's notifications
tell. A full check lists the table and writes only what differs; where there is no table yet it is written port by port,
in portions that each hold the kernel's lock for some 15 ms. After any failure nothing is believed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain as chained

from kproxy import logs
from kproxy.errors import KernelError, NetlinkError
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.nftables import names
from kproxy.modes.nftables.compare import OtherForm, replacement
from kproxy.modes.nftables.delta import Delta, by_set, difference, elements, transactions
from kproxy.modes.nftables.fragments import Fragment, Settings
from kproxy.modes.nftables.ownership import Place
from kproxy.modes.nftables.refusals import OBSTACLES, contradicts, ports_at, refused_ports
from kproxy.modes.nftables.render import lay_out, render_port, verdict_entries
from kproxy.modes.nftables.repair import Wanted, repair
from kproxy.modes.nftables.table_state import NOTHING, TableState, Unrenderable
from kproxy.netfilter.kernel import Listing
from kproxy.netfilter.operations import DeleteTable, Operation
from kproxy.netfilter.table import Outdated, Table, Unattributed

_log = logs.get("nftables")

READ_AT_LEAST = 3600.0
"""Seconds after which the table is read although no notification asks for it: what is believed must not rest on one
source for ever."""
ATTEMPTS = 5
"""How often in a row others may change the table in between, before the proxier's own backoff takes over."""
UNLIMITED = 1 << 32  # more elements than any transaction has


class NftablesDataplane:
    """Programs the table of one family."""

    def __init__(self, settings: Settings, table: Table, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds, monotonic."""
        self._settings, self._table, self._clock = settings, table, clock
        self._taken_over = self._trusted = False
        self._read_at = clock()
        self._expected: set[Place | str] = set()  # places that differ because plans did
        self._distrust()

    @property
    def family(self) -> Family:
        return self._settings.family

    def configure(self, settings: Settings) -> None:
        """Takes new settings. When they differ the next apply compares everything with the kernel."""
        if settings != self._settings:
            self._settings = settings
            self._distrust()

    def apply(self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None) -> Outcome:
        outcome, written, before = Outcome(), self._table.bytes_written, self._table.transactions
        believed, self._trusted = self._trusted, False
        self._held.begin()
        try:
            with outcome.kept_on_failure():
                try:
                    self._program(wanted, touched, believed, outcome)
                except Unattributed as refusal:
                    raise refusal.error from None
        except BaseException:
            self._distrust()
            raise
        self._trusted = True
        self._expected = set()
        outcome.rejected = dict(self._held.rejected)
        outcome.faults = dict(self._held.faults)
        outcome.rules_total = {names.TABLE: self._held.total}
        outcome.bytes_written = self._table.bytes_written - written
        outcome.transactions = self._table.transactions - before
        return outcome

    def drifted(self) -> bool:
        self._table.listen()
        return self._table.changed()

    def housekeeping(self) -> float | None:
        """Does nothing: connections to a removed endpoint stay with it, in the kernel."""
        return None

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """The entries of the maps that send packets to the port, as nft prints them."""
        return verdict_entries(render_port(plan, self._settings))

    def _distrust(self) -> None:
        """Forgets what the table is believed to hold."""
        self._held = TableState(self._settings)
        self._expected = set()
        self._trusted = False

    def _program(
        self,
        wanted: Mapping[PortKey, ServicePlan],
        touched: Collection[PortKey] | None,
        believed: bool,
        outcome: Outcome,
    ) -> None:
        """Writes the difference if that is enough, else checks everything.

        A port that can no longer be rendered leaves it unknown what the table holds for it. So everything is checked,
        as often as there are such ports, and without them.
        """
        known = False
        try:
            known = believed and self._follow(wanted, touched, outcome)
            if known and not (touched is None and self._clock() - self._read_at >= READ_AT_LEAST):
                return None
        except Unrenderable as fault:
            self._held.reject_fault(fault)
            believed = False
        while True:
            try:
                return self._check(wanted, believed, known, outcome)
            except Unrenderable as fault:
                self._held.reject_fault(fault)
                believed = known = False

    # ---------------------------------------------------------------- a change

    def _follow(
        self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None, outcome: Outcome
    ) -> bool:
        """Undoes what others edited, and writes what differs between plans. touched: None for all ports.

        False when the table is not as it was believed to be, or when that is not known; then everything has to be
        compared.
        """
        ports = sorted(self._held.differing(wanted, touched))
        for _ in range(ATTEMPTS):
            try:
                return self._undo_edits(outcome) and self._change(wanted, ports, outcome)
            except Outdated:
                continue
        _log.info("Other programs keep changing the table; comparing all of it", family=self.family.value)
        return False

    def _undo_edits(self, outcome: Outcome) -> bool:
        """Undoes what others did to the table. False when that is not known, or not possible piece by piece."""
        events = self._table.changes()
        for _ in range(ATTEMPTS):
            if not events:
                return events is not None
            with_chains = (key for key, plan in self._held.plans.items() if plan.affinity_seconds)
            held = self._held
            delta = repair(events, held.sets, Wanted(held.base, held.ownership, held.fragment, with_chains))
            if delta is None:
                return False
            _log.info(
                "Another program changed the table; undoing it",
                family=self.family.value,
                places=len(set(delta.places)),
            )
            try:
                if self._commit(self._at_once(delta), outcome):
                    return False
            except Outdated:
                more = self._table.changes()
                events = None if more is None else events + more
                continue
            except Unattributed:
                return False
            outcome.repaired |= any(True for _ in delta.places)
            self._count_written(delta, outcome)
            return True
        return False

    def _change(self, wanted: Mapping[PortKey, ServicePlan], keys: Sequence[PortKey], outcome: Outcome) -> bool:
        """Writes what differs for some ports. False when the table is not as it was believed to be.

        Raises Outdated, Unrenderable.
        """
        former = {key: (self._held.plans.get(key), self._held.rejected.get(key)) for key in keys}
        old, new = self._held.take(wanted, keys)
        while True:
            delta = difference(self._held.ownership.change(old, new))
            self._expected.update(delta.places)
            operations = self._at_once(delta)
            errors: Mapping[int, NetlinkError] = {}
            refused: dict[PortKey, str] = {}
            unattributed = ""
            try:
                errors = self._commit(operations, outcome)
            except Outdated:
                self._held.restore(former, old, new)
                raise
            except Unattributed as refusal:
                unattributed = str(refusal)
            if errors and not contradicts(errors):
                refused = refused_ports(operations, errors, new.items())
                unattributed = "" if refused else str(next(iter(errors.values())))
            if not errors and not unattributed:
                self._held.count(delta)
                self._count_written(delta, outcome)
                return True
            if unattributed and len(keys) > 1:
                self._held.restore(former, old, new)
                half = len(keys) // 2
                return self._change(wanted, keys[:half], outcome) and self._change(wanted, keys[half:], outcome)
            if unattributed:
                refused = {key: unattributed for key in keys if new[key] is not NOTHING}
            if not refused:
                why = unattributed or str(next(iter(errors.values())))
                _log.warning(
                    "The kernel refused a change; comparing the whole table", family=self.family.value, why=why
                )
                return False
            self._held.ownership.change(new, old)
            self._held.rejected.update(refused)
            new.update(dict.fromkeys(refused, NOTHING))

    def _at_once(self, delta: Delta) -> list[Operation]:
        return [*chained.from_iterable(transactions(delta, self._held.sets, most=UNLIMITED))]

    # ---------------------------------------------------------------- everything

    def _check(self, wanted: Mapping[PortKey, ServicePlan], believed: bool, known: bool, outcome: Outcome) -> None:
        """Reads the table and writes what differs, until it is as wanted except for what the kernel refuses.

        believed: the table should be as it was left. known: no notification says that it is not. Raises Unrenderable,
        Unattributed, KernelError.
        """
        self._take_all(wanted, believed)
        last = self._last()
        attempts = ATTEMPTS
        anew = False
        while True:
            try:
                refused = self._compare_and_write(last, believed, known, outcome, anew)
            except NetlinkError as error:
                if anew or error.errno not in OBSTACLES:
                    raise
                _log.warning(
                    "The table cannot be read or repaired because of what another program has in it; writing it anew",
                    family=self.family.value,
                    why=str(error),
                )
                anew = True
                continue
            except Outdated:
                attempts -= 1
                known = False
                if not attempts:
                    raise KernelError(
                        f"other programs keep changing table {names.TABLE} ({self.family.value})"
                    ) from None
                continue
            except Unattributed as refusal:
                if not self._write_by_halves(wanted, last, outcome):
                    raise refusal.error from None
                break
            if not refused:
                break
            self._held.rejected.update(refused)
        self._taken_over = True
        self._read_at = self._clock()

    def _take_all(self, wanted: Mapping[PortKey, ServicePlan], believed: bool) -> None:
        """Takes over all plans. The places where they differ from what was written do not count as edits of others."""
        if believed:
            change = self._held.ownership.change(*self._held.take(wanted, self._held.differing(wanted, None)))
            self._expected.update(difference(change).places)
        self._held.replace(wanted)

    def _last(self) -> Sequence[Operation]:
        """The deletion of kube-proxy's own table, for the transaction that completes ours; empty when there is none."""
        if self._taken_over or not self._table.can_delete(names.KUBE_PROXY_TABLE):
            return []
        _log.info("Taking over from kube-proxy; deleting its table", family=self.family.value)
        return [DeleteTable(names.KUBE_PROXY_TABLE)]

    def _compare_and_write(
        self, last: Sequence[Operation], believed: bool, known: bool, outcome: Outcome, anew: bool
    ) -> dict[PortKey, str]:
        """Makes one attempt. Returns the ports because of which something was refused; then not all is written.

        anew: put all that is wanted in the place of the table, whatever it holds. Raises Outdated, Unrenderable,
        Unattributed, KernelError.
        """
        if anew:
            with suppress(NetlinkError):  # what it holds does not matter, only that it does not change meanwhile
                self._table.read(self._held.sizes())
            outcome.repaired |= believed
            return self._write(self._replacement(), last, outcome)
        listing = self._table.read(self._held.sizes())
        if listing is None:
            outcome.repaired |= believed
            return self._write_new_table(last, outcome)
        delta = self._compare(listing, known)
        outcome.repaired |= believed and any(place not in self._expected for place in delta.places)
        outcome.abandoned = (*outcome.abandoned, *self._held.abandoned(delta))
        return self._write(delta, last, outcome)

    def _write_new_table(self, last: Sequence[Operation], outcome: Outcome) -> dict[PortKey, str]:
        """Writes the table port by port; packets enter it only at the end."""
        self._held.start_over()
        hooks = [chain for chain in self._held.base.chains if chain.base is not None]
        first = Delta(new=True, sets=[*self._held.base.sets], missing=by_set(self._held.base.elements))
        first.chains = [chain for chain in self._held.base.chains if chain.base is None]
        if refused := self._write(first, (), outcome):
            return refused
        self._held.count(first)
        with ThreadPoolExecutor(1, thread_name_prefix=f"commit-{self.family}") as writer:
            # The kernel works on one portion while the next is prepared.
            writing: Future[dict[PortKey, str]] | None = None
            for ports, delta in self._portions():
                if writing is not None and (refused := writing.result()):
                    return refused
                writing = writer.submit(self._write, delta, (), outcome, ports)
                self._held.count(delta)
            if writing is not None and (refused := writing.result()):
                return refused
        hooked = Delta(chains=hooks)
        self._held.count(hooked)
        return self._write(hooked, last, outcome)

    def _portions(self) -> Iterator[tuple[dict[PortKey, Fragment], Delta]]:
        """Yields all ports in portions, each with what it adds to the table."""
        for ports in self._held.portions():
            needs = self._held.ownership.admit(ports)
            yield ports, Delta(sets=needs.sets, chains=needs.chains, missing=elements(needs, self._held.sets))

    def _compare(self, listing: Listing, known: bool) -> Delta:
        """The difference between `listing` and what all ports need; admits all ports."""
        try:
            delta, chains = self._held.compare(listing, known)
        except OtherForm:
            return self._replacement()
        self._held.size += len(self._held.base.elements)
        self._held.rules = Counter({name: len(chain.rules) for name, chain in chains.items()})
        return delta

    def _replacement(self) -> Delta:
        """All that the ports need, in place of the table; admits all ports."""
        self._held.start_over()
        for ports in self._held.portions():
            self._held.ownership.admit(ports)
        layout = lay_out(self._held.base, self._held.fragments())
        self._held.size = sum(map(len, layout.elements.values()))
        self._held.rules = Counter({name: len(chain.rules) for name, chain in layout.chains.items()})
        return replacement(layout)

    def _write_by_halves(
        self, wanted: Mapping[PortKey, ServicePlan], last: Sequence[Operation], outcome: Outcome
    ) -> bool:
        """Finds the ports because of which the kernel refuses something without saying what: writes first what differs
        without the ports that it could be, then those by halves. A check by the kernel would not help, as it leaves out
        what comes at the end of a transaction.

        False when it cannot be these ports. Raises Outdated, Unattributed, KernelError.
        """
        _log.warning(
            "The kernel refused a transaction without saying which part; searching for the Service ports at fault",
            family=self.family.value,
        )
        listing = self._table.read(self._held.sizes())
        places = () if listing is None else [*self._compare(listing, known=True).places]
        suspects = sorted(self._held.plans) if listing is None else ports_at(places, self._held.fragments())
        if not suspects:
            return False
        for key in suspects:
            del self._held.plans[key]
        if listing is None:
            refused = self._write_new_table((), outcome)
        else:
            refused = self._write(self._compare(listing, known=True), (), outcome)
        return not refused and self._change(wanted, suspects, outcome) and not self._commit(last, outcome)

    def _write(
        self,
        delta: Delta,
        last: Sequence[Operation],
        outcome: Outcome,
        ports: Mapping[PortKey, Fragment] | None = None,
    ) -> dict[PortKey, str]:
        """Writes `delta`. Returns those of `ports` (None: of all) because of which the kernel refused something; then
        not all is written."""
        for operations in transactions(delta, self._held.sets, last):
            if errors := self._commit(operations, outcome):
                refused = refused_ports(operations, errors, self._held.fragments() if ports is None else ports.items())
                if not refused and not contradicts(errors):
                    raise Unattributed(next(iter(errors.values())))
                if not refused:
                    raise next(iter(errors.values()))
                return refused
        self._count_written(delta, outcome)
        return {}

    def _commit(self, operations: Sequence[Operation], outcome: Outcome) -> Mapping[int, NetlinkError]:
        """See Table.commit; records a refusal."""
        try:
            errors = self._table.commit(operations)
        except Unattributed as refusal:
            outcome.refusals.append(str(refusal))
            raise
        outcome.refusals += [str(error) for error in errors.values()][:1]
        return errors

    def _count_written(self, delta: Delta, outcome: Outcome) -> None:
        rules = sum(len(chain.rules) for chain in (*delta.chains, *delta.changed))
        filled = sum(filling.number for filling in delta.filled.values())
        written = rules + filled + sum(map(len, delta.missing.values()))
        outcome.rules_written = {names.TABLE: outcome.rules_written.get(names.TABLE, 0) + written}
