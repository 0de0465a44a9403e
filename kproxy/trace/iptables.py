"""Walks a probe through the tables of iptables.

At each hook: raw, mangle, nat (where destinations change), filter, security, nat (where sources change).
"""

from __future__ import annotations

from kproxy.errors import InvalidInput
from kproxy.model.plans import Family
from kproxy.trace.flows import Flow, Journey, Packet, Place
from kproxy.trace.parsing import Chain, Tables
from kproxy.trace.rules import Dnat, Jump, MarkSet, Plain, Redirect, Rule, SetOracle, Surroundings
from kproxy.trace.verdicts import Affinity, Fate, Host, Memory, Outcome, Probe, Step, check_family

NAT = "nat"
TABLES = {
    Place.PREROUTING: ("raw", "mangle", NAT),
    Place.INPUT: ("mangle", "filter", "security", NAT),
    Place.FORWARD: ("mangle", "filter", "security"),
    Place.OUTPUT: ("raw", "mangle", NAT, "filter", "security"),
    Place.POSTROUTING: ("mangle", NAT),
}
DEEPEST = 64


class IptablesWalker:
    """The rules of one family on one host.

    text: as iptables-save prints it, or `kproxy render --mode iptables`. sets: answers for ipsets; without it a rule
    that asks for one is an error.
    """

    def __init__(self, text: str, family: Family, host: Host, sets: SetOracle | None = None) -> None:
        self.family = family
        self._tables = Tables(text, family)
        self._host = host
        self._sets = sets or _no_sets

    def walk(self, probe: Probe, affinity: Affinity | None = None) -> Outcome:
        """What becomes of PROBE. affinity: what `recent` lists hold, as Branch.remembers has it.

        Raises InvalidInput when the probe is of another family, or comes by a rule that is not understood.
        """
        check_family(probe, self.family)
        return _Walk(self._tables, Surroundings(self._host, affinity or {}, self._sets)).run(probe)


def _no_sets(name: str, directions: tuple[str, ...], packet: Packet) -> bool:
    raise InvalidInput(f"a rule asks for the ipset {name}, and its content was not given")


class _Walk(Journey):
    """One probe under way."""

    def __init__(self, tables: Tables, around: Surroundings) -> None:
        super().__init__(around.host)
        self._tables, self._around = tables, around

    def _hook(self, place: Place, flow: Flow, nat: bool) -> list[Flow]:
        left = [flow]
        for table in TABLES[place]:
            chain = self._tables.chain(table, place.name)
            if chain and (nat or table != NAT):
                left = [passed for each in left for passed in self._base(table, chain, each)]
        return left

    def _base(self, table: str, chain: Chain, flow: Flow) -> list[Flow]:
        passed = []
        for after, accepted in self._chain(table, chain, flow, 0):
            if accepted or chain.policy != "DROP":
                passed.append(after)
            else:
                self._end(after.by(Step(table, chain.name, "policy DROP")), Fate.DROPPED)
        return passed

    # -- chains and rules

    def _chain(self, table: str, chain: Chain, flow: Flow, depth: int) -> list[tuple[Flow, bool]]:
        """What comes out of a chain: accepted (True), or at its end (False)."""
        if depth > DEEPEST:
            raise InvalidInput(f"table {table}, chain {chain.name}: chains jump in a circle")
        out: list[tuple[Flow, bool]] = []
        inside = [flow]
        for rule in chain.relevant(flow.packet.destination_number, flow.packet.port):
            on: list[Flow] = []
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

    def _met(self, table: str, chain: str, rule: Rule, flow: Flow) -> tuple[Flow | None, Flow | None]:
        """The part of the flow that the rule passes over, and the part that it takes."""
        if not rule.holds(flow.packet, self._around):
            return flow, None
        if rule.unknown:
            raise InvalidInput(f'table {table}, rule "-A {chain} {rule.text}": {rule.unknown}')
        hit = flow.by(Step(table, chain, rule.text))
        if rule.remembers:
            hit = hit.remembering(Memory(rule.remembers, flow.packet.source))
        if rule.chance == 1:
            return None, hit
        return flow.part(1 - rule.chance), hit.part(rule.chance) if rule.chance else None

    def _follow(
        self, table: str, rule: Rule, flow: Flow, depth: int, on: list[Flow], out: list[tuple[Flow, bool]]
    ) -> None:
        """Do what the rule says; put the flow to those that go ON with the next rule, or that come OUT of the chain."""
        match rule.target:
            case Jump(name, goto):
                for after, accepted in self._chain(table, self._tables[table, name], flow, depth + 1):
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

    def _plain(self, name: str, flow: Flow, on: list[Flow], out: list[tuple[Flow, bool]]) -> None:
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
        ip = target.destination(packet, self._host)
        if ip is None:
            raise InvalidInput(f"REDIRECT needs the address of interface {packet.interface}, which was not given")
        return ip
