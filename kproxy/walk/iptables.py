"""Walks a probe through the tables of iptables, hook by hook, as the kernel does.

    comes in by an interface: PREROUTING, then INPUT when the destination is the node's own, else FORWARD, POSTROUTING
    the node sends it:        OUTPUT, POSTROUTING, and where it goes to the node itself, INPUT

Within a hook: raw, mangle, nat (where destinations change), filter, security, nat (where sources change). The nat table
is for the first packet of a connection, which a probe is, and is met once on each side: what the node sends to itself
passes PREROUTING and INPUT without it. Leaves out: out-interfaces, bridges, what the routing table may refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from kproxy.errors import InvalidInput
from kproxy.model.plans import Family, address_port
from kproxy.walk.parsing import Chain, Tables, parse_tables
from kproxy.walk.rules import Dnat, Jump, MarkSet, Packet, Plain, Redirect, Rule, SetOracle, Surroundings
from kproxy.walk.verdicts import Affinity, Branch, Fate, Host, Memory, Outcome, Probe, Step, Verdict, number

__all__ = ["IptablesWalker"]

PREROUTING = ("raw", "mangle", "nat")
INPUT = ("mangle", "filter", "security", "nat")
FORWARD = ("mangle", "filter", "security")
OUTPUT = ("raw", "mangle", "nat", "filter", "security")
POSTROUTING = ("mangle", "nat")
DEEPEST = 64
LOOPBACK = "lo"


class IptablesWalker:
    """The rules of one family on one host.

    text: as iptables-save prints it, or `kproxy render --mode iptables`. sets: answers for ipsets; without it a rule
    that asks for one is an error.
    """

    def __init__(self, text: str, family: Family, host: Host, sets: SetOracle | None = None) -> None:
        self.family = family
        self._tables = parse_tables(text, family)
        self._host = host
        self._sets = sets or _no_sets

    def walk(self, probe: Probe, affinity: Affinity | None = None) -> Outcome:
        """What becomes of PROBE. affinity: what `recent` lists hold, as Branch.remembers has it.

        Raises InvalidInput when the probe is of another family, or comes by a rule that is not understood.
        """
        if probe.family is not self.family or (":" in probe.source) is not (":" in probe.destination):
            raise InvalidInput(f"{probe}: the rules are for {self.family}")
        return _Walk(self._tables, Surroundings(self._host, affinity or {}, self._sets)).run(probe)


def _no_sets(name: str, directions: tuple[str, ...], packet: Packet) -> bool:
    raise InvalidInput(f"a rule asks for the ipset {name}, and its content was not given")


class _Flow(NamedTuple):
    """A packet that got this far, by this way, with this probability."""

    packet: Packet
    probability: Fraction = Fraction(1)
    remembers: frozenset[Memory] = frozenset()
    path: tuple[Step, ...] = ()

    def by(self, step: Step) -> _Flow:
        return self._replace(path=(*self.path, step))

    def changed(self, **fields: Any) -> _Flow:
        """With these fields of the packet."""
        return self._replace(packet=self.packet._replace(**fields))

    def led(self, ip: str, port: int) -> _Flow:
        """To another destination. PORT 0 keeps the packet's."""
        to = port or self.packet.port
        return self.changed(destination=ip, destination_number=number(ip), port=to, translated=True)


class _Walk:
    """One probe under way; collects the branches that have ended."""

    def __init__(self, tables: Tables, around: Surroundings) -> None:
        self._tables, self._around = tables, around
        self._ended: list[Branch] = []

    def run(self, probe: Probe) -> Outcome:
        packet = Packet(
            probe.source,
            probe.destination,
            number(probe.source),
            number(probe.destination),
            probe.protocol.lower(),
            probe.port,
            probe.interface,
            probe.bridged,
        )
        for flow in self._arriving([_Flow(packet)]) if probe.interface else self._sent([_Flow(packet)]):
            self._end(flow, Fate.DELIVERED if flow.packet.translated else Fate.UNTOUCHED)
        return Outcome(tuple(self._ended))

    # -- the hooks in their order

    def _arriving(self, flows: Sequence[_Flow]) -> list[_Flow]:
        flows = self._hook("PREROUTING", PREROUTING, flows)
        here, elsewhere = self._routed(flows)
        through = self._hook("FORWARD", FORWARD, elsewhere)
        return [*self._hook("INPUT", INPUT, here), *self._leaving(through)]

    def _sent(self, flows: Sequence[_Flow]) -> list[_Flow]:
        here, elsewhere = self._routed(self._leaving(self._hook("OUTPUT", OUTPUT, flows)))
        back = [flow.changed(interface=LOOPBACK) for flow in here]
        back = self._hook("PREROUTING", _without_nat(PREROUTING), back)
        return [*elsewhere, *self._hook("INPUT", _without_nat(INPUT), back)]

    def _leaving(self, flows: Iterable[_Flow]) -> list[_Flow]:
        out = [flow.changed(interface="", bridged=False) for flow in flows]
        return self._hook("POSTROUTING", POSTROUTING, out)

    def _routed(self, flows: Iterable[_Flow]) -> tuple[list[_Flow], list[_Flow]]:
        """Those that go to the node itself, and the others."""
        here: list[_Flow] = []
        elsewhere: list[_Flow] = []
        for flow in flows:
            (here if self._around.host.owns(flow.packet.destination) else elsewhere).append(flow)
        return here, elsewhere

    def _hook(self, hook: str, tables: Iterable[str], flows: Sequence[_Flow]) -> list[_Flow]:
        """What goes on after the built-in chain HOOK of each table."""
        left = list(flows)
        for table in tables:
            chain = self._tables.get(table, {}).get(hook)
            if chain:
                left = [passed for flow in left for passed in self._base(table, chain, flow)]
        return left

    def _base(self, table: str, chain: Chain, flow: _Flow) -> list[_Flow]:
        passed = []
        for after, accepted in self._chain(table, chain, flow, 0):
            if accepted or chain.policy != "DROP":
                passed.append(after)
            else:
                self._end(after.by(Step(table, chain.name, "policy DROP")), Fate.DROPPED)
        return passed

    # -- chains and rules

    def _chain(self, table: str, chain: Chain, flow: _Flow, depth: int) -> list[tuple[_Flow, bool]]:
        """What comes out of a chain: accepted (True), or at its end (False)."""
        if depth > DEEPEST:
            raise InvalidInput(f"table {table}, chain {chain.name}: chains jump in a circle")
        out: list[tuple[_Flow, bool]] = []
        inside = [flow]
        for rule in chain.relevant(flow.packet.destination_number, flow.packet.port):
            on: list[_Flow] = []
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

    def _met(self, table: str, chain: str, rule: Rule, flow: _Flow) -> tuple[_Flow | None, _Flow | None]:
        """The part of the flow that the rule passes over, and the part that it takes."""
        if not rule.holds(flow.packet, self._around):
            return flow, None
        if rule.unknown:
            raise InvalidInput(f'table {table}, rule "-A {chain} {rule.text}": {rule.unknown}')
        hit = flow.by(Step(table, chain, rule.text))
        if rule.remembers:
            hit = hit._replace(remembers=hit.remembers | {Memory(rule.remembers, flow.packet.source)})
        if rule.chance == 1:
            return None, hit
        missed = flow._replace(probability=flow.probability * (1 - rule.chance))
        return missed, hit._replace(probability=flow.probability * rule.chance) if rule.chance else None

    def _follow(
        self, table: str, rule: Rule, flow: _Flow, depth: int, on: list[_Flow], out: list[tuple[_Flow, bool]]
    ) -> None:
        """Do what the rule says; put the flow to those that go ON with the next rule, or that come OUT of the chain."""
        match rule.target:
            case Jump(name, goto):
                for after, accepted in self._chain(table, self._tables[table][name], flow, depth + 1):
                    if accepted or goto:
                        out.append((after, accepted))
                    else:
                        on.append(after)
            case MarkSet(value, mask):
                on.append(flow.changed(mark=flow.packet.mark & ~mask ^ value))
            case Dnat(ip, port):
                out.append((flow.led(ip, port), True))
            case Redirect(port) as redirect:
                out.append((flow.led(self._redirected(redirect, flow.packet), port), True))
            case Plain(name):
                self._plain(name, flow, on, out)

    def _plain(self, name: str, flow: _Flow, on: list[_Flow], out: list[tuple[_Flow, bool]]) -> None:
        match name:
            case "ACCEPT":
                out.append((flow, True))
            case "RETURN":
                out.append((flow, False))
            case "MASQUERADE":
                out.append((flow.changed(masqueraded=True), True))
            case "DROP":
                self._end(flow, Fate.DROPPED)
            case "REJECT":
                self._end(flow, Fate.REJECTED)
            case _:
                on.append(flow)

    def _redirected(self, target: Redirect, packet: Packet) -> str:
        ip = target.destination(packet, self._around.host)
        if ip is None:
            raise InvalidInput(f"REDIRECT needs the address of interface {packet.interface}, which was not given")
        return ip

    def _end(self, flow: _Flow, fate: Fate) -> None:
        packet = flow.packet
        endpoint, masqueraded = "", False
        if fate is Fate.DELIVERED:
            endpoint = address_port(packet.destination, packet.port)
        if fate in (Fate.DELIVERED, Fate.UNTOUCHED):
            masqueraded = packet.masqueraded
        verdict = Verdict(fate, endpoint, masqueraded)
        self._ended.append(Branch(flow.probability, verdict, flow.remembers, flow.path))


def _without_nat(tables: Iterable[str]) -> tuple[str, ...]:
    return tuple(table for table in tables if table != "nat")
