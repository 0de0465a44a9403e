"""Repairs the rules that do not depend on Services: the node's own chains, and the jumps in built-in chains. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from kproxy.model.plans import Family
from kproxy.modes.xtables.canonical import canonical
from kproxy.modes.xtables.restores import NODE, Part, Section
from kproxy.modes.xtables.rules import Base
from kproxy.modes.xtables.saved import Saved, as_saved, same_rules

# Every jump that kube-proxy and kproxy write into built-in chains has a comment that starts with one of these.
OUR_COMMENTS = (
    '--comment "kubernetes ',
    '--comment "kube-proxy ',
    '--comment "handle ClusterIPs',
    '--comment "handle service NodePorts',
    '--comment "Ensure that non-local NodePort',
)


def repair_base(
    saved: Saved, base: Base, family: Family
) -> tuple[tuple[Section, ...], dict[tuple[str, str], list[str]]]:
    """Compares `saved` with `base`. Returns what to write (a section per table, none when nothing is wrong), and the
    rules that each shared chain holds before those that must be last in it."""
    work: dict[str, _Lines] = defaultdict(_Lines)
    for (table, chain), rules in base.owned.items():
        if not saved.has(table, chain) or not same_rules(chain, saved.block(table, chain), rules, family):
            work[table].rewrite(chain, rules)
    bodies = {
        (table, chain): _shared(work[table], saved, table, chain, tail, family)
        for (table, chain), tail in base.shared.items()
    }
    for (table, chain), rules in base.joint.items():
        _joint(work[table], saved, table, chain, rules)
    for (table, chain), rules in base.jumps.items():
        _jumps(work[table], saved, table, chain, rules, base)
    sections = tuple(Section(table, (lines.part(),)) for table, lines in sorted(work.items()) if lines)
    return sections, bodies


@dataclass(slots=True)
class _Lines:
    declare: list[str] = field(default_factory=list)
    fill: list[str] = field(default_factory=list)
    unlink: list[str] = field(default_factory=list)
    link: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.declare or self.fill or self.unlink or self.link)

    def rewrite(self, chain: str, rules: tuple[str, ...]) -> None:
        self.declare.append(chain)
        self.fill += [f"-A {chain} {rule}" for rule in rules]

    def part(self) -> Part:
        return Part(NODE, tuple(self.declare), tuple(self.fill), tuple(self.unlink), tuple(self.link))


def _shared(work: _Lines, saved: Saved, table: str, chain: str, tail: tuple[str, ...], family: Family) -> list[str]:
    """Repair the rules that must be last in a shared chain; returns the other ones."""
    if not saved.has(table, chain):
        work.rewrite(chain, tail)
        return []
    held = saved.rules(table, chain)
    if not tail:
        return held
    body, end = held[: -len(tail)], held[-len(tail) :]
    texts, targets = {as_saved(rule, family) for rule in tail}, {jump_target(rule) for rule in tail}
    meanings = {canonical(rule) for rule in tail}

    def is_last(rule: str) -> bool:
        return rule in texts or (jump_target(rule) in targets and canonical(rule) in meanings)

    # Their order among themselves does not matter: each is about another address.
    if sorted(map(canonical, end)) == sorted(map(canonical, tail)) and not any(map(is_last, body)):
        return body
    work.unlink += [f"-D {chain} {rule}" for rule in held if is_last(rule)]
    work.link += [f"-A {chain} {rule}" for rule in tail]
    return [rule for rule in held if not is_last(rule)]


def _joint(work: _Lines, saved: Saved, table: str, chain: str, rules: tuple[str, ...]) -> None:
    """Add our rules to a chain of several programs; the rules of others stay as and where they are."""
    if not saved.has(table, chain):
        work.rewrite(chain, rules)
        return
    held = {canonical(rule) for rule in saved.rules(table, chain)}
    work.link += [f"-A {chain} {rule}" for rule in rules if canonical(rule) not in held]


def _jumps(work: _Lines, saved: Saved, table: str, chain: str, rules: tuple[str, ...], base: Base) -> None:
    """Have each wanted jump once, at any place. Missing ones are inserted at the head in order, wrong ones deleted."""
    ours = {c for t, c in (*base.owned, *base.shared) if t == table}
    open_jumps = {canonical(rule): rule for rule in rules}
    wanted = set(open_jumps)
    for rule in saved.rules(table, chain):
        if jump_target(rule) not in ours and canonical(rule) not in wanted:
            continue
        if open_jumps.pop(canonical(rule), None) is None and is_our_jump(rule, ours):
            work.unlink.append(f"-D {chain} {rule}")
    work.link += [f"-I {chain} {rule}" for rule in reversed(open_jumps.values())]


def is_our_jump(rule: str, ours: set[str]) -> bool:
    """Whether a rule of a built-in chain is a jump that kube-proxy or kproxy wrote. One that somebody else wrote to our
    chains (with another comment or none) stays."""
    return jump_target(rule) in ours and any(comment in rule for comment in OUR_COMMENTS)


def jump_target(rule: str) -> str:
    """The target of a rule with the target's options; "" when it has none."""
    return rule.rpartition(" -j ")[2] if " -j " in rule else rule[3:] if rule.startswith("-j ") else ""
