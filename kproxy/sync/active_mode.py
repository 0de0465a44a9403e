"""The mode that works now, from the moment its driver is made until another mode takes its place or the daemon ends.

What a change of mode does not touch (the cluster's state, metrics, servers, the API server's watches) is not in here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from kproxy import logs
from kproxy.clocks import Clock
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.conntrack.reconciler import Reconciler
from kproxy.conntrack.table import KernelConntrack
from kproxy.containment import Containment
from kproxy.errors import InvalidConfig, KernelError, KproxyError
from kproxy.kernel import host_checks
from kproxy.kernel.commands import Commands
from kproxy.kernel.iptables import Backend, Command, available, detect
from kproxy.metrics.registry import Metrics
from kproxy.model.node_info import NodeInfo
from kproxy.model.plan_store import FamilyPlans
from kproxy.model.plans import Family
from kproxy.modes.drivers import Driver, Equipment, driver_of
from kproxy.modes.iptables.driver import hand_over
from kproxy.modes.settings import Features, excluded_networks
from kproxy.sync import host_setup
from kproxy.sync.plan_queue import PlanQueue
from kproxy.sync.post_sync import FamilyPostSync, HealthCheckPorts
from kproxy.sync.proxier import Observer, Proxier
from kproxy.sync.schedule import Schedule
from kproxy.sync.stale_rules import StaleRules, rules_left

_log = logs.get("daemon")

LAST_CONNECTIONS = 5.0
"""Seconds at most that connections through IPVS get to end when the daemon hands over; a pod is killed 30 s after it
was asked to end."""
POLL_SECONDS = 0.5

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


@dataclass(frozen=True, slots=True)
class Shared:
    """The parts of the daemon that every mode uses and that outlive a change of mode."""

    commands: Commands
    metrics: Metrics
    plans: PlanQueue
    health_check_ports: HealthCheckPorts
    observer: Observer
    clock: Clock
    containment: Containment


def find_tools(commands: Commands, mode: ProxyMode, backend: str) -> Tools:
    """Find what MODE needs on this host. BACKEND: auto, nft or legacy.

    Raises InvalidConfig; KernelError when the host lacks something, or this process has not the rights to use it.
    """
    if not host_checks.may_administer_network():
        raise KernelError(f"{mode.value} mode cannot work: {host_checks.NEEDED}")
    command = None if mode is ProxyMode.NFTABLES else find_iptables(commands, backend)
    return Tools(command, host_setup.families(commands, command), mode in COUNTING and host_setup.count_in_nfacct())


class ActiveMode:
    """The mode that works now: its driver, and a proxier for each family.

    Making one writes no rules; it raises KernelError when the host lacks what the mode needs, and then leaves nothing.
    """

    def __init__(self, config: KubeProxyConfiguration, tools: Tools, shared: Shared) -> None:
        self.tools, self._shared = tools, shared
        features = Features(nfacct=tools.has_nfacct, random_fully=tools.random_fully)
        with ExitStack() as stack:
            self._equipment = Equipment(
                config, shared.commands, tools.command, features, shared.metrics, shared.containment, stack
            )
            self.driver: Driver = driver_of(config.mode)(self._equipment)
            left = rules_left(shared.commands, excluded_networks(config), config.mode)
            self.stale_rules = StaleRules(config.mode, left, tools.families, shared.containment)
            self.proxiers = {family: self._proxier(family) for family in tools.families}
            self._stack = stack.pop_all()

    def start(self) -> None:
        """Start the proxiers, which begin by taking all plans."""
        self._shared.plans.start_anew(self.tools.families)
        for proxier in self.proxiers.values():
            proxier.start()

    def wake(self) -> None:
        """Tell the proxiers that plans or the node changed."""
        for proxier in self.proxiers.values():
            proxier.changed()

    def reconfigure(self, config: KubeProxyConfiguration) -> None:
        """Go on with a configuration that needs no other driver; everything is checked at once."""
        self._equipment.config = config
        for proxier in self.proxiers.values():
            proxier.change_periods(config.min_sync_period.seconds, config.sync_period.seconds)

    def pause(self, seconds: float) -> list[str]:
        """Do nothing more; returns what did not stop within `seconds`. Then `resume` or `close` has to follow."""
        until = time.monotonic() + seconds
        busy = [
            f"{family} rules are still being written"
            for family, proxier in self.proxiers.items()
            if not proxier.pause(max(0.0, until - time.monotonic()))
        ]
        if not self.stale_rules.stop(max(0.0, until - time.monotonic())):
            busy.append("what an earlier mode left is still being removed")
        return busy

    def resume(self) -> None:
        """Go on after `pause`."""
        self.stale_rules.resume()
        for proxier in self.proxiers.values():
            proxier.resume()

    def finish(self, seconds: float, hand_over_by: str | None = None) -> None:
        """Stop, then have the driver finish, which may hand the Services over to other rules.

        hand_over_by: the iptables backend (auto, nft or legacy) whose rules replace this mode's; None leaves this
        mode's. A family that does not stop within `seconds` is left as it is. A failure is logged: there is no later
        try.
        """
        self.stale_rules.stop(0.0)
        until = time.monotonic() + seconds
        for proxier in self.proxiers.values():
            proxier.stop(0.0)
        stopped = {}
        for family, proxier in self.proxiers.items():
            if proxier.stop(max(0.0, until - time.monotonic())):
                stopped[family] = proxier
            else:
                _log.error("Rules are still being written after a long wait; shutting down anyway", family=family)
        if hand_over_by is not None and not (self.stale_rules.established and len(stopped) == len(self.proxiers)):
            _log.error("Not handed over to rules of iptables mode, as not all rules were written; those in place stay")
            hand_over_by = None
        if not self.stale_rules.established or not stopped:
            return  # nothing of ours is in place yet
        node = next(iter(stopped.values())).node
        plans = {family: proxier.programmed for family, proxier in stopped.items()}
        stage = self._shared.containment.stage("finish", "Services may be down until the next start")
        try:
            stage.attempt(lambda: self.driver.finish(plans, node), None)
        except KernelError as error:
            _log.error("Could not hand the Services over to iptables rules; they are down until the next start", error)
        if hand_over_by is not None:
            stage.attempt(lambda: self._hand_over(plans, node, hand_over_by), None)

    def _hand_over(self, plans: Mapping[Family, FamilyPlans], node: NodeInfo, backend: str) -> None:
        """Write the rules of iptables mode, then remove this mode's, which act before them or after them."""
        config, commands = self._equipment.config, self._shared.commands
        rules = rules_left(commands, excluded_networks(config)).get(config.mode)
        if rules is None:  # this mode has nothing but iptables rules
            return
        try:
            tools = find_tools(commands, ProxyMode.IPTABLES, backend)
            features = Features(nfacct=tools.has_nfacct, random_fully=tools.random_fully)
            equipment = replace(self._equipment, command=tools.command, features=features)
            for family in plans:
                hand_over(equipment, family, node, plans[family])
            until = time.monotonic() + LAST_CONNECTIONS
            while rules.busy() and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
            problems = rules.remove()
        except KproxyError as error:
            problems = [str(error)]
        for problem in problems:
            _log.error("Could not hand over to rules of iptables mode; what is in place stays and serves", err=problem)
        if not problems:
            _log.info("Handed over to rules of iptables mode, and removed this mode's", mode=config.mode.value)

    def close(self) -> None:
        """Release the kernel's sockets and the mode's processes; the rules stay."""
        self.stale_rules.stop(0.0)
        self._stack.close()

    def _proxier(self, family: Family) -> Proxier:
        config, shared = self._equipment.config, self._shared
        post_sync = FamilyPostSync(
            family,
            Reconciler(family, KernelConntrack()),
            self.driver.answering,
            lambda: self._equipment.config,
            shared.health_check_ports,
            self.stale_rules,
            shared.metrics,
            shared.clock,
            shared.containment,
        )
        return Proxier(
            self.driver.dataplane(family),
            partial(self.driver.configure, family),
            Schedule(config.min_sync_period.seconds, config.sync_period.seconds),
            shared.plans,
            post_sync,
            shared.observer,
            shared.clock,
            shared.containment,
        )


def find_iptables(commands: Commands, wanted: str) -> Command:
    """The iptables commands of backend WANTED: auto, nft or legacy. Raises InvalidConfig, KernelError."""
    if wanted == "auto":
        return detect(commands)
    found = available(commands).get(Backend(wanted))
    if found is None:
        raise InvalidConfig([f"iptables-backend: the commands of backend {wanted} are not installed"])
    return found
