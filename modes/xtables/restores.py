"""The input of iptables-restore as values that know the owner of each line. Pure.

A Restore is the input of one iptables-restore. Its parts have owners, so that a refused line can be traced to the
Service that wants it, and that Service's lines can be left out without touching those of others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from operator import itemgetter
from typing import NamedTuple

from kproxy.model.plans import PortKey


class NodeRules(NamedTuple):
    """The owner of lines that belong to no Service. required: nothing works without them; else they can be left out."""

    what: str
    required: bool = False


Owner = PortKey | NodeRules

JUMPS = tuple(f"-I {chain} " for chain in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"))
"""How lines begin that add rules to built-in chains."""

NODE = NodeRules("the node's own rules", required=True)


class Part(NamedTuple):
    """One owner's lines in one table. A section writes these fields one after another, each over all its parts.

    declare: chains to create, or to flush when they exist. fill: the lines that fill them. unlink, link: lines that
    delete rules from chains that stay, and add rules to them. delete: chains to flush at the start and delete at the
    end.
    """

    owner: Owner
    declare: tuple[str, ...] = ()
    fill: tuple[str, ...] = ()
    unlink: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()


class Section(NamedTuple):
    """One table's part of a restore, which takes effect at once or not at all."""

    table: str
    parts: tuple[Part, ...]

    def lines(self) -> Iterator[tuple[Part | None, str]]:
        """The lines of the text, each with the part that it comes from."""
        yield None, f"*{self.table}"
        # In descending order: legacy's library keeps chains in a sorted list and searches each place from the front.
        # This halves the time of a cold start of 10,000 Services.
        for chain, part in sorted(self._declared(), key=itemgetter(0), reverse=True):
            yield part, f":{chain} - [0:0]"
        for column in (2, 3, 4):
            for part in self.parts:
                for line in part[column]:
                    yield part, str(line)
        for part in self.parts:
            for chain in part.delete:
                yield part, f"-X {chain}"
        yield None, "COMMIT"

    def _declared(self) -> Iterator[tuple[str, Part]]:
        return ((chain, part) for part in self.parts for chain in (*part.declare, *part.delete))

    def owners(self) -> list[Owner]:
        """Every owner once, in order of appearance."""
        return list(dict.fromkeys(part.owner for part in self.parts))

    def rules(self) -> int:
        """The number of rules that are added, without jumps in built-in chains."""
        linked = sum(not line.startswith(JUMPS) for part in self.parts for line in part.link)
        return linked + sum(len(part.fill) for part in self.parts)

    def keep(self, wanted: Callable[[Owner], bool]) -> Section:
        """The section with the parts of the WANTED owners alone."""
        return Section(self.table, tuple(part for part in self.parts if wanted(part.owner)))


class Place(NamedTuple):
    """The place of a line in a restore: its section's index, its part (None: the table as a whole), its text."""

    section: int
    part: Part | None
    line: str


@dataclass(frozen=True, slots=True)
class Restore:
    """The input of one iptables-restore --noflush: tables in the order in which they are to take effect."""

    sections: tuple[Section, ...]

    def encoded(self) -> bytes:
        """The text as bytes, built without making it one string first: it may be 25 MB."""
        whole = BytesIO()
        for section in self.sections:
            for _, line in section.lines():
                whole.write(line.encode(errors="surrogateescape"))
                whole.write(b"\n")
        return whole.getvalue()

    def at(self, number: int) -> Place:
        """The place of the 1-based line NUMBER of the text; of the last line when there are fewer."""
        place = Place(0, None, "")
        for index, section in enumerate(self.sections):
            for part, line in section.lines():
                place = Place(index, part, line)
                number -= 1
                if not number:
                    return place
        return place

    def without(self, owners: Collection[Owner]) -> Restore:
        """The same without the lines of these OWNERS, and without tables that would be empty then."""
        if not owners:
            return self
        kept = (section.keep(lambda owner: owner not in owners) for section in self.sections)
        return Restore(tuple(section for section in kept if section.parts))


@dataclass(slots=True)
class Links:
    """Rules that come and go in chains that stay, by (table, chain).

    rewrite: chains to write anew in one go, with all their rules in order: taking out a rule costs a search of its
    chain, so that from some number on this is cheaper (and on nf_tables far cheaper).
    """

    add: dict[tuple[str, str], list[tuple[Owner, str]]] = field(default_factory=dict)
    remove: dict[tuple[str, str], list[tuple[Owner, str]]] = field(default_factory=dict)
    rewrite: dict[tuple[str, str], list[tuple[Owner, str]]] = field(default_factory=dict)

    def parts(self, table: str, add: bool = True, remove: bool = True) -> list[Part]:
        """The parts for one table.

        New rules go to the head of their chain, in the order given, so that what must be last in it stays last.
        """
        parts: list[Part] = []
        if remove:
            for chain, owner, rule in _of(table, self.remove):
                parts.append(Part(owner, unlink=(f"-D {chain} {rule}",)))
        if add:
            for chain, owner, rule in reversed(list(_of(table, self.add))):
                parts.append(Part(owner, link=(f"-I {chain} {rule}",)))
            parts += [Part(NODE, declare=(chain,)) for of, chain in self.rewrite if of == table]
            for chain, owner, rule in _of(table, self.rewrite):
                parts.append(Part(owner, link=(f"-A {chain} {rule}",)))
        return parts


def _of(table: str, rules: dict[tuple[str, str], list[tuple[Owner, str]]]) -> Iterator[tuple[str, Owner, str]]:
    return ((chain, owner, rule) for (of, chain), lines in rules.items() if of == table for owner, rule in lines)


class Batches:
    """Cuts the work into restores: first the chains of each Service, then the rules that jump to them, then deletions.

    Work that fits into one restore stays in one. The rules that jump to chains come last and together: on nf_tables
    every transaction walks all rules that can be reached, so that linking early would make each later one slower.
    """

    def __init__(self, limit: int) -> None:
        """limit: the number of chains in one restore."""
        self._limit = limit
        self._pending: list[Part] = []
        self._size = 0
        self._cut = False

    def fill(self, part: Part) -> Iterator[Restore]:
        """Add one port's chains; yields a restore when the limit is reached."""
        self._pending.append(part)
        self._size += len(part.declare)
        if self._size > self._limit:
            yield self._flush()

    def finish(self, links: Links, deletions: Iterable[Part]) -> Iterator[Restore]:
        """The remaining restores: pending chains, links, and deletions of chains that nothing jumps to any more."""
        gone = list(deletions)
        if self._cut or self._size + sum(len(part.delete) for part in gone) > self._limit:
            if self._pending:
                yield self._flush()
            yield from _restore(links, [], [])
            yield from self._delete(gone)
        else:
            yield from _restore(links, self._pending, gone)

    def _flush(self) -> Restore:
        self._cut = True
        pending, self._pending, self._size = self._pending, [], 0
        return Restore((Section("nat", tuple(pending)),))

    def _delete(self, gone: Iterable[Part]) -> Iterator[Restore]:
        batch: list[Part] = []
        size = 0
        for part in gone:
            batch.append(part)
            size += len(part.delete)
            if size >= self._limit:
                yield Restore((Section("nat", tuple(batch)),))
                batch, size = [], 0
        if batch:
            yield Restore((Section("nat", tuple(batch)),))


def _restore(links: Links, fills: list[Part], gone: list[Part]) -> Iterator[Restore]:
    """Each table takes effect at its own COMMIT: rules that refuse traffic are added before nat changes, and deleted
    after it."""
    nat = Section("nat", (*fills, *links.parts("nat"), *gone))
    before = Section("filter", tuple(links.parts("filter", remove=not nat.parts)))
    after = Section("filter", tuple(links.parts("filter", add=False)) if nat.parts else ())
    sections = tuple(section for section in (before, nat, after) if section.parts)
    if sections:
        yield Restore(sections)
