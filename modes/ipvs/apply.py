"""IPVS mode's Dataplane: brings one family's virtual servers, ipsets, addresses and rules to the wanted plans.

Decides: when the difference between two plans is enough, when the kernel is read, and what is believed afterwards.
Leaves out: what plans become (render), who needs what (claims), what differs (delta), what the kernel holds and is ours
(mirror), taking steps to the kernel (writing), and the rules (kproxy.modes.xtables.chain_writer).

A change compares what its ports need with the mirror of the kernel; a full check reads the mirror anew and compares
everything. Both then go the same way. After any failure nothing is believed and the next apply reads the kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

from kproxy import logs
from kproxy.kernel.ipset import IpSets
from kproxy.kernel.iptables import Tables
from kproxy.kernel.ipvs import Ipvs
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.kernel.service_device import ServiceAddresses
from kproxy.kernel.virtual_servers import RealKey, RealServer, ServerKey
from kproxy.model.addresses import contains
from kproxy.model.plans import Family, Frontend, PortKey, Protocol, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.ipvs.cleanup import clean
from kproxy.modes.ipvs.delta import difference, leaves_gracefully, leaving
from kproxy.modes.ipvs.drift import Probe
from kproxy.modes.ipvs.fragments import Entry, Fragment, Settings
from kproxy.modes.ipvs.graceful_termination import GracefulTermination
from kproxy.modes.ipvs.kernel_state import KernelState
from kproxy.modes.ipvs.ownership import Ownership, Things
from kproxy.modes.ipvs.reading import ensure_sets, read
from kproxy.modes.ipvs.render import render_port
from kproxy.modes.ipvs.rules import render_base
from kproxy.modes.ipvs.step_writer import StepWriter, Thing
from kproxy.modes.xtables import rules
from kproxy.modes.xtables.chain_writer import ChainWriter, Drift

_log = logs.get("ipvs")

NOTHING = Fragment()
LOOKS_AT_ONCE = 64  # virtual servers with real servers that leave: others wait a moment, a change must not
V = TypeVar("V")
Rules = tuple[rules.SharedRule, ...]


class IpvsDataplane:
    """Programs one family. IPVS and the device kube-ipvs0 are shared: the other family's part is left alone."""

    def __init__(
        self,
        settings: Settings,
        ipvs: Ipvs,
        sets: IpSets,
        addresses: ServiceAddresses,
        tables: Tables,
        drift: Drift | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """drift: what notices others' changes to the iptables tables. clock: seconds, monotonic."""
        self._settings, self._clock = settings, clock
        self._ipvs, self._sets, self._addresses = ipvs, sets, addresses
        self._filled: frozenset[str] = frozenset()
        base = render_base(settings, self._filled)
        self._chains: ChainWriter[Rules] = ChainWriter(settings.family, base, _as_fragment, tables, drift, clock)
        self._probe = Probe(settings.family, ipvs, sets, addresses, clock)
        self._plans: dict[PortKey, ServicePlan] = {}
        self._rules: dict[PortKey, Rules] = {}
        self._claims = Ownership()
        self._mirror = KernelState()
        self._leaving = GracefulTermination()
        self._refused: dict[Thing, str] = {}
        self._abandoned: dict[Frontend, None] = {}
        self._trusted = False

    @property
    def family(self) -> Family:
        return self._settings.family

    def configure(self, settings: Settings) -> None:
        """Take new settings. When they differ the next apply compares everything with the kernel."""
        if settings != self._settings:
            self._settings, self._trusted = settings, False
            self._plans, self._rules, self._claims = {}, {}, Ownership()
            self._chains.rebase(render_base(settings, self._filled), _as_fragment)

    def apply(self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None) -> Outcome:
        """As Dataplane.apply."""
        outcome = Outcome()
        believed, self._trusted = self._trusted, False
        everything = touched is None or not believed
        keys, things = self._replan(wanted, {*self._plans, *wanted} if everything else touched or ())
        if everything or not self._write(things, keys, outcome):
            differed = self._read()
            self._write(self._everything(), None, outcome)
            outcome.repaired |= believed and touched is None and differed
        self._trusted = True
        return self._done(outcome)

    def drifted(self) -> bool:
        """As Dataplane.drifted."""
        return self._chains.drifted() or (self._trusted and self._probe.differs(self._mirror))

    def housekeeping(self) -> float | None:
        """As Dataplane.tend: real servers that left go when their connections have ended or their time is up."""
        now = self._clock()
        operations = [op for key in self._leaving.due(now, LOOKS_AT_ONCE) for op in self._ended(key, now)]
        errors = self._ipvs.apply(operations) if operations else {}
        for index, (_, server, real) in enumerate(operations):
            if index in errors:
                _log.warning(
                    "A real server that left could not be removed; tried again",
                    server=str(server.key),
                    err=str(errors[index]),
                )
            elif real:
                self._gone(server.key, real.key)
        return self._leaving.next(now)

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """As Dataplane.names: the port's virtual servers."""
        return tuple(str(served.server.key) for served in render_port(plan, self._settings).served)

    def cleanup(self) -> None:
        """Remove everything that this mode ever writes for this family, and the rules of every mode."""
        self._trusted, self._plans, self._rules, self._claims = False, {}, {}, Ownership()
        self._mirror, self._leaving, self._refused = KernelState(), GracefulTermination(), {}
        self._chains.cleanup()
        settings = self._settings
        clean(self._ipvs, self._sets, self._addresses, settings.node_addresses, settings.exclude_cidrs, [self.family])

    # ---------------------------------------------------------------- what is wanted

    def _replan(self, wanted: Mapping[PortKey, ServicePlan], keys: Collection[PortKey]) -> tuple[list[PortKey], Things]:
        """Take in the plans of KEYS: those that differ, and what they needed and need."""
        changed: list[PortKey] = []
        servers: list[ServerKey] = []
        entries: list[Entry] = []
        addresses: list[str] = []
        for key in keys:
            old, new = self._plans.get(key), wanted.get(key)
            if old == new:
                continue
            changed.append(key)
            fragment = self._fragment(new)
            things = self._claims.put(key, self._fragment(old), fragment)
            _replace(self._plans, key, new)
            _replace(self._rules, key, fragment.rules or None)
            servers += things.servers
            entries += things.entries
            addresses += things.addresses
        return changed, Things(servers, entries, addresses)

    def _fragment(self, plan: ServicePlan | None) -> Fragment:
        return NOTHING if plan is None else render_port(plan, self._settings)

    def _everything(self) -> Things:
        claims, mirror = self._claims, self._mirror
        held = (Entry(name, entry) for name, entries in mirror.entries.items() for entry in entries)
        return Things(
            [*claims.servers, *(key for key in mirror.servers if key not in claims.servers)],
            [*claims.entries, *(entry for entry in held if entry not in claims.entries)],
            [*claims.addresses, *(address for address in mirror.addresses if address not in claims.addresses)],
        )

    # ---------------------------------------------------------------- to the kernel

    def _read(self) -> bool:
        """Read the kernel; whether it was not as it was believed to be."""
        known = {*self._claims.servers, *self._mirror.servers}
        before = self._mirror
        ensure_sets(self._sets, self.family, self._chains.cleanup)
        self._addresses.ensure()
        wanted = self._claims.addresses
        self._mirror = read(self._settings, self._ipvs, self._sets, self._addresses, known, wanted)
        return before != self._mirror

    def _write(self, things: Things, changed: Collection[PortKey] | None, outcome: Outcome) -> bool:
        """Write what differs. changed: the ports that THINGS are of; None: everything is in THINGS, and compared.

        False when the kernel turned out not to be as it was believed to be; then not everything is written.
        """
        steps = difference(self._mirror, self._claims, things, self._spared)
        if changed is None:  # noted at once: after a failure they may not be found again
            found = (operation.server.key for operation in steps.retire)
            self._abandoned.update((Frontend(k.address, k.port, k.protocol), None) for k in found if not _notices(k))
        writer = StepWriter(self._ipvs, self._sets, self._addresses, self._mirror, outcome)
        writer.make(steps)
        if writer.surprised and changed is not None:
            return self._surprised(writer)
        self._write_rules(changed, outcome)
        writer.clear(steps)
        if writer.surprised and changed is not None:
            return self._surprised(writer)
        self._settle(things, changed is None, writer)
        return True

    def _surprised(self, writer: StepWriter) -> bool:
        why = next(iter(writer.refused.values()), "")
        _log.warning("A change was refused; comparing everything", family=self.family.value, why=why)
        return False

    def _write_rules(self, changed: Collection[PortKey] | None, outcome: Outcome) -> None:
        if (filled := self._claims.filled) != self._filled:
            self._filled = filled
            self._chains.rebase(render_base(self._settings, filled), _as_fragment)
        done = self._chains.apply(self._rules, changed)
        outcome.rejected.update(done.rejected)
        outcome.rules_total, outcome.rules_written = done.rules_total, done.rules_written
        outcome.bytes_written += done.bytes_written
        outcome.transactions += done.transactions
        outcome.repaired |= done.repaired

    def _settle(self, things: Things, everything: bool, writer: StepWriter) -> None:
        """Note who leaves, and what was refused."""
        now, mirror = self._clock(), self._mirror
        for key in things.servers:
            if leaves_gracefully(key.protocol):
                self._leaving.expect(key, leaving(mirror.servers.get(key), self._claims.served(key)), now)
        if everything:
            self._leaving.keep(mirror.servers)
            self._refused = {}
        tried: tuple[Thing, ...] = (*things.servers, *things.entries, *things.addresses) if self._refused else ()
        for thing in tried:
            self._refused.pop(thing, None)
        self._refused.update(writer.refused)

    def _spared(self, key: ServerKey) -> bool:
        return any(contains(cidr, key.address) for cidr in self._settings.exclude_cidrs)

    def _done(self, outcome: Outcome) -> Outcome:
        for thing, why in self._refused.items():
            for port in self._claims.ports(thing):
                outcome.rejected.setdefault(port, why)
        outcome.abandoned, self._abandoned = tuple(self._abandoned), {}
        return outcome

    # ---------------------------------------------------------------- who leaves

    def _ended(self, key: ServerKey, now: float) -> Iterator[Operation]:
        """Deletions of those real servers of KEY that nothing holds any more."""
        served, states, present = self._claims.served(key), self._ipvs.reals(key), self._mirror.servers.get(key)
        wanted = {real.key for real in served.reals} if served else ()
        for real in tuple(self._leaving.of(key)):
            if (state := states.get(real)) is None:
                self._gone(key, real)
            elif present is None or state.weight != 0 or real in wanted:  # others' doing; the next check sees to it
                self._leaving.forget(key, [real])
            elif state.idle or self._leaving.over(key, real, now):
                yield Operation(Verb.DELETE_REAL, present.server, RealServer(real, 0))

    def _gone(self, key: ServerKey, real: RealKey) -> None:
        self._leaving.forget(key, [real])
        if present := self._mirror.servers.get(key):
            present.weights.pop(real, None)


def _notices(key: ServerKey) -> bool:
    """A client of TCP notices by itself that nobody serves it any more."""
    return key.protocol is Protocol.TCP


def _as_fragment(shared: Rules) -> rules.Fragment:
    return rules.Fragment(shared=shared)


def _replace(values: dict[PortKey, V], key: PortKey, value: V | None) -> None:
    if value is None:
        values.pop(key, None)
    else:
        values[key] = value
