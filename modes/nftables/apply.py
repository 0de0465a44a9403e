"""nftables mode's Dataplane: brings one family's table to the wanted plans.

Decides: when the difference between two plans is enough, when the table is read, and what is believed afterwards.
Leaves out: what plans become (render, layout), who needs what (claims), the order of writing (delta), which generation
of nf_tables is expected (committing), what others' edits broke (mending), what the kernel's table lacks (reading), and
whose fault a refusal is (blame).

A change is one transaction on the elements of its ports. What others edit is mended from what the kernel tells of it. A
full check lists the table and writes only what differs; the first one of an empty kernel writes port by port, in pieces
that each hold the kernel's lock for some 15 ms. After any failure nothing is believed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain as chained

from kproxy import logs
from kproxy.errors import KernelError, NetlinkError
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.nftables import names
from kproxy.modes.nftables.cleanup import KUBE_PROXY_TABLE, clean, holds
from kproxy.modes.nftables.compare import Comparison, OtherForm, whole
from kproxy.modes.nftables.delta import Delta, by_set, difference, transactions
from kproxy.modes.nftables.encode_bulk import elements
from kproxy.modes.nftables.fragments import Fragment, Settings
from kproxy.modes.nftables.layout import lay_out
from kproxy.modes.nftables.ownership import Place
from kproxy.modes.nftables.refusals import concerned, guilty, surprising
from kproxy.modes.nftables.render import described, render_port
from kproxy.modes.nftables.repair import mended
from kproxy.modes.nftables.table_state import NOTHING, TableState
from kproxy.modes.nftables.wanted_places import Wanted
from kproxy.netfilter.commits import Committer, Disturbed, Drift, Unattributed
from kproxy.netfilter.operations import DeleteTable, Operation
from kproxy.netfilter.table import Listing, Nftables

_log = logs.get("nftables")

READ_AT_LEAST = 3600.0
"""Seconds. Even though the kernel tells of every change, the table is read this often: what is believed must not rest
on one source for ever."""
ATTEMPTS = 5
"""How often in a row others may change the table in between, before the loop's own backoff takes over."""
ONE = 1 << 32  # more elements than any transaction has


class NftablesDataplane:
    """Programs the table of one family."""

    def __init__(
        self,
        settings: Settings,
        kernel: Nftables,
        drift: Drift | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """drift: None: the table is read again after every transaction of anyone else. clock: seconds, monotonic."""
        self._settings, self._kernel, self._drift, self._clock = settings, kernel, drift, clock
        self._committer = Committer(settings.family, names.TABLE, kernel, drift)
        self._takeover, self._trusted = True, False
        self._read_at = clock()
        self._expected: set[Place | str] = set()
        self._forget()

    @property
    def family(self) -> Family:
        return self._settings.family

    def configure(self, settings: Settings) -> None:
        """Take new settings. When they differ the next apply compares everything with the kernel."""
        if settings != self._settings:
            self._settings = settings
            self._forget()

    def apply(self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None) -> Outcome:
        """As Dataplane.apply."""
        outcome, written, before = Outcome(), self._kernel.bytes_written, self._committer.transactions
        believed, self._trusted = self._trusted, False
        try:
            known = believed and self._follow(wanted, touched, outcome)
            if not known or (touched is None and self._reading_is_due()):
                self._check(wanted, believed, known, outcome)
        except Unattributed as refusal:
            self._forget()
            raise refusal.error from None
        except BaseException:
            self._forget()
            raise
        self._trusted = True
        self._expected = set()
        outcome.rejected = dict(self._held.rejected)
        outcome.rules_total = {names.TABLE: self._held.total}
        outcome.bytes_written = self._kernel.bytes_written - written
        outcome.transactions = self._committer.transactions - before
        return outcome

    def drifted(self) -> bool:
        """As Dataplane.drifted."""
        if self._drift is None:
            return False
        self._drift.listen()
        return self._drift.changed()

    def housekeeping(self) -> float | None:
        """As Dataplane.tend: an endpoint that left keeps its connections, the kernel sees to it."""
        return None

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """As Dataplane.names: the entries of the maps that lead to the port, as nft prints them."""
        return described(render_port(plan, self._settings))

    def cleanup(self) -> None:
        """As Dataplane.cleanup: the table of this family."""
        self._forget()
        if problems := clean(self._kernel, [self.family], [names.TABLE]):
            raise KernelError("; ".join(problems))

    def _forget(self) -> None:
        """Nothing is believed."""
        self._held = TableState(self._settings)
        self._expected = set()
        self._trusted = False

    def _reading_is_due(self) -> bool:
        return self._clock() - self._read_at >= READ_AT_LEAST

    # ---------------------------------------------------------------- a change

    def _follow(
        self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None, outcome: Outcome
    ) -> bool:
        """Mend what others edited, and write what differs between plans. touched: None for all ports.

        False when the table is not as it was believed to be, or when that is not known; then everything has to be
        compared.
        """
        if touched is None and not self._committer.watches:
            return False
        ports = sorted(self._held.differing(wanted, touched))
        for _ in range(ATTEMPTS):
            try:
                return self._mend(outcome) and self._put(wanted, ports, outcome)
            except Disturbed:
                if not self._committer.watches:
                    break
        _log.info("Others changed the table, or may have; comparing everything", family=self.family.value)
        return False

    def _mend(self, outcome: Outcome) -> bool:
        """Undo what others did to the table. False when that is not known, or not possible piece by piece."""
        events = self._committer.take()
        for _ in range(ATTEMPTS):
            if not events:
                return events is not None
            with_chains = (key for key, plan in self._held.plans.items() if plan.affinity_seconds)
            held = self._held
            delta = mended(events, held.sets, Wanted(held.base, held.claims, held.fragment, with_chains))
            if delta is None:
                return False
            _log.info("Others changed the table; mending it", family=self.family.value, places=len(set(delta.places)))
            try:
                if self._committer.commit(self._at_once(delta)):
                    return False
            except Disturbed:
                more = self._committer.take()
                events = None if more is None else events + more
                continue
            except Unattributed:
                return False
            outcome.repaired |= any(True for _ in delta.places)
            self._count_written(delta, outcome)
            return True
        return False

    def _put(self, wanted: Mapping[PortKey, ServicePlan], keys: Sequence[PortKey], outcome: Outcome) -> bool:
        """Write what differs for some ports. False when the table is not as it was believed to be. Raises Disturbed."""
        former = {key: (self._held.plans.get(key), self._held.rejected.get(key)) for key in keys}
        old, new = self._held.take(wanted, keys)
        while True:
            delta = difference(self._held.claims.change(old, new))
            self._expected.update(delta.places)
            operations = self._at_once(delta)
            errors: Mapping[int, NetlinkError] = {}
            found: dict[PortKey, str] = {}
            unattributed = ""
            try:
                errors = self._committer.commit(operations)
            except Disturbed:
                self._held.restore(former, old, new)
                raise
            except Unattributed as refusal:
                unattributed = str(refusal)
            if errors and not surprising(errors):
                found = guilty(operations, errors, new.items())
                unattributed = "" if found else str(next(iter(errors.values())))
            if not errors and not unattributed:
                self._held.count(delta)
                self._count_written(delta, outcome)
                return True
            if unattributed and len(keys) > 1:
                self._held.restore(former, old, new)
                half = len(keys) // 2
                return self._put(wanted, keys[:half], outcome) and self._put(wanted, keys[half:], outcome)
            if unattributed:
                found = {key: unattributed for key in keys if new[key] is not NOTHING}
            if not found:
                why = unattributed or str(next(iter(errors.values())))
                _log.warning("A change was refused; comparing everything", family=self.family.value, why=why)
                return False
            self._held.claims.change(new, old)
            self._held.rejected.update(found)
            new.update(dict.fromkeys(found, NOTHING))

    def _at_once(self, delta: Delta) -> list[Operation]:
        return [*chained.from_iterable(transactions(delta, self._held.sets, most=ONE))]

    # ---------------------------------------------------------------- everything

    def _check(self, wanted: Mapping[PortKey, ServicePlan], believed: bool, known: bool, outcome: Outcome) -> None:
        """Read the table and write what differs, until it is as wanted but for what the kernel refuses.

        believed: the table should be as it was left. known: nobody said that it is not.
        """
        self._replan(wanted, believed)
        last = self._last()
        attempts = ATTEMPTS
        while True:
            try:
                found = self._bring(last, believed, known, outcome)
            except Disturbed:
                attempts -= 1
                known = False
                if not attempts:
                    raise KernelError(f"others keep changing table {names.TABLE} ({self.family.value})") from None
                continue
            except Unattributed as refusal:
                if not self._bring_apart(wanted, last, outcome):
                    raise refusal.error from None
                break
            if not found:
                break
            self._held.rejected.update(found)
        self._takeover = False
        self._read_at = self._clock()

    def _replan(self, wanted: Mapping[PortKey, ServicePlan], believed: bool) -> None:
        """Take in all plans."""
        if believed:
            change = self._held.claims.change(*self._held.take(wanted, self._held.differing(wanted, None)))
            self._expected.update(difference(change).places)
        self._held.plans = dict(wanted)
        self._held.rejected = {}

    def _last(self) -> Sequence[Operation]:
        """kube-proxy's own table goes in the transaction with which ours stands."""
        if self._takeover and holds(self._kernel, self.family, KUBE_PROXY_TABLE):
            _log.info("Taking over from kube-proxy's table", family=self.family.value)
            return [DeleteTable(KUBE_PROXY_TABLE)]
        return []

    def _bring(self, last: Sequence[Operation], believed: bool, known: bool, outcome: Outcome) -> dict[PortKey, str]:
        """One attempt. Returns the ports because of which something was refused; then not all is written.

        Raises Disturbed, Unattributed, KernelError.
        """
        listing = self._committer.read(self._held.sizes())
        if listing is None:
            outcome.repaired |= believed
            return self._build(last, outcome)
        delta = self._compared(listing, known)
        outcome.repaired |= believed and any(place not in self._expected for place in delta.places)
        outcome.abandoned = (*outcome.abandoned, *self._held.abandoned(delta))
        return self._write(delta, last, outcome)

    def _build(self, last: Sequence[Operation], outcome: Outcome) -> dict[PortKey, str]:
        """Make the table, port by port; only with the end of it packets come in."""
        self._held.start_over()
        hooks = [chain for chain in self._held.base.chains if chain.base is not None]
        first = Delta(new=True, sets=[*self._held.base.sets], missing=by_set(self._held.base.elements))
        first.chains = [chain for chain in self._held.base.chains if chain.base is None]
        if found := self._write(first, (), outcome):
            return found
        self._held.count(first)
        with ThreadPoolExecutor(1, thread_name_prefix=f"commit-{self.family}") as writer:
            # The kernel works on one portion while the next is prepared.
            writing: Future[dict[PortKey, str]] | None = None
            for ports, delta in self._portions():
                if writing is not None and (found := writing.result()):
                    return found
                writing = writer.submit(self._write, delta, (), outcome, ports)
                self._held.count(delta)
            if writing is not None and (found := writing.result()):
                return found
        hooked = Delta(chains=hooks)
        self._held.count(hooked)
        return self._write(hooked, last, outcome)

    def _portions(self) -> Iterator[tuple[dict[PortKey, Fragment], Delta]]:
        """Some ports after the others, and what they add to the table."""
        sets: set[str] = set()
        for ports in self._held.portions():
            needs = self._held.claims.admit(ports)
            delta = Delta(chains=needs.chains, missing=elements(needs, self._held.sets))
            delta.sets = [found for found in needs.sets if found.name not in sets]
            sets.update(found.name for found in delta.sets)
            yield ports, delta

    def _compared(self, listing: Listing, known: bool) -> Delta:
        """What leads from LISTING to what all ports need, who are all admitted."""
        self._held.start_over()
        comparison = Comparison(listing, self.family, sure=known)
        sets, chains = dict(self._held.sets), {chain.name: chain for chain in self._held.base.chains}
        try:
            for element in self._held.base.elements:
                comparison.want({element.set: [element]}, sets)
            for ports in self._held.portions():
                needs = self._held.claims.admit(ports)
                sets.update((found.name, found) for found in needs.sets)
                chains.update((chain.name, chain) for chain in needs.chains)
                needed = elements(needs, self._held.sets)
                comparison.want(needed, sets)
                self._held.size += sum(map(len, needed.values()))
            delta = comparison.delta(sets, chains)
        except OtherForm:
            layout = lay_out(self._held.base, self._held.fragments())
            delta, chains = whole(layout, replace=True), layout.chains
            self._held.size = sum(map(len, layout.elements.values())) - len(self._held.base.elements)
        self._held.size += len(self._held.base.elements)
        self._held.rules = Counter({name: len(chain.rules) for name, chain in chains.items()})
        return delta

    def _bring_apart(self, wanted: Mapping[PortKey, ServicePlan], last: Sequence[Operation], outcome: Outcome) -> bool:
        """The kernel refuses something and does not say what: first without the ports that have anything to be written,
        then those by halves. The kernel's check is of no use here, as it leaves out what comes at the end.

        False when it cannot be these ports. Raises Disturbed, Unattributed, KernelError.
        """
        _log.warning("The kernel refuses something; looking for it port by port", family=self.family.value)
        listing = self._committer.read(self._held.sizes())
        places = () if listing is None else [*self._compared(listing, known=True).places]
        suspects = sorted(self._held.plans) if listing is None else concerned(places, self._held.fragments())
        if not suspects:
            return False
        for key in suspects:
            del self._held.plans[key]
        if listing is None:
            found = self._build((), outcome)
        else:
            found = self._write(self._compared(listing, known=True), (), outcome)
        return not found and self._put(wanted, suspects, outcome) and not self._committer.commit(last)

    def _write(
        self,
        delta: Delta,
        last: Sequence[Operation],
        outcome: Outcome,
        ports: Mapping[PortKey, Fragment] | None = None,
    ) -> dict[PortKey, str]:
        """Write DELTA. Returns those of PORTS (None: of all) because of which the kernel refused something; then not
        all is written."""
        for operations in transactions(delta, self._held.sets, last):
            if errors := self._committer.commit(operations):
                found = guilty(operations, errors, self._held.fragments() if ports is None else ports.items())
                if not found and not surprising(errors):
                    raise Unattributed(next(iter(errors.values())))
                if not found:
                    raise next(iter(errors.values()))
                return found
        self._count_written(delta, outcome)
        return {}

    def _count_written(self, delta: Delta, outcome: Outcome) -> None:
        rules = sum(len(chain.rules) for chain in (*delta.chains, *delta.changed))
        filled = sum(filling.number for filling in delta.filled.values())
        written = rules + filled + sum(map(len, delta.missing.values()))
        outcome.rules_written = {names.TABLE: outcome.rules_written.get(names.TABLE, 0) + written}
