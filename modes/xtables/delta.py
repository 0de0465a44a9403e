"""The difference between what some Service ports have in the kernel and what they should have, as restores. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from kproxy.model.plans import PortKey
from kproxy.modes.xtables.fragments import Fragment
from kproxy.modes.xtables.restores import Batches, Links, Owner, Part, Restore

# Rules to take out of one chain from which on writing that chain anew is faster: on nf_tables with 10,000 rules each
# costs 5 ms, the whole chain 0.8 s; both grow with the length of the chain, so the number hardly depends on it.
REWRITE_ABOVE = 128


class Change(NamedTuple):
    """One port: what the kernel has of it, what it should have. An empty fragment stands for nothing."""

    key: PortKey
    old: Fragment
    new: Fragment


# Everything that should stand in a shared chain, in order, with owners; asked for only when a chain is written anew.
Whole = Callable[[str, str], list[tuple[Owner, str]]]


def delta(changes: Iterable[Change], limit: int, whole: Whole) -> Iterator[Restore]:
    """The restores that lead from all `old` to all `new`; nothing when they are equal.

    Only chains that differ are written. A restore is complete in itself: whatever it makes reachable is there.
    """
    batches, links = Batches(limit), Links()
    gone: list[tuple[PortKey, list[str]]] = []
    claimed: set[str] = set()
    for key, old, new in changes:
        had, has = dict(old.chains), dict(new.chains)
        claimed.update(has)
        differing = [chain for chain in new.chains if had.get(chain.name) != chain.rules]
        if differing:
            yield from batches.fill(fill(key, differing))
        if stale := [name for name in had if name not in has]:
            gone.append((key, stale))
        _link(links, key, old, new)
    rewrite_long(links, whole)
    # A chain belongs to one port; should two share one nevertheless, whoever still has it keeps it.
    parts = (Part(key, delete=tuple(name for name in names if name not in claimed)) for key, names in gone)
    yield from batches.finish(links, [part for part in parts if part.delete])


def fill(key: PortKey, chains: Iterable[tuple[str, tuple[str, ...]]]) -> Part:
    """A port's chains written anew, each emptied first."""
    chains = tuple(chains)
    lines = tuple(f"-A {name} {rule}" for name, rules in chains for rule in rules)
    return Part(key, declare=tuple(name for name, _ in chains), fill=lines)


def rewrite_long(links: Links, whole: Whole) -> None:
    """Where very many rules leave a chain, write that chain anew instead."""
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
