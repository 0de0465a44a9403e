"""Traces a probe through the tables of iptables.

At each hook: raw, mangle, nat (where destinations change), filter, security, nat (where sources change).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from kproxy.errors import InvalidInput
from kproxy.model.plans import Family
from kproxy.trace.comparisons import Observer, OfInterface, unobserved
from kproxy.trace.hooks import SOURCE_HOOKS, ChainAtHook, Hook, HookTracer, Packet, Path
from kproxy.trace.iptables_parser import Chain, Tables
from kproxy.trace.iptables_rules import (
    Dnat,
    Jump,
    MarkCopy,
    MarkSet,
    MatchContext,
    Plain,
    Redirect,
    Rule,
    SetLookup,
    Snat,
)
from kproxy.trace.outcome import Affinity, AffinityEntry, Fate, Host, Outcome, Probe, Step, check_family

NAT = "nat"
TABLES = {
    Hook.PREROUTING: ("raw", "mangle", NAT),
    Hook.INPUT: ("mangle", "filter", "security", NAT),
    Hook.FORWARD: ("mangle", "filter", "security"),
    Hook.OUTPUT: ("raw", "mangle", NAT, "filter", "security"),
    Hook.POSTROUTING: ("mangle", NAT),
}
PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
"""Of the tables' chains at each hook; those of nat differ (include/uapi/linux/netfilter_ipv4.h)."""
NAT_DESTINATION, NAT_SOURCE = -100, 100
MAX_DEPTH = 64


class IptablesTracer:
    """The rules of one family on one host.

    text: as printed by iptables-save or `kproxy render --mode iptables`. sets: looks up ipsets; without it a rule that
    matches on one is an error. unknown: takes the rules that are not understood, which are then passed as if they did
    not match; without it they are errors.
    """

    def __init__(
        self,
        text: str,
        family: Family,
        host: Host,
        sets: SetLookup | None = None,
        unknown: Callable[[Step, str], None] | None = None,
    ) -> None:
        self.family = family
        self._tables = Tables(text, family)
        self._host = host
        self._sets, self._unknown = sets or _no_sets, unknown or _refuse

    def trace(self, probe: Probe, affinity: Affinity | None = None, observe: Observer = unobserved) -> Outcome:
        """The outcome of PROBE. affinity: the entries of `recent` lists, as in Branch.remembers. observe: takes each
        comparison that is made of the probe.

        Raises InvalidInput when the probe is of another family, or reaches a rule that is not understood.
        """
        check_family(probe, self.family)
        context = MatchContext(self._host, affinity or {}, self._sets, observe)
        return _Trace(self._tables, context, self._unknown).run(probe)

    def at_hooks(
        self, end: Callable[[Path, Fate], None], affinity: Affinity, observe: Observer
    ) -> dict[Hook, list[ChainAtHook]]:
        """The built-in chains, for whoever passes those of others as well. end: takes the paths that end in them."""
        context = MatchContext(self._host, affinity, self._sets, observe)
        chains = IptablesChains(self._tables, context, end, self._unknown)
        found: dict[Hook, list[ChainAtHook]] = {hook: [] for hook in Hook}
        for hook, tables in TABLES.items():
            for table in tables:
                if chain := self._tables.chain(table, hook.name):
                    apply = partial(chains.base, table, chain)
                    found[hook].append(ChainAtHook(priority(table, hook), table == NAT, apply))
        return found


def priority(table: str, hook: Hook) -> int:
    """The priority of a table's chain at a hook."""
    if table == NAT:
        return NAT_SOURCE if hook in SOURCE_HOOKS else NAT_DESTINATION
    return PRIORITIES[table]


def _no_sets(name: str, directions: tuple[str, ...], packet: Packet) -> bool:
    raise InvalidInput(f"a rule matches on the ipset {name}, whose entries were not given")


class _Trace(HookTracer):
    """The trace of one probe."""

    def __init__(self, tables: Tables, context: MatchContext, unknown: Callable[[Step, str], None]) -> None:
        super().__init__(context.host, context.observe)
        self._tables = tables
        self._chains = IptablesChains(tables, context, self._end, unknown)

    def _hook(self, hook: Hook, path: Path, nat: bool) -> list[Path]:
        left = [path]
        for table in TABLES[hook]:
            if chain := self._tables.chain(table, hook.name):
                at_hook = ChainAtHook(priority(table, hook), table == NAT, partial(self._chains.base, table, chain))
                left = [passed for each in left for passed in at_hook.passed(hook, each, nat)]
        return left


def _refuse(step: Step, why: str) -> None:
    raise InvalidInput(f'table {step.table}, rule "-A {step.chain} {step.rule}": {why}')


class Chains(Protocol):
    """The chains of tables, as kproxy.trace.iptables_parser reads them."""

    def __getitem__(self, place: tuple[str, str]) -> Chain: ...


class IptablesChains:
    """Passes packets through chains. end: takes the paths that end here. unknown: takes the rules of which it is not
    known whether they match, each with the reason; if it returns, they are passed as if they did not."""

    def __init__(
        self,
        tables: Chains,
        context: MatchContext,
        end: Callable[[Path, Fate], None],
        unknown: Callable[[Step, str], None],
    ) -> None:
        self._tables, self._context, self._end, self._unknown = tables, context, end, unknown

    def base(self, table: str, chain: Chain, path: Path) -> list[Path]:
        """The paths that a built-in chain lets pass."""
        passed = []
        for after, accepted in self._chain(table, chain, path, 0):
            if accepted or chain.policy != "DROP":
                passed.append(after)
            else:
                self._end(after.after(Step(table, chain.name, "policy DROP")), Fate.DROPPED)
        return passed

    # -- chains and rules

    def _chain(self, table: str, chain: Chain, path: Path, depth: int) -> list[tuple[Path, bool]]:
        """The paths that leave a chain, each with whether it was accepted (True) or reached the end (False)."""
        if depth > MAX_DEPTH:
            raise InvalidInput(f"table {table}, chain {chain.name}: chains jump in a loop")
        out: list[tuple[Path, bool]] = []
        inside = [path]
        for rule in chain.relevant(path.packet, self._context.observe):
            on: list[Path] = []
            for each in inside:
                missed, hit = self._met(table, chain.name, rule, each)
                if missed:
                    on.append(missed)
                if hit:
                    self._follow(table, rule, hit, depth, on, out)
            inside = on
            if not inside:
                break
        return [*out, *((each, False) for each in inside)]

    def _met(self, table: str, chain: str, rule: Rule, path: Path) -> tuple[Path | None, Path | None]:
        """The path if the rule does not match, and the path if it does; None where that is impossible."""
        matches, doubt = rule.holds(path.packet, self._context)
        if doubt:
            self._unknown(Step(table, chain, rule.text), doubt)
        if doubt or not matches:
            return path, None
        hit = path.after(Step(table, chain, rule.text))
        if rule.remembers:
            hit = hit.remembering(AffinityEntry(rule.remembers, path.packet.source))
        if rule.chance == 1:
            return None, hit
        return path.part(1 - rule.chance), hit.part(rule.chance) if rule.chance else None

    def _follow(
        self,
        table: str,
        rule: Rule,
        path: Path,
        depth: int,
        on: list[Path],
        out: list[tuple[Path, bool]],
    ) -> None:
        """Apply the rule's target. on: paths that continue with the next rule. out: paths that leave the chain."""
        match rule.target:
            case MarkCopy() | MarkSet(of_connection=True) if not path.packet.seen:
                on.append(path)
            case Jump(name, goto):
                for after, accepted in self._chain(table, self._tables[table, name], path, depth + 1):
                    if accepted or goto:
                        out.append((after, accepted))
                    else:
                        on.append(after)
            case MarkSet(value, mask, of_connection):
                held = path.packet.ct_mark if of_connection else path.packet.mark
                on.append(path.changed(**{"ct_mark" if of_connection else "mark": held & ~mask ^ value}))
            case MarkCopy(packet_mask, connection_mask, restores):
                mark, ct_mark = path.packet.mark, path.packet.ct_mark
                if restores:
                    on.append(path.changed(mark=mark & ~packet_mask ^ ct_mark & connection_mask))
                else:
                    on.append(path.changed(ct_mark=ct_mark & ~connection_mask ^ mark & packet_mask))
            case Snat(ip):
                out.append((path.changed(masqueraded=True, source_to=ip), True))
            case Dnat(ip, port):
                out.append((path.redirected(ip, port), True))
            case Redirect(port) as redirect:
                out.append((path.redirected(self._redirected(redirect, path.packet), port), True))
            case Plain(name):
                self._plain(name, path, on, out)

    def _plain(self, name: str, path: Path, on: list[Path], out: list[tuple[Path, bool]]) -> None:
        match name:
            case "ACCEPT":
                out.append((path, True))
            case "RETURN":
                out.append((path, False))
            case "MASQUERADE":
                out.append((path.changed(masqueraded=True), True))
            case "NOTRACK":
                on.append(path.changed(untracked=True))
            case "DROP":
                self._end(path, Fate.DROPPED)
            case "REJECT":
                self._end(path, Fate.REJECTED)
            case _:
                on.append(path)

    def _redirected(self, target: Redirect, packet: Packet) -> str:
        if packet.interface:
            self._context.observe(OfInterface(packet.interface))
        ip = target.destination(packet, self._context.host)
        if ip is None:
            raise InvalidInput(f"REDIRECT needs the address of interface {packet.interface}, which was not given")
        return ip
