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
from kproxy.kernel import host_checks
from kproxy.kernel.commands import Commands
from kproxy.kernel.iptables import Backend, Command, available, detect
from kproxy.metrics.registry import Metrics
from kproxy.model.plan_store import PlanStore
from kproxy.model.plans import Family
from kproxy.modes.drivers import Driver, Equipment, driver_of
from kproxy.modes.settings import excluded_networks
from kproxy.sync import host_setup
from kproxy.sync.node_info import NodeSurroundings
from kproxy.sync.proxier import Proxier
from kproxy.sync.schedule import Schedule
from kproxy.sync.stale_rules import StaleRules, rules_of_modes

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
    if not host_checks.may_administer_network():
        raise KernelError(f"{mode.value} mode cannot work: {host_checks.NEEDED}")
    command = _backend(commands, mode, backend)
    return Tools(command, host_setup.families(commands, command), mode in COUNTING and host_setup.count_in_nfacct())


class ActiveMode:
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
            left = rules_of_modes(commands, excluded_networks(config), config.mode)
            self.leftovers = StaleRules(config.mode, left, tools.families)
            stack.callback(self.leftovers.stop)
            self.workers: Collection[Proxier] = [self._worker(family) for family in tools.families]
            self._stack = stack.pop_all()

    def reconfigure(self, config: KubeProxyConfiguration) -> None:
        """Go on by a configuration that needs no other driver; everything is checked at once."""
        self._equipment.config = config
        for worker in self.workers:
            worker.schedule.change_periods(config.min_sync_period.seconds, config.sync_period.seconds)

    def finish(self, book: PlanStore) -> None:
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

    def _worker(self, family: Family) -> Proxier:
        config = self._equipment.config
        dataplane, configure = self.driver.drive(family)
        schedule = Schedule(config.min_sync_period.seconds, config.sync_period.seconds)
        return Proxier(dataplane, schedule, configure)


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
