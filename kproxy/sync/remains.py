"""What each mode leaves when another takes its place that does not see it, and how it is taken away."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

from kproxy import logs
from kproxy.config.fields import ProxyMode
from kproxy.errors import KernelError, NetlinkError
from kproxy.kernel import modules
from kproxy.kernel.commands import Runner
from kproxy.kernel.dummies import KernelAddresses
from kproxy.kernel.interfaces import own_addresses
from kproxy.kernel.ipset import KernelIpSets
from kproxy.kernel.iptables import HostTables, available, forbidden
from kproxy.kernel.ipvs import KernelIpvs
from kproxy.kernel.nftables import KernelNftables
from kproxy.model.plans import Family
from kproxy.modes.iptables.cleanup import clean
from kproxy.modes.ipvs import cleanup
from kproxy.modes.nftables import cleanup as nftables
from kproxy.sync.leftovers import Remains

__all__ = ["Cleaned", "clean_chains", "remains"]

_log = logs.get("cleanup")

ABSENT = frozenset({errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL})
"""What a kernel answers that has no nf_tables."""


class Cleaned(NamedTuple):
    """problems: what would not go; unseen: the tables that this process may not read. A line each."""

    problems: list[str]
    unseen: list[str]


def remains(runner: Runner, spared: Collection[str] = (), new: ProxyMode | None = None) -> Mapping[ProxyMode, Remains]:
    """By the mode that leaves it. iptables and userspace mode leave nothing but chains.

    spared: CIDRs whose virtual servers are somebody else's (ipvs.excludeCIDRs). new: the mode that comes instead; all
    but nftables mode see to chains by themselves. Chains go first, as they use sets of IPVS mode.
    """
    found = {
        ProxyMode.IPVS: Remains(partial(_remove_ipvs, spared), partial(_ipvs_is_busy, spared)),
        ProxyMode.NFTABLES: Remains(_remove_nft_tables),
    }
    if new is ProxyMode.NFTABLES:
        return {ProxyMode.IPTABLES: Remains(partial(_clean_chains_with_what_there_is, runner)), **found}
    return found


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


def _remove_nft_tables() -> list[str]:
    try:
        with KernelNftables() as kernel:
            return nftables.clean(kernel)
    except NetlinkError as error:
        if error.errno in ABSENT:
            return []
        raise


def _clean_chains_with_what_there_is(runner: Runner) -> list[str]:
    """For a mode that needs no iptables: said once where there is none, as trying again would not help."""
    try:
        available(runner)
    except KernelError:
        _log.warning("No iptables here: rules that an earlier proxy may have left in it stay, and come before ours")
        return []
    problems, unseen = clean_chains(runner)
    for line in unseen:
        _log.warning(
            "Rules that an earlier proxy may have left in iptables cannot be seen, and would go first", err=line
        )
    return problems


def clean_chains(runner: Runner) -> Cleaned:
    """Remove the chains of every mode from both backends and families."""
    cleaned = Cleaned([], [])
    for backend, command in available(runner).items():
        for family in Family:
            tables = HostTables(runner, family, command)
            try:
                tables.save()
            except KernelError as error:
                if forbidden(error):
                    cleaned.unseen.append(f"{backend} {family}: {error}")
                else:
                    _log.v(2).info("No tables of this kind", backend=backend, family=family, err=str(error))
                continue
            try:
                outcome = clean(tables)
            except KernelError as error:
                cleaned.problems.append(f"{backend} {family}: {error}")
            else:
                said = "Cleaned" if outcome.transactions else "Nothing to clean"
                _log.info(said, backend=backend.value, family=family.value)
    return cleaned
