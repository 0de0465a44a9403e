"""nftables mode's Programmer: brings one family's table to the wanted plans.

Decides: when the difference between two plans is enough, when the table is read, which generation of nf_tables is
expected, and what is believed afterwards. Leaves out: what plans become (render, layout), who needs what (claims), the
order of writing (delta), what the kernel's table lacks (reading), and whose fault a refusal is (blame).

A change is one transaction on the elements of its ports. A full check lists the table and writes only what differs.
Every transaction expects the generation at which the table was last known: when others' transactions came in between,
on any table, it is looked whether they touched ours, and then either the new generation is expected or the table is
read again. After any failure nothing is believed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from kproxy import logs
from kproxy.errors import KernelError, NetlinkError
from kproxy.kernel.nftables import OUTDATED, Listing, Nftables
from kproxy.kernel.nftables_operations import DeleteTable, Operation
from kproxy.model.flows import Frontend
from kproxy.model.nft import Set
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.model.plans import Protocol as Transport
from kproxy.modes.base import Outcome
from kproxy.modes.nftables import names
from kproxy.modes.nftables.blame import guilty, surprising
from kproxy.modes.nftables.claims import Claims, Place
from kproxy.modes.nftables.cleanup import KUBE_PROXY_TABLE, clean, holds
from kproxy.modes.nftables.delta import Delta, difference, transactions
from kproxy.modes.nftables.described import described
from kproxy.modes.nftables.fragments import Fragment
from kproxy.modes.nftables.layout import Layout, lay_out
from kproxy.modes.nftables.reading import compare
from kproxy.modes.nftables.render import render_base, render_port
from kproxy.modes.nftables.settings import Settings

__all__ = ["Drift", "NftablesProgrammer"]

_log = logs.get("nftables")

NOTHING = Fragment()
ATTEMPTS = 5
"""How often in a row others may come in between, before the loop's own backoff takes over."""
TRIES = 100
"""The same for transactions on other tables, those of the other family's programmer above all."""
GENERATIONS = 1 << 32  # the kernel counts in 32 bits, and leaves out 0


class Drift(Protocol):
    """Tells whether anyone else changed this family's table."""

    def reading(self) -> None:
        """The table is about to be read: what others changed before this moment will be seen."""

    def changed(self) -> bool:
        """Whether anyone else changed the table since `reading`; also true when that is unknown."""


class _Disturbed(Exception):
    """Somebody else may have changed the table."""


class NftablesProgrammer:
    """Programs the table of one family."""

    def __init__(self, settings: Settings, kernel: Nftables, drift: Drift | None = None) -> None:
        """drift: None: the table is read again after every transaction of anyone else."""
        self._settings, self._kernel, self._drift = settings, kernel, drift
        self._generation: int | None = None
        self._takeover, self._trusted = True, False
        self._size = 0
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
        """As Programmer.apply."""
        outcome, written = Outcome(), self._kernel.bytes_written
        believed, self._trusted = self._trusted, False
        try:
            if touched is None or not believed or not self._follow(wanted, touched, outcome):
                self._check(wanted, believed, outcome)
        except BaseException:
            self._forget()
            raise
        self._trusted = True
        self._expected = set()
        outcome.rejected = dict(self._rejected)
        outcome.rules_total = {names.TABLE: self._size}
        outcome.bytes_written = self._kernel.bytes_written - written
        return outcome

    def drifted(self) -> bool:
        """As Programmer.drifted."""
        return self._drift is not None and self._drift.changed()

    def tend(self) -> float | None:
        """As Programmer.tend: an endpoint that left keeps its connections, the kernel sees to it."""
        return None

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """As Programmer.names: the entries of the maps that lead to the port, as nft prints them."""
        return described(render_port(plan, self._settings))

    def cleanup(self) -> None:
        """As Programmer.cleanup: the table of this family."""
        self._forget()
        if problems := clean(self._kernel, [self.family], [names.TABLE]):
            raise KernelError("; ".join(problems))

    def _forget(self) -> None:
        """Nothing is believed."""
        self._base = render_base(self._settings)
        self._sets: dict[str, Set] = {found.name: found for found in self._base.sets}
        self._plans: dict[PortKey, ServicePlan] = {}
        self._rejected: dict[PortKey, str] = {}
        self._claims = Claims(self._settings, self._fragment)
        self._expected = set()
        self._size, self._trusted = 0, False

    def _fragment(self, key: PortKey) -> Fragment:
        """What the port needs of the table as it is believed to be."""
        plan = self._plans.get(key)
        return NOTHING if plan is None or key in self._rejected else render_port(plan, self._settings)

    # ---------------------------------------------------------------- a change

    def _follow(self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey], outcome: Outcome) -> bool:
        """Write what differs between plans. False when the table is not as it was believed to be, or when it is nobody
        of the touched ports whose wish was refused; then nothing is written, and everything has to be compared."""
        old, new = self._take(wanted, {key for key in touched if self._plans.get(key) != wanted.get(key)})
        while True:
            delta = difference(self._claims.change(old, new))
            self._expected.update(delta.places)
            operations = [op for part in transactions(delta, self._sets, most=GENERATIONS) for op in part]
            try:
                errors = self._commit(operations, outcome)
            except _Disturbed:
                _log.info("Others changed the table, or may have; comparing everything", family=self.family.value)
                return False
            if not errors:
                self._wrote(delta, outcome)
                return True
            found = {} if surprising(errors) else guilty(operations, errors, new.items())
            if not found:
                why = str(next(iter(errors.values())))
                _log.warning("A change was refused; comparing everything", family=self.family.value, why=why)
                return False
            self._claims.change(new, old)
            self._rejected.update(found)
            new.update(dict.fromkeys(found, NOTHING))

    def _take(
        self, wanted: Mapping[PortKey, ServicePlan], keys: Collection[PortKey]
    ) -> tuple[dict[PortKey, Fragment], dict[PortKey, Fragment]]:
        """Take in the plans of KEYS, refused ones once more; what they needed and need."""
        old = {key: self._fragment(key) for key in keys}
        for key in keys:
            self._rejected.pop(key, None)
            if key in wanted:
                self._plans[key] = wanted[key]
            else:
                self._plans.pop(key, None)
        return old, {key: self._fragment(key) for key in keys}

    # ---------------------------------------------------------------- everything

    def _check(self, wanted: Mapping[PortKey, ServicePlan], believed: bool, outcome: Outcome) -> None:
        """Read the table and write what differs, until it is as wanted but for what the kernel refuses."""
        fragments = self._take_all(wanted, believed)
        last = self._last()
        attempts = ATTEMPTS
        while True:
            listing = self._read()
            layout = lay_out(self._base, fragments.items())
            delta = compare(listing, layout)
            outcome.repaired |= believed and any(place not in self._expected for place in delta.places)
            outcome.abandoned = (*outcome.abandoned, *self._abandoned(delta))
            try:
                found = self._write(delta, layout, last, fragments, outcome)
            except _Disturbed:
                attempts -= 1
                if not attempts:
                    raise KernelError(f"others keep changing table {names.TABLE} ({self.family.value})") from None
                continue
            if not found:
                break
            self._rejected.update(found)
            self._claims.change({k: fragments.pop(k) for k in found}, dict.fromkeys(found, NOTHING))
        self._takeover = False
        self._size = sum(map(len, layout.elements.values()))

    def _take_all(self, wanted: Mapping[PortKey, ServicePlan], believed: bool) -> dict[PortKey, Fragment]:
        """Take in all plans; the fragments of all ports."""
        keys = {key for key in {*self._plans, *wanted} if self._plans.get(key) != wanted.get(key)}
        old, new = self._take(wanted, keys | self._rejected.keys())
        change = self._claims.change(old, new)
        if believed:
            self._expected.update(difference(change).places)
        return {key: new[key] if key in new else self._fragment(key) for key in self._plans}

    def _last(self) -> Sequence[Operation]:
        """kube-proxy's own table goes in the transaction with which ours stands."""
        if self._takeover and holds(self._kernel, self.family, KUBE_PROXY_TABLE):
            _log.info("Taking over from kube-proxy's table", family=self.family.value)
            return [DeleteTable(KUBE_PROXY_TABLE)]
        return []

    def _read(self) -> Listing | None:
        if self._drift is not None:
            self._drift.reading()
        before = self._kernel.generation()
        listing = self._kernel.listing(self.family, names.TABLE)
        self._generation = before if listing is None else listing.generation
        return listing

    def _write(
        self,
        delta: Delta,
        layout: Layout,
        last: Sequence[Operation],
        fragments: Mapping[PortKey, Fragment],
        outcome: Outcome,
    ) -> dict[PortKey, str]:
        """Write DELTA. Returns the ports because of which the kernel refused something; then not all is written."""
        for operations in transactions(delta, layout.sets, last):
            if errors := self._commit(operations, outcome):
                found = guilty(operations, errors, fragments.items())
                if not found:
                    raise next(iter(errors.values()))
                return found
        self._wrote(delta, outcome)
        return {}

    def _abandoned(self, delta: Delta) -> list[Frontend]:
        """Frontends that the kernel has and no port any more, but for those whose clients notice by themselves."""
        found = []
        for name in (names.SERVICES, names.NODE_PORTS):
            for element in delta.surplus.get(name, ()):
                ip, protocol, port = element.key if len(element.key) == 3 else ("", *element.key)
                if protocol in ("udp", "sctp"):
                    frontend = Frontend(str(ip), int(port), Transport(str(protocol).upper()))
                    found += [] if self._claims.claimed(frontend) else [frontend]
        return found

    # ---------------------------------------------------------------- to the kernel

    def _commit(self, operations: Sequence[Operation], outcome: Outcome) -> Mapping[int, NetlinkError]:
        """One transaction; what was refused, then nothing is done. Raises _Disturbed, KernelError."""
        if not operations:
            return {}
        for _ in range(TRIES):
            self._expect()
            try:
                errors = self._kernel.apply(self.family, operations, self._generation)
            except NetlinkError as error:
                if error.errno != OUTDATED:
                    raise
                continue
            if not errors:
                outcome.transactions += 1
                if self._generation is not None:
                    self._generation = (self._generation + 1) % GENERATIONS or 1
            return errors
        raise KernelError("others keep changing nf_tables")

    def _expect(self) -> None:
        """Expect the present generation if the table is still the one that was read. Raises _Disturbed."""
        now = self._kernel.generation()
        if now == self._generation:
            return
        if self._drift is None:
            if self._generation is not None:
                raise _Disturbed
        elif self._drift.changed():
            raise _Disturbed
        else:
            self._generation = now

    def _wrote(self, delta: Delta, outcome: Outcome) -> None:
        missing, surplus = (sum(map(len, side.values())) for side in (delta.missing, delta.surplus))
        self._size += missing - surplus
        outcome.rules_written = {names.TABLE: missing}
