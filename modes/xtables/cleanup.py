"""Removes everything that kube-proxy and kproxy ever wrote through iptables, in any mode and of any release.

The kubelet's chains stay (KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, KUBE-MARK-DROP), and so does KUBE-FIREWALL while
another program has a rule in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kproxy import logs
from kproxy.kernel.iptables import Tables
from kproxy.modes.base import Outcome
from kproxy.modes.xtables import names
from kproxy.modes.xtables.canonical import canonical
from kproxy.modes.xtables.node_rules import jump_target
from kproxy.modes.xtables.reading import read
from kproxy.modes.xtables.restore_writer import LIMITS, Writer
from kproxy.modes.xtables.restores import NodeRules, Part, Restore, Section
from kproxy.modes.xtables.rules import GUARD, Base
from kproxy.modes.xtables.saved import Saved

_log = logs.get("iptables")


def clean(tables: Tables) -> Outcome:
    """Remove all that kube-proxy and kproxy wrote; nothing is written where there is nothing.

    Chains that other programs' rules jump to stay, and so does what the kernel refuses to delete. Where a table cannot
    be read, what stays is emptied, and named in the outcome. Raises KernelError.
    """
    outcome = Outcome()
    writer = Writer(tables, outcome, isolate=True)
    saved = read(tables, Base())
    writer.run(removals(saved, LIMITS[tables.backend]))
    for table, why in read(tables, Base()).unreadable.items() if saved.unreadable else ():
        left = names.NODE_CHAINS.intersection(tables.chains(table)) - {names.MARK_MASQ}
        if left:
            writer.run([Restore((Section(table, (Part(NodeRules("stale chains"), declare=tuple(left)),)),))])
            outcome.unreadable[f"table {table}"] = f"{', '.join(sorted(left))} emptied but not deleted: {why}"
    return outcome


def removals(saved: Saved, limit: int) -> Iterator[Restore]:
    """The restores that delete everything: the jumps first, so that no packet reaches a chain that is being deleted."""
    for table in saved.tables:
        chains = [
            chain for chain in saved.chains(table) if chain in names.NODE_CHAINS or chain.startswith(names.PORT_CHAINS)
        ]
        yield from _without(saved, table, {*chains, *_emptied(saved, table)}, limit)


def superseded(saved: Saved, base: Base, limit: int, left: Collection[str] = ()) -> Iterator[Restore]:
    """The restores that delete what another mode left on a node that now has BASE; none when nothing is left.

    left: chains of single ports to delete as well: `Reconciliation` leaves those to us that the other mode's chains
    jump to.
    """
    kept = {*base.owned, *base.shared, *base.joint}
    for table in saved.tables:
        held = saved.chains(table)
        ports = frozenset(left if table == "nat" else ())
        ours = frozenset(c for c in held if (table, c) in kept or (c.startswith(names.PORT_CHAINS) and c not in ports))
        doomed = {c for c in held if c in names.NODE_CHAINS and c not in ours and c != names.CANARY} | ports
        if (table, names.FIREWALL) not in kept:
            doomed |= _emptied(saved, table)
        yield from _without(saved, table, doomed, limit, ours)


def _without(
    saved: Saved, table: str, doomed: set[str], limit: int, ours: Collection[str] = frozenset()
) -> Iterator[Restore]:
    """Deletes the DOOMED chains. ours: chains that stay or are deleted elsewhere; their jumps in SAVED do not count."""
    if needed := _needed(saved, table, doomed, ours):
        _log.warning("Kept chains that another program's rules jump to", table=table, chains=sorted(needed))
        doomed -= needed
    guards = _guards(saved, table) if names.FIREWALL not in ours else ()
    unlinks = [*_jumps(saved, table, doomed), *guards]
    if unlinks:
        yield Restore((Section(table, tuple(unlinks)),))
    chains = sorted(doomed, key=_jumping_first)
    for start in range(0, len(chains), limit):
        some = chains[start : start + limit]
        yield Restore((Section(table, tuple(Part(NodeRules(f"chain {c}"), delete=(c,)) for c in some)),))


def _jumps(saved: Saved, table: str, doomed: set[str]) -> Iterator[Part]:
    for chain in saved.chains(table):
        if not saved.builtin(table, chain):
            continue
        for rule in saved.rules(table, chain):
            if jump_target(rule) in doomed:
                yield Part(NodeRules(f"rule in {chain}: {rule}"), unlink=(f"-D {chain} {rule}",))


def _needed(saved: Saved, table: str, doomed: set[str], ours: Collection[str]) -> set[str]:
    """The DOOMED chains that rules in chains of other programs jump to (KUBE-MARK-MASQ, for some network plugins)."""
    needed: set[str] = set()
    skipped = {*doomed, *ours}
    others = [c for c in saved.chains(table) if c not in skipped and not saved.builtin(table, c)]
    while others:
        rules = saved.rules(table, others.pop())
        others += (new := {jump_target(rule) for rule in rules} & doomed - needed)
        needed |= new
    return needed


def _guards(saved: Saved, table: str) -> Iterator[Part]:
    """The deletion of our rule in KUBE-FIREWALL, when rules of others keep the chain."""
    if table == "filter" and not _emptied(saved, table):
        for rule in saved.rules(table, names.FIREWALL):
            if canonical(rule) == canonical(GUARD):
                yield Part(NodeRules(f"rule in {names.FIREWALL}"), unlink=(f"-D {names.FIREWALL} {rule}",))


def _emptied(saved: Saved, table: str) -> set[str]:
    """KUBE-FIREWALL, when it holds no rule but ours."""
    if table != "filter" or not saved.has(table, names.FIREWALL):
        return set()
    others = [r for r in saved.rules(table, names.FIREWALL) if canonical(r) != canonical(GUARD)]
    return set() if others else {names.FIREWALL}


def _jumping_first(chain: str) -> tuple[int, str]:
    """The sort key by which chains come before those they jump to. All others jump to the marking chain."""
    if chain == names.MARK_MASQ:
        return len(names.PORT_CHAINS) + 1, chain
    return next((i for i, prefix in enumerate(names.PORT_CHAINS, 1) if chain.startswith(prefix)), 0), chain
