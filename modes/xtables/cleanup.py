"""Removing everything that kube-proxy and kproxy ever wrote through iptables, in any mode and of any release.

The kubelet's chains stay (KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, KUBE-MARK-DROP), and so does KUBE-FIREWALL while
anyone else has a rule in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kproxy import logs
from kproxy.kernel.iptables import Tables
from kproxy.modes.base import Outcome
from kproxy.modes.xtables import names
from kproxy.modes.xtables.canonical import canonical
from kproxy.modes.xtables.filters import GUARD
from kproxy.modes.xtables.fragments import Base
from kproxy.modes.xtables.node_rules import jump_target
from kproxy.modes.xtables.reconcile import PORT_CHAINS
from kproxy.modes.xtables.restore_writer import LIMITS, Writer
from kproxy.modes.xtables.restores import Chore, Part, Restore, Section
from kproxy.modes.xtables.saved import Saved

_log = logs.get("iptables")

CANARY = "KUBE-PROXY-CANARY"
NODE_CHAINS = frozenset(
    {
        names.SERVICES,
        names.EXTERNAL_SERVICES,
        names.NODE_PORTS,
        names.PROXY_FIREWALL,
        names.FORWARD,
        names.MARK_MASQ,
        names.POSTROUTING,
        CANARY,
        # IPVS mode
        "KUBE-LOAD-BALANCER",
        "KUBE-NODE-PORT",
        "KUBE-SOURCE-RANGES-FIREWALL",
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
        # userspace mode
        "KUBE-PORTALS-CONTAINER",
        "KUBE-PORTALS-HOST",
        "KUBE-NODEPORT-CONTAINER",
        "KUBE-NODEPORT-HOST",
        "KUBE-NODEPORT-NON-LOCAL",
        "KUBE-PROXY-PORTS",
    }
)


def clean(tables: Tables) -> Outcome:
    """Remove it all; nothing is written where there is nothing. What the rules in somebody else's chains lead to stays,
    as does what the kernel will not let go of, and the rest goes. Raises KernelError."""
    outcome = Outcome()
    Writer(tables, outcome, isolate=True).run(removals(Saved(tables.save()), LIMITS[tables.backend]))
    return outcome


def removals(saved: Saved, limit: int) -> Iterator[Restore]:
    """The restores that take everything away: the jumps first, so that packets stop coming."""
    for table in saved.tables:
        chains = [chain for chain in saved.chains(table) if chain in NODE_CHAINS or chain.startswith(PORT_CHAINS)]
        yield from _without(saved, table, {*chains, *_emptied(saved, table)}, limit)


def superseded(saved: Saved, base: Base, limit: int, left: Collection[str] = ()) -> Iterator[Restore]:
    """The restores that take away what another mode left on a node that now has BASE; nothing when nothing is left.

    left: chains of single ports to take away as well. Those that no port needs go with the comparison itself, but for
    these, which the other mode's chains lead to.
    """
    kept = {*base.owned, *base.shared, *base.joint}
    for table in saved.tables:
        held = saved.chains(table)
        ports = frozenset(left if table == "nat" else ())
        ours = frozenset(c for c in held if (table, c) in kept or (c.startswith(PORT_CHAINS) and c not in ports))
        going = {c for c in held if c in NODE_CHAINS and c not in ours and c != CANARY} | ports
        if (table, names.FIREWALL) not in kept:
            going |= _emptied(saved, table)
        yield from _without(saved, table, going, limit, ours)


def _without(
    saved: Saved, table: str, going: set[str], limit: int, ours: Collection[str] = frozenset()
) -> Iterator[Restore]:
    """ours: chains that stay, or go by other means; what their rules in SAVED lead to has no meaning any more."""
    if needed := _needed(saved, table, going, ours):
        _log.warning("Chains stay, as another program's rules lead to them", table=table, chains=sorted(needed))
        going -= needed
    guards = _guards(saved, table) if names.FIREWALL not in ours else ()
    unlinks = [*_jumps(saved, table, going), *guards]
    if unlinks:
        yield Restore((Section(table, tuple(unlinks)),))
    chains = sorted(going, key=_leads_first)
    for start in range(0, len(chains), limit):
        some = chains[start : start + limit]
        yield Restore((Section(table, tuple(Part(Chore(f"chain {c}"), delete=(c,)) for c in some)),))


def _jumps(saved: Saved, table: str, going: set[str]) -> Iterator[Part]:
    for chain in saved.chains(table):
        if not saved.builtin(table, chain):
            continue
        for rule in saved.rules(table, chain):
            if jump_target(rule) in going:
                yield Part(Chore(f"rule in {chain}: {rule}"), unlink=(f"-D {chain} {rule}",))


def _needed(saved: Saved, table: str, going: set[str], ours: Collection[str]) -> set[str]:
    """Chains of GOING that rules in chains of other programs lead to (KUBE-MARK-MASQ, for some network plugins)."""
    needed: set[str] = set()
    passed_over = {*going, *ours}
    others = [c for c in saved.chains(table) if c not in passed_over and not saved.builtin(table, c)]
    while others:
        rules = saved.rules(table, others.pop())
        others += (new := {jump_target(rule) for rule in rules} & going - needed)
        needed |= new
    return needed


def _guards(saved: Saved, table: str) -> Iterator[Part]:
    """Our rule in KUBE-FIREWALL when others' keep the chain."""
    if table == "filter" and not _emptied(saved, table):
        for rule in saved.rules(table, names.FIREWALL):
            if canonical(rule) == canonical(GUARD):
                yield Part(Chore(f"rule in {names.FIREWALL}"), unlink=(f"-D {names.FIREWALL} {rule}",))


def _emptied(saved: Saved, table: str) -> set[str]:
    """KUBE-FIREWALL, when it holds nothing but our rule."""
    if table != "filter" or not saved.has(table, names.FIREWALL):
        return set()
    others = [r for r in saved.rules(table, names.FIREWALL) if canonical(r) != canonical(GUARD)]
    return set() if others else {names.FIREWALL}


def _leads_first(chain: str) -> tuple[int, str]:
    """Chains that lead to others before those; of the node's own, the marking chain is led to by all."""
    if chain == names.MARK_MASQ:
        return len(PORT_CHAINS) + 1, chain
    return next((i for i, prefix in enumerate(PORT_CHAINS, 1) if chain.startswith(prefix)), 0), chain
