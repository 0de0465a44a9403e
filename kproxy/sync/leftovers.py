"""A node that changes its mode: what the old mode left outside iptables goes once the new mode stands.

Chains of another mode in the same tables are the programmers' own matter; here is what they do not see.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from kproxy import logs
from kproxy.config.fields import ProxyMode
from kproxy.errors import KernelError
from kproxy.kernel.commands import Runner, checked
from kproxy.model.plans import Family
from kproxy.sync.schedule import Work
from kproxy.sync.workers import Report

__all__ = ["Leftovers", "remove_nft_tables"]

_log = logs.get("cleanup")

NFT_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
"""The tables of kube-proxy's nftables mode."""


class Leftovers:
    """Waits for a full sync of every family, then removes what modes other than `mode` left. What cannot be removed is
    tried again after the next full sync."""

    def __init__(self, mode: ProxyMode, runner: Runner, families: Collection[Family]) -> None:
        self._mode, self._runner = mode, runner
        self._waiting = set(families)
        self._done = False

    @property
    def established(self) -> bool:
        """Every family has been written once: Services are served by this process's mode."""
        return not self._waiting

    def synced(self, report: Report) -> None:
        """A sync of one family ended well."""
        if self._done or report.work is not Work.EVERYTHING:
            return
        self._waiting.discard(report.family)
        if self._waiting:
            return
        problems = [problem for remove in self._removals() for problem in remove(self._runner)]
        for problem in problems:
            _log.warning("What another mode left could not be removed; tried again later", err=problem)
        self._done = not problems

    def _removals(self) -> list[Callable[[Runner], list[str]]]:
        return [remove for mode, remove in REMOVALS.items() if mode is not self._mode]


def remove_nft_tables(runner: Runner) -> list[str]:
    """Delete kube-proxy's nftables tables; one line for each that would not go."""
    nft = runner.which("nft")
    if nft is None:
        return []
    problems = []
    for family, table in NFT_TABLES:
        if not runner.run([nft, "list", "table", family, table]).ok:
            continue
        try:
            checked(runner, [nft, "delete", "table", family, table])
            _log.info("Deleted table", family=family, table=table)
        except KernelError as error:
            problems.append(str(error))
    return problems


REMOVALS: dict[ProxyMode, Callable[[Runner], list[str]]] = {
    ProxyMode.NFTABLES: remove_nft_tables,
}
"""By the mode that it was left by; each returns one line for what would not go."""
