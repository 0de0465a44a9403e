"""Sends restores to the kernel, and isolates what it refuses.

One Service that the kernel refuses must not keep the others out: the owner of a refused line is found, its lines are
left out from then on, and the rest is tried again. When the kernel names no line, the owners are tried by halves.
"""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.errors import KernelError, RestoreError, one_line
from kproxy.kernel.iptables import Backend, Tables
from kproxy.model.plans import PortKey
from kproxy.modes.base import Outcome
from kproxy.modes.xtables.restores import NodeRules, Owner, Restore, Section

LIMITS = {Backend.NFT: 600, Backend.LEGACY: 60_000}
"""The number of chains in one restore. On nf_tables the time of a restore grows with its square, as the parser keeps
the chains in a list; legacy copies the whole table out of the kernel and back for every restore, however small.
"""


class Writer:
    """Sends restores and counts what they did into an Outcome.

    isolate: leave out owners whose lines are refused; otherwise the first refusal is raised.
    refused: the owners left out, each with one line that names the rule and the reason.
    """

    def __init__(self, tables: Tables, outcome: Outcome, isolate: bool) -> None:
        self.refused: dict[Owner, str] = {}
        self._tables = tables
        self._outcome = outcome
        self._isolate = isolate

    def run(self, restores: Iterable[Restore]) -> None:
        """Send all restores. Raises KernelError; the restores before the one that failed stay in the kernel."""
        for restore in restores:
            self._send(restore)

    @property
    def refused_ports(self) -> dict[PortKey, str]:
        return {owner: why for owner, why in self.refused.items() if isinstance(owner, PortKey)}

    def _send(self, restore: Restore) -> None:
        while (restore := restore.without(self.refused)).sections:
            text = restore.encoded()
            try:
                self._tables.restore(text)
            except RestoreError as error:
                self._outcome.refusals.append(str(error))
                if not self._isolate:
                    raise
                restore = self._narrow(restore, error)
            else:
                self._count(restore.sections, len(text))
                return

    def _narrow(self, restore: Restore, error: RestoreError) -> Restore:
        """Leave out the owner at fault; returns what is still to be sent. Tables before the faulty one are done."""
        place = restore.at(error.line)
        self._count(restore.sections[: place.section], 0)
        faulty, *later = restore.sections[place.section :]
        if place.part is not None:
            self._refuse(place.part.owner, f"{_reason(error)}: {place.line}", error)
            return Restore((faulty, *later))
        owners = faulty.owners()
        if len(owners) == 1:
            self._refuse(owners[0], _reason(error), error)
            return Restore((faulty, *later))
        # The node's own lines, which all others need, are sent with the first half.
        owners.sort(key=lambda owner: not _required(owner))
        half = set(owners[: len(owners) // 2])
        for chosen in (True, False):
            self._send(Restore((faulty.keep(lambda owner, chosen=chosen: (owner in half) is chosen),)))  # type: ignore[misc]
        return Restore(tuple(later))

    def _refuse(self, owner: Owner, why: str, error: RestoreError) -> None:
        if _required(owner):
            raise KernelError(f"the node's own rules were refused: {why}") from error
        self.refused[owner] = one_line(f"{owner if isinstance(owner, PortKey) else owner.what}: {why}")

    def _count(self, sections: Iterable[Section], size: int) -> None:
        for section in sections:
            written = self._outcome.rules_written
            written[section.table] = written.get(section.table, 0) + section.rules()
        self._outcome.bytes_written += size
        self._outcome.transactions += bool(size)


def _required(owner: Owner) -> bool:
    return isinstance(owner, NodeRules) and owner.required


def _reason(error: RestoreError) -> str:
    return one_line(error.stderr, 200)
