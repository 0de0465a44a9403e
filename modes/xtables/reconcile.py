"""What has to be written to the kernel, as restores: the difference between two states of some ports, and between what
the kernel really holds and what it should hold. Pure.

`delta` trusts what is believed of the kernel and looks at the changed ports alone. `Reconciliation` compares all that
was read: whoever wrote a rule, one that equals ours is adopted. Chains of Services that are not wanted, wrong rules in
shared chains, and missing or duplicate jumps are repaired; what belongs to others (the kubelet, a firewall) is left
alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from kproxy.model.plans import Family, Frontend, PortKey, Protocol
from kproxy.modes.xtables.canonical import Rule, canonical
from kproxy.modes.xtables.names import DISPATCHING, PORT_CHAINS
from kproxy.modes.xtables.node_rules import repair_base
from kproxy.modes.xtables.restores import NODE, Batches, Links, NodeRules, Owner, Part, Restore
from kproxy.modes.xtables.rules import Base, Chain, Fragment
from kproxy.modes.xtables.saved import Saved, as_saved, frontend, same_rules

K = TypeVar("K", bound=Hashable)

COUNTING = "--nfacct-name "
DISPATCH = tuple(("nat", chain) for chain in DISPATCHING)
REWRITE_ABOVE = 128
"""The number of rules to delete from one chain above which rewriting the chain is faster: on nf_tables with 10,000
rules each deletion takes 5 ms, the whole chain 0.8 s. Both grow with the length of the chain, so the number hardly
depends on it.
"""


class Change(NamedTuple):
    """One port: what the kernel has of it, and what it should have; an empty fragment for nothing."""

    key: PortKey
    old: Fragment
    new: Fragment


Whole = Callable[[str, str], list[tuple[Owner, str]]]
"""Returns all rules of a shared chain (table, chain) in order, with owners; called only when the chain is rewritten."""


def delta(changes: Iterable[Change], limit: int, whole: Whole) -> Iterator[Restore]:
    """The restores that turn all `old` into all `new`; none when they are equal.

    Only chains that differ are written. After each restore, every chain that can be reached is complete.
    """
    batches, links = Batches(limit), Links()
    gone: list[tuple[PortKey, list[str]]] = []
    needed: set[str] = set()
    for key, old, new in changes:
        had, has = dict(old.chains), dict(new.chains)
        needed.update(has)
        differing = [chain for chain in new.chains if had.get(chain.name) != chain.rules]
        if differing:
            yield from batches.fill(fill(key, differing))
        if stale := [name for name in had if name not in has]:
            gone.append((key, stale))
        _link(links, key, old, new)
    rewrite_long(links, whole)
    # A chain belongs to one port; should two share one nevertheless, whoever still has it keeps it.
    parts = (Part(key, delete=tuple(name for name in names if name not in needed)) for key, names in gone)
    yield from batches.finish(links, [part for part in parts if part.delete])


def fill(key: PortKey, chains: Iterable[tuple[str, tuple[str, ...]]]) -> Part:
    """A part that rewrites a port's chains."""
    chains = tuple(chains)
    lines = tuple(f"-A {name} {rule}" for name, rules in chains for rule in rules)
    return Part(key, declare=tuple(name for name, _ in chains), fill=lines)


def rewrite_long(links: Links, whole: Whole) -> None:
    """Rewrite the chains that very many rules are to be deleted from."""
    for (table, chain), rules in list(links.remove.items()):
        if len(rules) > REWRITE_ABOVE:
            del links.remove[table, chain]
            links.add.pop((table, chain), None)
            links.rewrite[table, chain] = whole(table, chain)


def _link(links: Links, key: PortKey, old: Fragment, new: Fragment) -> None:
    if old.shared == new.shared:
        return
    had, has = Counter(old.shared), Counter(new.shared)
    for side, rules in ((links.add, has - had), (links.remove, had - has)):
        for rule in rules.elements():
            side.setdefault((rule.table, rule.chain), []).append((key, rule.rule))


# ---------------------------------------------------------------- against the kernel


class Reconciliation:
    """One full comparison. Consume `restores`, then read the results.

    totals: rules of all ports and of the node by table, without jumps in built-in chains, which kube-proxy does not
    count in its metrics either (sync_proxy_rules_iptables_total). abandoned: UDP and SCTP frontends that the kernel
    directs to a Service and that no port has any more. left: chains of single ports that no port needs, but that
    chains of another mode still jump to.
    """

    def __init__(
        self,
        saved: Saved,
        base: Base,
        family: Family,
        limit: int,
        believed: Callable[[PortKey], Collection[Chain]] = lambda key: (),
        rule_by_rule: bool = False,
    ) -> None:
        """believed: the chains that a port is believed to have; only used where the rules of these cannot be read.
        rule_by_rule: rewrite no long chain as a whole, so that the restores show each rule that differs."""
        self._rule_by_rule = rule_by_rule
        self._believed = believed
        self.totals: Counter[str] = Counter()
        self.abandoned: tuple[Frontend, ...] = ()
        self.left: tuple[str, ...] = ()
        self._saved = saved
        self._base = base
        self._family = family
        self._limit = limit
        self._needed: set[str] = set()
        self._expected: dict[tuple[str, str], list[tuple[PortKey, str]]] = {where: [] for where in base.shared}

    def restores(self, ports: Iterable[tuple[PortKey, Fragment]]) -> Iterator[Restore]:
        """Yields the restores that make the kernel match `ports`, which it reads once, and not all before it yields."""
        sections, bodies = repair_base(self._saved, self._base, self._family)
        if sections:
            yield Restore(sections)
        for rules in (self._base.owned, self._base.shared, self._base.joint):
            for (table, _), lines in rules.items():
                self.totals[table] += len(lines)
        batches = Batches(self._limit)
        for key, fragment in ports:
            yield from self._port(batches, key, fragment)
        links = self._links(bodies)
        if not self._rule_by_rule:
            rewrite_long(links, self._whole)
        yield from batches.finish(links, self._stale_chains())

    def _port(self, batches: Batches, key: PortKey, fragment: Fragment) -> Iterator[Restore]:
        differing = []
        for chain in fragment.chains:
            self.totals["nat"] += len(chain.rules)
            if chain.name in self._needed:
                continue
            self._needed.add(chain.name)
            if not self._holds(key, chain):
                differing.append(chain)
        for table, name, rule in fragment.shared:
            self.totals[table] += 1
            self._expected.setdefault((table, name), []).append((key, rule))
        if differing:
            yield from batches.fill(fill(key, differing))

    def _holds(self, key: PortKey, chain: Chain) -> bool:
        if not self._saved.has("nat", chain.name):
            return False
        if "nat" in self._saved.unreadable:
            return chain in self._believed(key)
        return same_rules(chain.name, self._saved.block("nat", chain.name), chain.rules, self._family)

    def _links(self, bodies: dict[tuple[str, str], list[str]]) -> Links:
        links = Links()
        stale: dict[tuple[str, str], list[str]] = {}
        for where, expected in self._expected.items():
            missing, left = self._match(bodies.get(where, ()), expected)
            moved = _overtaken(missing, expected) if missing else []
            if missing:
                links.add[where] = [*moved, *missing]
            if left:
                stale[where] = left
            if left or moved:
                rules: list[tuple[Owner, str]] = [
                    (NodeRules(f"stale rule in {where[1]}: {rule}"), rule) for rule in left
                ]
                links.remove[where] = [*rules, *moved]
        self.abandoned = self._abandoned(stale)
        return links

    def _match(
        self, held: Iterable[str], expected: list[tuple[PortKey, str]]
    ) -> tuple[list[tuple[Owner, str]], list[str]]:
        """The expected rules that are missing, and the held ones that are not expected."""
        open_rules: dict[str, list[tuple[Owner, str]]] = {}
        for key, rule in expected:
            open_rules.setdefault(as_saved(rule, self._family), []).append((key, rule))
        unknown = [rule for rule in held if not _take(open_rules, rule)]
        missing = [pair for pairs in open_rules.values() for pair in pairs]
        if not unknown or not missing:
            return missing, unknown
        by_meaning: dict[Rule, list[tuple[Owner, str]]] = {}
        for pair in missing:
            by_meaning.setdefault(canonical(pair[1]), []).append(pair)
        unknown = [rule for rule in unknown if not _take(by_meaning, canonical(rule))]
        return [pair for pairs in by_meaning.values() for pair in pairs], unknown

    def _whole(self, table: str, chain: str) -> list[tuple[Owner, str]]:
        tail = self._base.shared.get((table, chain), ())
        return [*self._expected[table, chain], *((NODE, rule) for rule in tail)]

    def _stale_chains(self) -> Iterator[Part]:
        stale = [c for c in self._saved.chains("nat") if c.startswith(PORT_CHAINS) and c not in self._needed]
        if any(self._saved.has(*where) and where not in {*self._expected, *self._base.owned} for where in DISPATCH):
            self.left, stale = tuple(stale), []
        for prefix in PORT_CHAINS:
            for chain in stale:
                if chain.startswith(prefix):
                    yield Part(NodeRules(f"stale chain {chain}"), delete=(chain,))

    def _abandoned(self, stale: dict[tuple[str, str], list[str]]) -> tuple[Frontend, ...]:
        """TCP is left out, as its clients notice by themselves. All frontends of another mode's chains are
        abandoned."""
        found = {
            frontend(rule)
            for where in DISPATCH
            for rule in (stale.get(where, ()) if where in self._expected else self._saved.rules(*where))
        }
        if not found:
            return ()
        kept = {frontend(rule) for where in DISPATCH for _, rule in self._expected.get(where, ())}
        return tuple(f for f in found - kept if f and f.protocol is not Protocol.TCP)


def _overtaken(missing: list[tuple[Owner, str]], expected: list[tuple[PortKey, str]]) -> list[tuple[Owner, str]]:
    """Rules that count packets, and would come after the missing rule of the same port that takes these packets."""
    owners, there = {owner for owner, _ in missing}, set(missing)
    return [pair for pair in expected if pair[0] in owners and COUNTING in pair[1] and pair not in there]


def _take(pool: dict[K, list[tuple[Owner, str]]], what: K) -> bool:
    """Remove one of the values that `pool` has under `what`; False when there is none left."""
    if not (pairs := pool.get(what)):
        return False
    pairs.pop()
    return True
