"""What the daemon asks of a mode, and what it gives to one.

A Dataplane knows its part of the kernel and nothing else; a driver knows the host. It checks that the host has what
the mode needs, sets sysctls, hands settings to its dataplanes, and says what is left to do at the end.

Which driver drives which mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from typing import NamedTuple, Protocol

from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.errors import InvalidConfig, KernelError
from kproxy.kernel.commands import Commands
from kproxy.kernel.iptables import Backend, Command, HostTables, Tables
from kproxy.kernel.legacy_tables import LegacyDrift
from kproxy.metrics.registry import Metrics
from kproxy.model.node_info import NodeView
from kproxy.model.plan_store import FamilyPlans, PlanStore
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.base import Dataplane
from kproxy.modes.settings import Host
from kproxy.modes.xtables.chain_writer import Drift
from kproxy.netfilter.changes import Commits, NftDrift, WatchedTables


class Node(Protocol):
    """What drivers read of the node; it may change between two syncs."""

    @property
    def host(self) -> Host: ...

    @property
    def node(self) -> NodeView | None: ...

    @property
    def service_cidrs(self) -> tuple[str, ...]: ...

    def node_port_ips(self, family: Family) -> tuple[str, ...]: ...


@dataclass
class Equipment:
    """What every driver works with. What has to be closed is pushed on `stack`. config: the one in force; another may
    take its place between two syncs. command: None in a mode without iptables."""

    config: KubeProxyConfiguration
    commands: Commands
    command: Command | None
    surroundings: Node
    metrics: Metrics
    stack: ExitStack
    commits: Commits = field(default_factory=Commits)

    def tables(self, family: Family) -> tuple[Tables, Drift]:
        """The iptables tables of one family, and what notices others' changes to them. Raises KernelError when none are
        used."""
        if self.command is None:
            raise KernelError("this mode uses no iptables")
        host_tables = HostTables(self.commands, family, self.command)
        if self.command.backend is Backend.NFT:
            drift = NftDrift(family, lambda pid: pid in self.commands.recent_pids(), self.commits)
            self.stack.callback(drift.close)
            return WatchedTables(host_tables, drift), drift
        return host_tables, LegacyDrift(family)


class Driven(NamedTuple):
    """A dataplane, and what has to be called with the family's page before each of its syncs."""

    dataplane: Dataplane
    configure: Callable[[FamilyPlans], None]


class Driver(Protocol):
    """Puts one mode to work on this host. Made by the daemon before anything is programmed; making one, or its `drive`,
    raises KernelError when the host lacks what the mode needs."""

    def drive(self, family: Family) -> Driven:
        """The dataplane of one family. Called once for each, before anything is programmed."""

    def answering(self, family: Family, plans: Mapping[PortKey, ServicePlan]) -> Mapping[PortKey, ServicePlan]:
        """PLANS with those in the place of their endpoints that, as connection tracking sees it, answer their flows."""

    def finish(self, book: PlanStore) -> None:
        """The daemon ends, after at least one sync of every family. What serves without it stays as it is; a mode that
        cannot serve without it hands over to one that can. Raises KernelError."""


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
