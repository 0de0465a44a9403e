"""What iptables tables hold against what they should hold, rule by rule, from the restores of a full check. Pure.

There is a difference exactly when a full check would write something.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

from kproxy.model.plans import Family, PortKey
from kproxy.modes.differences import Difference, Kind, service_of
from kproxy.modes.xtables.canonical import Rule, canonical
from kproxy.modes.xtables.cleanup import removals, superseded
from kproxy.modes.xtables.names import NODE_CHAINS, PORT_CHAINS
from kproxy.modes.xtables.node_rules import OUR_COMMENTS, jump_target
from kproxy.modes.xtables.reconcile import Reconciliation
from kproxy.modes.xtables.restores import Part, Restore, Section
from kproxy.modes.xtables.rules import Base, Fragment
from kproxy.modes.xtables.saved import Saved

UNLIMITED = sys.maxsize


def differences(
    saved: Saved, base: Base, family: Family, fragments: Mapping[PortKey, Fragment]
) -> tuple[list[Difference], Reconciliation]:
    """The differences between the tables as read and what the node (BASE) and its ports need; and the comparison, which
    knows the frontends that are abandoned. Chains that cannot be read count as right."""
    comparison = Reconciliation(saved, base, family, UNLIMITED, lambda key: fragments[key].chains, rule_by_rule=True)
    restores = [*comparison.restores(fragments.items())]
    found = [*_differences(saved, _sections(restores))]
    for section in _sections(superseded(saved, base, UNLIMITED, comparison.left)):
        found += _left(saved, section)
    return found, comparison


def left_chains(saved: Saved) -> int:
    """The number of chains of any proxy mode, which a mode without iptables rules removes."""
    return sum(len(part.delete) for section in _sections(removals(saved, UNLIMITED)) for part in section.parts)


def _sections(restores: Iterable[Restore]) -> list[Section]:
    return [section for restore in restores for section in restore.sections]


def _differences(saved: Saved, sections: Sequence[Section]) -> Iterator[Difference]:
    added, removed = (_places(sections, field) for field in ("link", "unlink"))
    for section in sections:
        table = section.table
        for part in section.parts:
            service = str(part.owner) if isinstance(part.owner, PortKey) else ""
            for chain in part.declare:
                yield from _chain(saved, table, chain, _filled(part, chain), service)
            for line in part.link:
                chain, rule = _split(line)
                moved = (table, chain, canonical(rule)) in removed
                what = f"{table} {chain}: {rule}"
                yield Difference(service, *((Kind.CHANGED, f"order: {what}") if moved else (Kind.MISSING, what)))
            for line in part.unlink:
                chain, rule = _split(line)
                if (table, chain, canonical(rule)) not in added:
                    yield _extra(f"{table} {chain}: ", rule, service)
            for chain in part.delete:
                yield _extra_chain(saved, table, chain, "of no Service port")


def _places(sections: Iterable[Section], field: str) -> set[tuple[str, str, Rule]]:
    parts = ((section.table, part) for section in sections for part in section.parts)
    lines = ((table, *_split(line)) for table, part in parts for line in getattr(part, field))
    return {(table, chain, canonical(rule)) for table, chain, rule in lines}


def _filled(part: Part, chain: str) -> list[str]:
    start = f"-A {chain} "
    return [line.removeprefix(start) for line in part.fill if line.startswith(start)]


def _split(line: str) -> tuple[str, str]:
    """The chain and the rule of a line -A, -I or -D."""
    _, chain, rule = line.split(" ", 2)
    return chain, rule


def _chain(saved: Saved, table: str, chain: str, wanted: list[str], service: str) -> Iterator[Difference]:
    """How a chain that is to be rewritten differs from the WANTED rules."""
    if not saved.has(table, chain):
        rules = f"{len(wanted)} rule{'s' * (len(wanted) != 1)}"
        yield Difference(service, Kind.MISSING, f"{table} chain {chain} ({rules})")
        return
    held = saved.rules(table, chain)
    missing, surplus = _without(wanted, held), _without(held, wanted)
    if not missing and not surplus:
        yield Difference(service, Kind.CHANGED, f"{table} {chain}: the order of its rules")
    # A rule of ours is what became of another one sooner than a rule that somebody else wrote.
    extra = sorted((_extra("", rule, service) for rule in surplus), key=lambda each: each.kind is Kind.FOREIGN)
    for old, new in zip_longest(extra, missing):
        if old is None:
            yield Difference(service, Kind.MISSING, f"{table} {chain}: {new}")
        elif new is None:
            yield old._replace(what=f"{table} {chain}: {old.what}")
        else:
            yield Difference(service, Kind.CHANGED, f"{table} {chain}: {old.what} → {new}")


def _without(rules: Iterable[str], others: Iterable[str]) -> list[str]:
    """Those of RULES that OTHERS do not have, by meaning; each counts as often as it is there."""
    pool = [canonical(rule) for rule in others]
    left = []
    for rule in rules:
        if (meaning := canonical(rule)) in pool:
            pool.remove(meaning)
        else:
            left.append(rule)
    return left


def _extra(place: str, rule: str, service: str = "") -> Difference:
    """A rule that should not be there: a proxy's, which has a comment or a target of theirs, or another program's."""
    service = service_of([rule]) or service
    target = jump_target(rule).partition(" ")[0]
    ours = bool(service_of([rule])) or target in NODE_CHAINS or target.startswith(PORT_CHAINS)
    ours |= any(comment in rule for comment in OUR_COMMENTS)
    return Difference(service, Kind.EXTRA if ours else Kind.FOREIGN, f"{place}{rule}")


def _extra_chain(saved: Saved, table: str, chain: str, why: str) -> Difference:
    return Difference(service_of(saved.rules(table, chain)), Kind.EXTRA, f"{table} chain {chain}, {why}")


def _left(saved: Saved, section: Section) -> Iterator[Difference]:
    """What another mode left in this backend's tables."""
    for part in section.parts:
        for line in part.unlink:
            yield _extra(f"{section.table} {_split(line)[0]}: ", _split(line)[1])._replace(kind=Kind.EXTRA)
        for chain in part.delete:
            yield _extra_chain(saved, section.table, chain, "which another mode left")._replace(service="")
