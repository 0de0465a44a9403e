"""A driver for each mode: checks that the host has what the mode needs, sets sysctls, and makes the dataplanes.

A dataplane knows its part of the kernel and nothing else; a driver knows the host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module

from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.containment import Containment
from kproxy.errors import InvalidConfig, KernelError
from kproxy.kernel.commands import Commands
from kproxy.kernel.iptables import Backend, Command, Tables
from kproxy.kernel.legacy_tables import LegacyDrift
from kproxy.metrics.collectors import ForwarderStatistics
from kproxy.metrics.registry import Metrics
from kproxy.model.node_info import NodeInfo
from kproxy.model.plan_store import FamilyPlans
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.base import Dataplane
from kproxy.modes.settings import Features
from kproxy.modes.xtables.chain_writer import Drift
from kproxy.netfilter.changes import NftDrift, OwnTransactions, WatchedTables
from kproxy.netfilter.iptables_compat import host_tables


@dataclass
class Equipment:
    """What every driver works with.

    config: the one in force; another may take its place between two syncs. command: None in a mode without iptables.
    stack: takes what has to be closed. commits: of both families, which write to one nf_tables.
    """

    config: KubeProxyConfiguration
    commands: Commands
    command: Command | None
    features: Features
    metrics: Metrics
    containment: Containment
    stack: ExitStack
    commits: OwnTransactions = field(default_factory=OwnTransactions)

    def tables(self, family: Family) -> tuple[Tables, Drift]:
        """The iptables tables of one family, and what notices others' changes to them.

        Raises KernelError when the mode uses none.
        """
        if self.command is None:
            raise KernelError("this mode uses no iptables")
        tables = host_tables(self.commands, family, self.command)
        if self.command.backend is Backend.NFT:
            drift = NftDrift(family, lambda pid: pid in self.commands.recent_pids(), self.commits)
            self.stack.callback(drift.close)
            return WatchedTables(tables, drift), drift
        return tables, LegacyDrift(family)


class Driver(ABC):
    """Puts one mode to work on this host, for both families.

    Making one, or a dataplane, writes no rules; it raises KernelError when the host lacks what the mode needs.
    `configure` and `answering` are called by the proxier of their family, in its thread.
    """

    @abstractmethod
    def dataplane(self, family: Family) -> Dataplane:
        """Make the dataplane of one family. Called once for each, before anything is programmed."""

    @abstractmethod
    def configure(self, family: Family, node: NodeInfo, plans: FamilyPlans) -> None:
        """Hand the family's dataplane its settings, before each of its syncs."""

    def answering(
        self, family: Family, plans: Mapping[PortKey, ServicePlan], node: NodeInfo
    ) -> Mapping[PortKey, ServicePlan]:
        """`plans` with those endpoints that connection tracking sees answer their flows. In a mode that translates
        addresses in the kernel these are the plans' own."""
        return plans

    def forwarder_statistics(self) -> ForwarderStatistics:
        """The counters of the forwarder, for metrics; in any thread. Raises KernelError where none runs."""
        raise KernelError("this mode has no forwarder")

    def localhost_rejected(self) -> Mapping[tuple[str, str], int]:
        """The packets to node ports on loopback that the mode's rules refused, by family and protocol, if they count
        them; for metrics, in any thread. Raises KernelError."""
        return {}

    def finish(self, plans: Mapping[Family, FamilyPlans], node: NodeInfo) -> None:
        """Prepare for the end of the daemon, or of this mode, after at least one sync of each family in `plans`.

        Rules serve without the daemon; a mode that cannot hands over to one that can. Raises KernelError.
        """
        return


MODES = {
    ProxyMode.IPTABLES: "iptables:IptablesDriver",
    ProxyMode.IPVS: "ipvs:IpvsDriver",
    ProxyMode.NFTABLES: "nftables:NftablesDriver",
    ProxyMode.USERSPACE: "userspace:UserspaceDriver",
}
"""Module and class; a mode's modules are imported only where it is used."""


def driver_of(mode: ProxyMode) -> Callable[[Equipment], Driver]:
    """The class of the mode's driver. Raises InvalidConfig for a mode that does not exist yet."""
    if mode not in MODES:
        raise InvalidConfig([f"mode: {mode} is not available yet"])
    module, _, name = MODES[mode].partition(":")
    found: Callable[[Equipment], Driver] = getattr(import_module(f"kproxy.modes.{module}.driver"), name)
    return found
