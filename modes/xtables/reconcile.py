"""The difference between what the kernel really holds and what it should hold, as restores. Pure.

Whoever wrote a rule, one that is equal to ours is adopted. Chains of Services that are not wanted, wrong rules in
shared chains, missing or doubled jumps are repaired; what belongs to others (the kubelet, a firewall) is not looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from typing import TypeVar

from kproxy.model.plans import Family, Frontend, PortKey
from kproxy.model.plans import Protocol as L4Protocol
from kproxy.modes.xtables import names
from kproxy.modes.xtables.canonical import Rule, canonical
from kproxy.modes.xtables.delta import fill, rewrite_long
from kproxy.modes.xtables.fragments import Base, Fragment
from kproxy.modes.xtables.node_rules import repair_base
from kproxy.modes.xtables.restores import NODE, Batches, Chore, Links, Owner, Part, Restore
from kproxy.modes.xtables.saved import Saved, as_saved, frontend, same_rules

K = TypeVar("K", bound=Hashable)

# Chains of single ports, those first that lead to the others: so they can be deleted in this order. KUBE-XLB- is what
# kube-proxy before 1.24 had instead of KUBE-EXT- and KUBE-SVL-.
PORT_CHAINS = ("KUBE-FW-", "KUBE-XLB-", "KUBE-EXT-", "KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-")
# Where frontends lead to endpoints, in iptables mode and in userspace mode; elsewhere they are refused.
LEADING = tuple(
    ("nat", chain) for chain in (names.SERVICES, names.NODE_PORTS, "KUBE-PORTALS-CONTAINER", "KUBE-NODEPORT-CONTAINER")
)
COUNTING = "--nfacct-name "


class Reconciliation:
    """One full comparison. Take the restores, then read the results.

    totals: rules of all ports and of the node, by table; abandoned: UDP and SCTP frontends that led to a Service and
    will no more. left: chains of single ports that no port needs but that another mode's chains still lead to.
    """

    def __init__(self, saved: Saved, base: Base, family: Family, limit: int) -> None:
        self.totals: Counter[str] = Counter()
        self.abandoned: tuple[Frontend, ...] = ()
        self.left: tuple[str, ...] = ()
        self._saved = saved
        self._base = base
        self._family = family
        self._limit = limit
        self._claimed: set[str] = set()
        self._expected: dict[tuple[str, str], list[tuple[PortKey, str]]] = {where: [] for where in base.shared}

    def restores(self, ports: Iterable[tuple[PortKey, Fragment]]) -> Iterator[Restore]:
        """PORTS is gone through once, and what was made of a port is given out before all are seen."""
        sections, bodies = repair_base(self._saved, self._base, self._family)
        if sections:
            yield Restore(sections)
        for rules in (self._base.owned, self._base.shared, self._base.joint, self._base.jumps):
            for (table, _), lines in rules.items():
                self.totals[table] += len(lines)
        batches = Batches(self._limit)
        for key, fragment in ports:
            yield from self._port(batches, key, fragment)
        links = self._links(bodies)
        rewrite_long(links, self._whole)
        yield from batches.finish(links, self._stale_chains())

    def _port(self, batches: Batches, key: PortKey, fragment: Fragment) -> Iterator[Restore]:
        differing = []
        for chain in fragment.chains:
            self.totals["nat"] += len(chain.rules)
            if chain.name in self._claimed:
                continue
            self._claimed.add(chain.name)
            block = self._saved.block("nat", chain.name)
            if not self._saved.has("nat", chain.name) or not same_rules(chain.name, block, chain.rules, self._family):
                differing.append(chain)
        for table, name, rule in fragment.shared:
            self.totals[table] += 1
            self._expected.setdefault((table, name), []).append((key, rule))
        if differing:
            yield from batches.fill(fill(key, differing))

    def _links(self, bodies: dict[tuple[str, str], list[str]]) -> Links:
        links = Links()
        stale: dict[tuple[str, str], list[str]] = {}
        for where, expected in self._expected.items():
            missing, left = self._match(bodies.get(where, ()), expected)
            moved = _outrun(missing, expected) if missing else []
            if missing:
                links.add[where] = [*moved, *missing]
            if left:
                stale[where] = left
            if left or moved:
                chores: list[tuple[Owner, str]] = [(Chore(f"stale rule in {where[1]}: {rule}"), rule) for rule in left]
                links.remove[where] = [*chores, *moved]
        self.abandoned = self._abandoned(stale)
        return links

    def _match(
        self, held: Iterable[str], expected: list[tuple[PortKey, str]]
    ) -> tuple[list[tuple[Owner, str]], list[str]]:
        """The expected rules that are missing, and the held ones that nobody expects."""
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
        stale = [c for c in self._saved.chains("nat") if c.startswith(PORT_CHAINS) and c not in self._claimed]
        if any(self._saved.has(*where) and where not in {*self._expected, *self._base.owned} for where in LEADING):
            self.left, stale = tuple(stale), []
        for prefix in PORT_CHAINS:
            for chain in stale:
                if chain.startswith(prefix):
                    yield Part(Chore(f"stale chain {chain}"), delete=(chain,))

    def _abandoned(self, stale: dict[tuple[str, str], list[str]]) -> tuple[Frontend, ...]:
        """TCP needs no help: its client notices. Chains that are another mode's lead nowhere any more, as a whole."""
        found = {
            frontend(rule)
            for where in LEADING
            for rule in (stale.get(where, ()) if where in self._expected else self._saved.rules(*where))
        }
        if not found:
            return ()
        kept = {frontend(rule) for where in LEADING for _, rule in self._expected.get(where, ())}
        return tuple(f for f in found - kept if f and f.protocol is not L4Protocol.TCP)


def _outrun(missing: list[tuple[Owner, str]], expected: list[tuple[PortKey, str]]) -> list[tuple[Owner, str]]:
    """Rules that count packets before another of the same port takes them, where that other will come in ahead."""
    owners, there = {owner for owner, _ in missing}, set(missing)
    return [pair for pair in expected if pair[0] in owners and COUNTING in pair[1] and pair not in there]


def _take(pool: dict[K, list[tuple[Owner, str]]], what: K) -> bool:
    """Take one of what POOL has under WHAT; False when there is none left."""
    if not (pairs := pool.get(what)):
        return False
    pairs.pop()
    return True
