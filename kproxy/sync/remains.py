"""What each mode leaves outside iptables when another takes its place, and how it is taken away."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from kproxy import logs
from kproxy.config.fields import ProxyMode
from kproxy.errors import KernelError
from kproxy.kernel import modules
from kproxy.kernel.commands import Runner, checked
from kproxy.kernel.dummies import KernelAddresses
from kproxy.kernel.interfaces import own_addresses
from kproxy.kernel.ipset import KernelIpSets
from kproxy.kernel.ipvs import KernelIpvs
from kproxy.modes.ipvs import cleanup
from kproxy.sync.leftovers import Remains

__all__ = ["remains"]

_log = logs.get("cleanup")

NFT_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
"""The tables of kube-proxy's nftables mode."""


def remains(runner: Runner, spared: Collection[str] = ()) -> Mapping[ProxyMode, Remains]:
    """By the mode that leaves it. iptables and userspace mode leave nothing but chains.

    spared: CIDRs whose virtual servers are somebody else's (ipvs.excludeCIDRs).
    """
    return {
        ProxyMode.IPVS: Remains(partial(_remove_ipvs, spared), partial(_ipvs_is_busy, spared)),
        ProxyMode.NFTABLES: Remains(partial(_remove_nft_tables, runner)),
    }


def _remove_ipvs(spared: Collection[str]) -> list[str]:
    with _ipvs_state() as (ipvs, sets, addresses):
        return cleanup.clean(ipvs, sets, addresses, own_addresses(), spared)


def _ipvs_is_busy(spared: Collection[str]) -> bool:
    with _ipvs_state() as (ipvs, sets, addresses):
        return cleanup.connections(ipvs, sets, addresses, own_addresses(), spared) > 0


@contextmanager
def _ipvs_state() -> Iterator[tuple[KernelIpvs | None, KernelIpSets | None, KernelAddresses]]:
    """What the kernel has loaded; asking for the rest would load it."""
    with ExitStack() as stack:
        ipvs = stack.enter_context(KernelIpvs()) if modules.has_ipvs() else None
        sets = stack.enter_context(KernelIpSets()) if modules.has_ipset() else None
        yield ipvs, sets, stack.enter_context(KernelAddresses())


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
