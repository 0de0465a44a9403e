"""A node that changes its mode: what the old mode left outside iptables goes once the new mode stands.

Chains of another mode in the same tables are the dataplanes' own matter; here is what they do not see. It happens in a
thread of its own, as connections that IPVS still carries are given time to end.

What each mode leaves when another takes its place that does not see it, and how it is taken away.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

from kproxy import logs
from kproxy.config.fields import ProxyMode
from kproxy.errors import KernelError, NetlinkError
from kproxy.kernel import host_checks
from kproxy.kernel.commands import Runner
from kproxy.kernel.interfaces import own_addresses
from kproxy.kernel.ipset import KernelIpSets
from kproxy.kernel.iptables import HostTables, available, forbidden
from kproxy.kernel.ipvs import KernelIpvs
from kproxy.kernel.service_device import KernelAddresses
from kproxy.model.plans import Family
from kproxy.modes.ipvs import cleanup
from kproxy.modes.nftables import cleanup as nftables
from kproxy.modes.xtables.cleanup import clean
from kproxy.netfilter.table import KernelNftables
from kproxy.sync.proxier import Report
from kproxy.sync.schedule import Work

_log = logs.get("cleanup")

LINGER = 60.0
"""Seconds at most that connections through the old mode are waited for."""
POLL = 1.0
SHARE = 0.1
"""The share of the time that looking for them may take."""


class ModeRules:
    """What one mode may have left.

    busy: whether connections still go through it. remove: takes it away, and returns one line for each thing that would
    not go. Both may raise KernelError.
    """

    def __init__(self, remove: Callable[[], list[str]], busy: Callable[[], bool] = lambda: False) -> None:
        self.remove, self.busy = remove, busy


class StaleRules:
    """Waits for a full sync of every family, then removes what modes other than `mode` left. What cannot be removed is
    tried again after the next full sync."""

    def __init__(
        self,
        mode: ProxyMode,
        rules_of_modes: Mapping[ProxyMode, ModeRules],
        families: Collection[Family],
        linger: float = LINGER,
    ) -> None:
        """rules_of_modes: by the mode that left them. linger: seconds."""
        self._remains = {left_by: rules_of_modes[left_by] for left_by in rules_of_modes if left_by is not mode}
        self._waiting = set(families)
        self._linger = linger
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
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
        if self._waiting or (self._thread and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._remove, name="leftovers", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop waiting for connections to end; what is left then stays for the next start."""
        self._stopped.set()
        if self._thread:
            self._thread.join()

    def _remove(self) -> None:
        left = [mode for mode, rules_of_modes in self._remains.items() if not self._remove_one(mode, rules_of_modes)]
        self._done = not left

    def _wait_for_the_last_connection(self, rules_of_modes: ModeRules) -> bool:
        """Whether what rules_of_modes may go now; false when the daemon ends."""
        until = time.monotonic() + self._linger
        while (began := time.monotonic()) < until and rules_of_modes.busy():
            # In a large cluster a look takes long: looking must not keep a processor busy.
            if self._stopped.wait(max(POLL, (time.monotonic() - began) / SHARE)):
                return False
        return True

    def _remove_one(self, mode: ProxyMode, rules_of_modes: ModeRules) -> bool:
        try:
            if not self._wait_for_the_last_connection(rules_of_modes):
                return False
            problems = rules_of_modes.remove()
        except KernelError as error:
            problems = [str(error)]
        for problem in problems:
            _log.warning(
                "What another mode left stays for now; tried again after the next full sync",
                mode=mode.value,
                err=problem,
            )
        return not problems


ABSENT = frozenset({errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL})
"""What a kernel answers that has no nf_tables."""


class Cleaned(NamedTuple):
    """problems: what would not go; unseen: the tables that this process may not read. A line each."""

    problems: list[str]
    unseen: list[str]


def rules_of_modes(
    runner: Runner, spared: Collection[str] = (), new: ProxyMode | None = None
) -> Mapping[ProxyMode, ModeRules]:
    """By the mode that leaves it. iptables and userspace mode leave nothing but chains.

    spared: CIDRs whose virtual servers are somebody else's (ipvs.excludeCIDRs). new: the mode that comes instead; all
    but nftables mode see to chains by themselves. Chains go first, as they use sets of IPVS mode.
    """
    found = {
        ProxyMode.IPVS: ModeRules(partial(_remove_ipvs, spared), partial(_ipvs_is_busy, spared)),
        ProxyMode.NFTABLES: ModeRules(_remove_nft_tables),
    }
    if new is ProxyMode.NFTABLES:
        return {ProxyMode.IPTABLES: ModeRules(partial(_clean_chains_with_what_there_is, runner)), **found}
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
        ipvs = stack.enter_context(KernelIpvs()) if host_checks.has_ipvs() else None
        sets = stack.enter_context(KernelIpSets()) if host_checks.has_ipset() else None
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
