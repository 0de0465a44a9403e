"""What the daemon asks of a mode, and what it gives to one.

A Programmer knows its part of the kernel and nothing else; a driver knows the host. It checks that the host has what
the mode needs, sets sysctls, hands settings to its programmers, and says what is left to do at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from kproxy.config.fields import KubeProxyConfiguration
from kproxy.errors import KernelError
from kproxy.health.metrics import Metrics
from kproxy.kernel.commands import Commands
from kproxy.kernel.drift import Commits, LegacyDrift, NftDrift, WatchedTables
from kproxy.kernel.iptables import Backend, Command, HostTables, Tables
from kproxy.model.book import Book, Page
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.base import Programmer
from kproxy.modes.iptables.chains import Drift
from kproxy.sync.surroundings import NodeSurroundings

__all__ = ["Driven", "Driver", "Equipment"]


@dataclass
class Equipment:
    """What every driver works with. What has to be closed is pushed on `stack`. config: the one in force; another may
    take its place between two syncs. command: None in a mode without iptables."""

    config: KubeProxyConfiguration
    commands: Commands
    command: Command | None
    surroundings: NodeSurroundings
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
    """A programmer, and what has to be called with the family's page before each of its syncs."""

    programmer: Programmer
    configure: Callable[[Page], None]


class Driver(Protocol):
    """Puts one mode to work on this host. Made by the daemon before anything is programmed; making one, or its `drive`,
    raises KernelError when the host lacks what the mode needs."""

    def drive(self, family: Family) -> Driven:
        """The programmer of one family. Called once for each, before anything is programmed."""

    def answering(self, family: Family, plans: Mapping[PortKey, ServicePlan]) -> Mapping[PortKey, ServicePlan]:
        """PLANS with those in the place of their endpoints that, as connection tracking sees it, answer their flows."""

    def finish(self, book: Book) -> None:
        """The daemon ends, after at least one sync of every family. What serves without it stays as it is; a mode that
        cannot serve without it hands over to one that can. Raises KernelError."""
