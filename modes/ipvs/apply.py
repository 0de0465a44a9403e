"""IPVS mode's Dataplane: brings one family's virtual servers, ipsets, addresses and rules to the wanted plans.

Decides: when the difference between two plans is enough, when the kernel is read, and what is trusted afterwards.
Leaves out: what a plan becomes (render), which port owns what (ownership), what differs (delta), what the kernel holds
(kernel_state), applying steps (step_writer), and writing rules (`kproxy.modes.xtables.chain_writer`).

A change compares the objects of its ports with the state that the kernel is believed to be in; a full check reads that
state anew and compares everything. Both then write the difference in the same way. After any failure nothing is trusted
and the next apply reads the kernel.
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
from kproxy.modes.ipvs.delta import difference, everything_of, terminates_gracefully, terminating
from kproxy.modes.ipvs.drift import IpvsDrift
from kproxy.modes.ipvs.fragments import Entry, Fragment, Settings
from kproxy.modes.ipvs.graceful_termination import GracefulTermination
from kproxy.modes.ipvs.kernel_state import KernelState, ensure_sets, read
from kproxy.modes.ipvs.ownership import Objects, Ownership
from kproxy.modes.ipvs.render import render_port
from kproxy.modes.ipvs.rules import render_base
from kproxy.modes.ipvs.step_writer import Object, StepWriter
from kproxy.modes.xtables import rules
from kproxy.modes.xtables.chain_writer import ChainWriter, Drift, RenderFault, fault_reason

_log = logs.get("ipvs")

NOTHING = Fragment()
CHECKS_AT_ONCE = 64
"""Virtual servers with terminating real servers that one housekeeping checks, so that a change need not wait long."""
V = TypeVar("V")
Rules = tuple[rules.SharedRule, ...]


class IpvsDataplane:
    """Programs one family. The kernel has one `ipvs` table and one device kube-ipvs0 for both families: what belongs to
    the other one is not touched. Used by one thread; shares no object with the other family's.

    A port whose rendering raises an exception is rejected and keeps what it had, unless that cannot be rendered either.
    It is rendered again whenever it is touched.
    """

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
        """drift: notices changes of the iptables tables by others. clock: seconds, monotonic."""
        self._settings, self._clock = settings, clock
        self._ipvs, self._sets, self._addresses = ipvs, sets, addresses
        self._filled: frozenset[str] = frozenset()
        base = render_base(settings, self._filled)
        self._chains: ChainWriter[Rules] = ChainWriter(settings.family, base, _as_fragment, tables, drift, clock)
        self._drift = IpvsDrift(settings.family, ipvs, sets, addresses, clock)
        self._plans: dict[PortKey, ServicePlan] = {}
        self._rules: dict[PortKey, Rules] = {}
        self._ownership = Ownership()
        self._state = KernelState()
        self._terminating = GracefulTermination()
        self._refused: dict[Object, str] = {}
        self._faults: dict[PortKey, Exception] = {}
        self._abandoned: dict[Frontend, None] = {}
        self._trusted = False
        self._refusals: list[str] = []  # since the last apply

    @property
    def family(self) -> Family:
        return self._settings.family

    def configure(self, settings: Settings) -> None:
        """Replace the settings. When they differ, the next apply compares everything with the kernel."""
        if settings != self._settings:
            self._settings = settings
            self._forget()
            self._chains.rebase(render_base(settings, self._filled), _as_fragment)

    def apply(self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None) -> Outcome:
        outcome = Outcome(refusals=self._refusals)
        self._refusals = []
        with outcome.kept_on_failure():
            self._program(wanted, touched, outcome)
        return self._done(outcome)

    def _program(
        self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None, outcome: Outcome
    ) -> None:
        """Write the difference if that is enough, else check everything."""
        trusted, self._trusted = self._trusted, False
        everything = touched is None or not trusted
        concerned = {*self._plans, *self._faults, *wanted} if everything else touched or ()
        try:
            keys, objects = self._replan(wanted, concerned)
        except RenderFault as error:
            _log.warning(
                "An old plan cannot be rendered; comparing everything with the kernel",
                family=self.family.value,
                why=str(error),
            )
            self._forget()
            everything = True
            keys, objects = self._replan(wanted, wanted)
        if everything or not self._write(objects, keys, outcome):
            differed = self._read()
            self._write(everything_of(self._state, self._ownership), None, outcome)
            outcome.repaired |= trusted and touched is None and differed
        self._trusted = True

    def drifted(self) -> bool:
        return self._chains.drifted() or (self._trusted and self._drift.differs(self._state))

    def housekeeping(self) -> float | None:
        """Delete terminating real servers whose connections have ended, or whose time is over."""
        now = self._clock()
        operations = [op for key in self._terminating.due(now, CHECKS_AT_ONCE) for op in self._ended(key, now)]
        errors = self._ipvs.apply(operations) if operations else {}
        for index, (_, server, real) in enumerate(operations):
            if index in errors:
                self._refusals.append(str(errors[index]))
                _log.warning(
                    "A terminating real server could not be deleted; will retry",
                    server=str(server.key),
                    err=str(errors[index]),
                )
            elif real:
                self._deleted(server.key, real.key)
        return self._terminating.next(now)

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """The port's virtual servers."""
        return tuple(str(served.server.key) for served in render_port(plan, self._settings).served)

    # ---------------------------------------------------------------- what is wanted

    def _replan(
        self, wanted: Mapping[PortKey, ServicePlan], keys: Collection[PortKey]
    ) -> tuple[list[PortKey], Objects]:
        """Take over the plans of `keys`. Returns the ports whose plan differs, and the objects that they owned and own.

        Raises RenderFault when an old plan cannot be rendered.
        """
        changed: list[PortKey] = []
        servers: list[ServerKey] = []
        entries: list[Entry] = []
        addresses: list[str] = []
        for key in keys:
            self._faults.pop(key, None)
            old, new = self._plans.get(key), wanted.get(key)
            if old == new:
                continue
            try:
                fragment = self._fragment(key, new)
            except RenderFault as fault:
                self._faults[key] = fault.error
                continue
            changed.append(key)
            objects = self._ownership.put(key, self._fragment(key, old), fragment)
            _replace(self._plans, key, new)
            _replace(self._rules, key, fragment.rules or None)
            servers += objects.servers
            entries += objects.entries
            addresses += objects.addresses
        return changed, Objects(servers, entries, addresses)

    def _fragment(self, key: PortKey, plan: ServicePlan | None) -> Fragment:
        """The Fragment that a plan needs, NOTHING for no plan. Raises RenderFault."""
        if plan is None:
            return NOTHING
        try:
            return render_port(plan, self._settings)
        except Exception as error:
            raise RenderFault(key, error) from error

    def _forget(self) -> None:
        """Forget all plans, so that the next apply compares everything with the kernel."""
        self._trusted = False
        self._plans, self._rules, self._ownership = {}, {}, Ownership()
        self._faults = {}

    # ---------------------------------------------------------------- to the kernel

    def _read(self) -> bool:
        """Read the kernel; returns whether its state differs from the one that it was believed to be in."""
        known = {*self._ownership.servers, *self._state.servers}
        before = self._state
        ensure_sets(self._sets, self.family, self._chains.cleanup)
        self._addresses.ensure()
        wanted = self._ownership.addresses
        self._state = read(self._settings, self._ipvs, self._sets, self._addresses, known, wanted)
        return before != self._state

    def _write(self, objects: Objects, changed: Collection[PortKey] | None, outcome: Outcome) -> bool:
        """Write what differs. changed: the ports that own `objects`; None when `objects` are all there are.

        False when the kernel turned out not to be in the state that it was believed to be in; then not everything is
        written.
        """
        steps = difference(self._state, self._ownership, objects, self._excluded)
        if changed is None:  # recorded at once: after a failure they may not be found again
            for protocol, address, port in (operation.server.key for operation in steps.retire):
                if protocol is not Protocol.TCP:  # its clients notice by themselves
                    self._abandoned[Frontend(address, port, protocol)] = None
        writer = StepWriter(self._ipvs, self._sets, self._addresses, self._state, outcome)
        writer.add(steps)
        if writer.surprised and changed is not None:
            return self._surprised(writer)
        self._write_rules(changed, outcome)
        writer.remove(steps)
        if writer.surprised and changed is not None:
            return self._surprised(writer)
        self._settle(objects, changed is None, writer)
        return True

    def _surprised(self, writer: StepWriter) -> bool:
        why = next(iter(writer.refused.values()), "")
        _log.warning("A change was refused; comparing everything", family=self.family.value, why=why)
        return False

    def _write_rules(self, changed: Collection[PortKey] | None, outcome: Outcome) -> None:
        if (filled := self._ownership.filled) != self._filled:
            self._filled = filled
            self._chains.rebase(render_base(self._settings, filled), _as_fragment)
        done = self._chains.apply(self._rules, changed)
        outcome.rejected.update(done.rejected)
        outcome.faults.update(done.faults)
        outcome.rules_total, outcome.rules_written = done.rules_total, done.rules_written
        outcome.bytes_written += done.bytes_written
        outcome.transactions += done.transactions
        outcome.repaired |= done.repaired
        outcome.refusals += done.refusals
        outcome.unreadable.update(done.unreadable)

    def _settle(self, objects: Objects, everything: bool, writer: StepWriter) -> None:
        """Record which real servers terminate, and what was refused."""
        now, state = self._clock(), self._state
        for key in objects.servers:
            if terminates_gracefully(key.protocol):
                reals = terminating(state.servers.get(key), self._ownership.served(key))
                self._terminating.expect(key, reals, now)
        if everything:
            self._terminating.keep(state.servers)
            self._refused = {}
        tried: tuple[Object, ...] = (*objects.servers, *objects.entries, *objects.addresses) if self._refused else ()
        for object in tried:
            self._refused.pop(object, None)
        self._refused.update(writer.refused)

    def _excluded(self, key: ServerKey) -> bool:
        return any(contains(cidr, key.address) for cidr in self._settings.exclude_cidrs)

    def _done(self, outcome: Outcome) -> Outcome:
        for object, why in self._refused.items():
            for port in self._ownership.ports(object):
                outcome.rejected.setdefault(port, why)
        for port, error in self._faults.items():
            outcome.rejected[port] = fault_reason(error)
        outcome.faults.update(self._faults)
        outcome.abandoned, self._abandoned = tuple(self._abandoned), {}
        return outcome

    # ---------------------------------------------------------------- terminating real servers

    def _ended(self, key: ServerKey, now: float) -> Iterator[Operation]:
        """The deletions of those terminating real servers of KEY that are idle, or whose time is over."""
        served, states, present = self._ownership.served(key), self._ipvs.reals(key), self._state.servers.get(key)
        wanted = {real.key for real in served.reals} if served else ()
        for real in tuple(self._terminating.of(key)):
            if (state := states.get(real)) is None:
                self._deleted(key, real)
            elif present is None or state.weight != 0 or real in wanted:  # changed by others: for the next full check
                self._terminating.forget(key, [real])
            elif state.idle or self._terminating.over(key, real, now):
                yield Operation(Verb.DELETE_REAL, present.server, RealServer(real, 0))

    def _deleted(self, key: ServerKey, real: RealKey) -> None:
        self._terminating.forget(key, [real])
        if present := self._state.servers.get(key):
            present.weights.pop(real, None)


def _as_fragment(shared: Rules) -> rules.Fragment:
    return rules.Fragment(shared=shared)


def _replace(values: dict[PortKey, V], key: PortKey, value: V | None) -> None:
    if value is None:
        values.pop(key, None)
    else:
        values[key] = value
