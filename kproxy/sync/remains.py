"""What each mode leaves outside iptables when another takes its place, and how it is taken away."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from kproxy import logs
from kproxy.config.fields import ProxyMode
from kproxy.errors import KernelError
from kproxy.kernel.commands import Runner, checked
from kproxy.sync.leftovers import Remains

__all__ = ["remains"]

_log = logs.get("cleanup")

NFT_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
"""The tables of kube-proxy's nftables mode."""


def remains(runner: Runner) -> Mapping[ProxyMode, Remains]:
    """By the mode that leaves it. iptables and userspace mode leave nothing but chains."""
    return {ProxyMode.NFTABLES: Remains(partial(_remove_nft_tables, runner))}


def _remove_nft_tables(runner: Runner) -> list[str]:
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
