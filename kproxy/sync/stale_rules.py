"""Removes the rules that another mode left on the node, once this mode's rules are in place.

Chains of another mode in the tables that a dataplane writes are that dataplane's own matter; here is what it does not
see. The removal has a thread of its own, as connections that IPVS still carries are given time to end.
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
from kproxy.containment import Containment
from kproxy.errors import KernelError, NetlinkError
from kproxy.kernel import host_checks
from kproxy.kernel.commands import Runner
from kproxy.kernel.interfaces import own_addresses
from kproxy.kernel.ipset import KernelIpSets
from kproxy.kernel.iptables import available, forbidden
from kproxy.kernel.ipvs import KernelIpvs
from kproxy.kernel.service_device import KernelAddresses
from kproxy.model.plans import Family
from kproxy.modes.ipvs import cleanup
from kproxy.modes.nftables.names import KUBE_PROXY_TABLE, TABLE
from kproxy.modes.xtables.cleanup import clean
from kproxy.netfilter.iptables_compat import host_tables
from kproxy.netfilter.kernel import KernelNftables
from kproxy.netfilter.table import delete_tables

_log = logs.get("cleanup")

LINGER = 60.0
"""Seconds to wait, at most, for connections through the old mode to end."""
POLL = 1.0
SHARE = 0.1
"""The share of the time that may be spent looking for them."""


class ModeRules:
    """What one mode may have left in the kernel, and how to remove it.

    busy: whether connections still use it. remove: deletes it, and returns one line for each thing that could not be
    deleted. Both may raise KernelError.
    """

    def __init__(self, remove: Callable[[], list[str]], busy: Callable[[], bool] = lambda: False) -> None:
        self.remove, self.busy = remove, busy


class StaleRules:
    """Waits for a full sync of every family, then removes what modes other than `mode` left.

    What cannot be removed is tried again after the next full sync. `synced` may be called from any thread.
    """

    def __init__(
        self,
        mode: ProxyMode,
        left_by: Mapping[ProxyMode, ModeRules],
        families: Collection[Family],
        containment: Containment,
        linger: float = LINGER,
    ) -> None:
        """left_by: by the mode that left them. linger: seconds."""
        self._left_by = {other: rules for other, rules in left_by.items() if other is not mode}
        self._waiting = set(families)
        self._linger = linger
        self._stage = containment.stage("stale-rules", "what another mode left stays until the next full sync")
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def established(self) -> bool:
        """Whether every family has been written once, so that Services are served by this process's mode."""
        return not self._waiting

    def synced(self, family: Family) -> None:
        """Note that a full sync of one family succeeded."""
        with self._lock:
            self._waiting.discard(family)
            running = self._thread is not None and self._thread.is_alive()
            if self._waiting or running or not self._left_by or self._stopping.is_set():
                return
            self._thread = threading.Thread(target=self._remove, name="stale-rules", daemon=True)
            self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Remove nothing more; what is left stays for the next start. Returns whether the removal under way ended
        within `seconds`."""
        self._stopping.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def resume(self) -> None:
        """Go on after `stop`, with the next full sync."""
        self._stopping.clear()

    def _remove(self) -> None:
        for mode, rules in list(self._left_by.items()):
            if not self._stopping.is_set() and self._stage.attempt(partial(self._remove_one, mode, rules), False):
                del self._left_by[mode]

    def _remove_one(self, mode: ProxyMode, rules: ModeRules) -> bool:
        """Remove what one mode left; returns whether nothing is left."""
        try:
            if not self._wait_for_last_connection(rules):
                return False
            problems = rules.remove()
        except KernelError as error:
            problems = [str(error)]
        for problem in problems:
            _log.warning(
                "What another mode left could not be removed; will retry after the next full sync",
                mode=mode.value,
                err=problem,
            )
        return not problems

    def _wait_for_last_connection(self, rules: ModeRules) -> bool:
        """Wait for connections to end; returns whether the rules may be removed now, False when the daemon ends."""
        until = time.monotonic() + self._linger
        while (began := time.monotonic()) < until and rules.busy():
            # In a large cluster a look takes long: looking must not keep a processor busy.
            if self._stopping.wait(max(POLL, (time.monotonic() - began) / SHARE)):
                return False
        return True


ABSENT = frozenset({errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL})
"""The errors of a kernel without nf_tables."""


class Cleaned(NamedTuple):
    """The outcome of a cleanup, a line each.

    problems: what could not be deleted. unseen: the tables that this process may not read.
    """

    problems: list[str]
    unseen: list[str]


def rules_left(
    runner: Runner, spared: Collection[str] = (), new: ProxyMode | None = None
) -> Mapping[ProxyMode, ModeRules]:
    """What modes may have left, by mode. iptables and userspace mode leave nothing but chains.

    spared: CIDRs whose virtual servers are somebody else's (ipvs.excludeCIDRs). new: the mode that takes over; all but
    nftables mode remove chains by themselves. Chains come first, as they use sets of IPVS mode.
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
    """The parts of IPVS that the kernel has loaded; asking for others would load them."""
    with ExitStack() as stack:
        ipvs = stack.enter_context(KernelIpvs()) if host_checks.has_ipvs() else None
        sets = stack.enter_context(KernelIpSets()) if host_checks.has_ipset() else None
        yield ipvs, sets, stack.enter_context(KernelAddresses())


def _remove_nft_tables() -> list[str]:
    try:
        with KernelNftables() as kernel:
            return delete_tables(kernel, (TABLE, KUBE_PROXY_TABLE))
    except NetlinkError as error:
        if error.errno in ABSENT:
            return []
        raise


def _clean_chains_with_what_there_is(runner: Runner) -> list[str]:
    """Clean the chains for a mode without iptables: where no iptables is installed, warn once and do not retry."""
    try:
        available(runner)
    except KernelError:
        _log.warning(
            "iptables is not installed; any rules that an earlier proxy wrote with it stay, and act before ours"
        )
        return []
    problems, unseen = clean_chains(runner)
    for line in unseen:
        _log.warning("Cannot read the iptables rules; any that an earlier proxy left act before ours", err=line)
    return problems


def clean_chains(runner: Runner) -> Cleaned:
    """Remove the chains of every mode from both backends and families."""
    cleaned = Cleaned([], [])
    for backend, command in available(runner).items():
        for family in Family:
            tables = host_tables(runner, family, command)
            try:
                tables.save()
            except KernelError as error:
                if forbidden(error):
                    cleaned.unseen.append(f"{backend} {family}: {error}")
                else:
                    _log.v(2).info(
                        "Skipping a backend whose tables cannot be read", backend=backend, family=family, err=str(error)
                    )
                continue
            try:
                outcome = clean(tables)
            except KernelError as error:
                cleaned.problems.append(f"{backend} {family}: {error}")
            else:
                said = "Cleaned" if outcome.transactions else "Nothing to clean"
                _log.info(said, backend=backend.value, family=family.value)
                cleaned.problems.extend(
                    f"{backend} {family}: {what}: {why}" for what, why in outcome.unreadable.items()
                )
    return cleaned
