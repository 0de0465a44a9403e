"""One mode at work: from the moment its driver is made until another mode takes its place, or the daemon ends.

What a change of mode must not touch (the cluster's state, metrics, servers, the API server's watches) is not in here.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass

from kproxy import logs
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.errors import InvalidConfig, KernelError
from kproxy.health.metrics import Metrics
from kproxy.kernel import capabilities
from kproxy.kernel.commands import Commands
from kproxy.kernel.iptables import Backend, Command, available, detect
from kproxy.model.book import Book
from kproxy.model.plans import Family
from kproxy.sync import hosting
from kproxy.sync.drivers.base import Driver, Equipment
from kproxy.sync.drivers.registry import driver_of
from kproxy.sync.leftovers import Leftovers
from kproxy.sync.remains import remains
from kproxy.sync.schedule import Schedule
from kproxy.sync.settings import excluded_networks
from kproxy.sync.surroundings import NodeSurroundings
from kproxy.sync.workers import Worker

__all__ = ["Shift", "Tools", "find_tools"]

_log = logs.get("daemon")

COUNTING = frozenset({ProxyMode.IPTABLES, ProxyMode.USERSPACE})
"""The modes whose rules count in nfacct counters; userspace mode hands over to such rules when it ends."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What this host has for one mode. command: None in a mode without iptables."""

    command: Command | None
    families: tuple[Family, ...]
    has_nfacct: bool

    @property
    def random_fully(self) -> bool:
        return self.command is None or self.command.random_fully

    @property
    def backend(self) -> str:
        return self.command.backend.value if self.command else ""


def find_tools(commands: Commands, mode: ProxyMode, backend: str) -> Tools:
    """BACKEND: auto, nft or legacy. Raises InvalidConfig, KernelError when the host lacks what MODE needs, and
    when this process may not have it work, in the same words for all modes."""
    if not capabilities.may_administer_network():
        raise KernelError(f"{mode.value} mode cannot work: {capabilities.NEEDED}")
    command = _backend(commands, mode, backend)
    return Tools(command, hosting.families(commands, command), mode in COUNTING and hosting.count_in_nfacct())


class Shift:
    """Workers for every family, by one driver.

    Making one writes no rules; it raises KernelError when the host lacks what the mode needs, and then leaves nothing.
    """

    def __init__(
        self,
        config: KubeProxyConfiguration,
        tools: Tools,
        commands: Commands,
        surroundings: NodeSurroundings,
        metrics: Metrics,
    ) -> None:
        self.tools = tools
        with ExitStack() as stack:
            self._equipment = Equipment(config, commands, tools.command, surroundings, metrics, stack)
            self.driver: Driver = driver_of(config.mode)(self._equipment)
            left = remains(commands, excluded_networks(config), config.mode)
            self.leftovers = Leftovers(config.mode, left, tools.families)
            stack.callback(self.leftovers.stop)
            self.workers: Collection[Worker] = [self._worker(family) for family in tools.families]
            self._stack = stack.pop_all()

    def reconfigure(self, config: KubeProxyConfiguration) -> None:
        """Go on by a configuration that needs no other driver; everything is checked at once."""
        self._equipment.config = config
        for worker in self.workers:
            worker.schedule.change_periods(config.min_sync_period.seconds, config.sync_period.seconds)

    def finish(self, book: Book) -> None:
        """What the mode leaves to do when it ends. A failure is logged: there is no later try."""
        if not self.leftovers.established:
            return  # nothing of ours stands yet
        try:
            self.driver.finish(book)
        except KernelError as error:
            _log.error(
                "Could not hand the Services over to rules that serve on; they are down until the next start", error
            )

    def close(self) -> None:
        """Let go of the kernel and of processes; the rules stay."""
        self._stack.close()

    def _worker(self, family: Family) -> Worker:
        config = self._equipment.config
        programmer, configure = self.driver.drive(family)
        schedule = Schedule(config.min_sync_period.seconds, config.sync_period.seconds)
        return Worker(programmer, schedule, configure)


def _backend(commands: Commands, mode: ProxyMode, wanted: str) -> Command | None:
    """The iptables commands to work with; None in nftables mode, which needs none."""
    if mode is ProxyMode.NFTABLES:
        return None
    if wanted == "auto":
        return detect(commands)
    found = available(commands).get(Backend(wanted))
    if found is None:
        raise InvalidConfig([f"iptables-backend: the commands of backend {wanted} are not installed"])
    return found
