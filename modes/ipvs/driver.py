"""The driver of IPVS mode, which loads IPVS and sets its sysctls."""

from __future__ import annotations

import platform
import re

from kproxy import logs
from kproxy.config.fields import KubeProxyConfiguration
from kproxy.errors import KernelError
from kproxy.kernel import sysctl
from kproxy.kernel.commands import Runner
from kproxy.kernel.ipset import KernelIpSets
from kproxy.kernel.ipvs import KernelIpvs
from kproxy.kernel.ipvs_codec import Timeouts
from kproxy.kernel.service_device import KernelAddresses
from kproxy.model.node_info import NodeInfo
from kproxy.model.plan_store import FamilyPlans
from kproxy.model.plans import Family
from kproxy.modes import settings
from kproxy.modes.base import Dataplane
from kproxy.modes.drivers import Driver, Equipment
from kproxy.modes.ipvs.apply import IpvsDataplane
from kproxy.modes.ipvs.fragments import Settings
from kproxy.modes.userspace.listeners import Statistics
from kproxy.modes.userspace.localhost_ports import LocalhostNodePorts

_log = logs.get("daemon")


class IpvsDriver(Driver):
    """The IPVS mode's Driver."""

    def __init__(self, equipment: Equipment) -> None:
        """Raises KernelError when this kernel has no IPVS, or not the scheduler that is asked for."""
        self._equipment = equipment
        self._dataplanes: dict[Family, IpvsDataplane] = {}
        self._localhost = LocalhostNodePorts(equipment)
        prepare_ipvs(equipment.commands, equipment.config)

    def dataplane(self, family: Family) -> Dataplane:
        stack = self._equipment.stack
        tables, drift = self._equipment.tables(family)
        self._dataplanes[family] = dataplane = IpvsDataplane(
            self._settings(family, NodeInfo()),
            stack.enter_context(KernelIpvs()),
            stack.enter_context(KernelIpSets()),
            stack.enter_context(KernelAddresses()),
            tables,
            drift,
        )
        return self._localhost.beside(dataplane)

    def forwarder_statistics(self) -> Statistics:
        return self._localhost.statistics()

    def configure(self, family: Family, node: NodeInfo, plans: FamilyPlans) -> None:
        self._dataplanes[family].configure(self._settings(family, node))
        self._localhost.configure(family, settings.serves_localhost(self._equipment.config, family))

    def _settings(self, family: Family, node: NodeInfo) -> Settings:
        return settings.ipvs_settings(self._equipment.config, family, node, self._equipment.features)


def prepare_ipvs(runner: Runner, config: KubeProxyConfiguration) -> None:
    """Load IPVS and its scheduler, set the sysctls and timeouts of IPVS mode.

    Raises KernelError when the kernel has no IPVS, not this scheduler, or no connection tracking of IPVS's connections;
    other sysctls that cannot be had are logged.
    """
    scheduler = config.ipvs.scheduler or settings.DEFAULT_SCHEDULER
    _load_modules(runner, "ip_vs", f"ip_vs_{scheduler}")
    with KernelIpvs() as ipvs:
        if not ipvs.has_scheduler(scheduler):
            raise KernelError(
                f"ipvs.scheduler: this kernel has no scheduler {scheduler}, nor a module ip_vs_{scheduler}"
            )
        times = (config.ipvs.tcp_timeout, config.ipvs.tcp_fin_timeout, config.ipvs.udp_timeout)
        if any(times):
            ipvs.set_timeouts(Timeouts(*(int(time.seconds) for time in times)))
    sysctls = sysctl.SystemSysctls()
    sysctl.ensure(sysctls, sysctl.IPVS_CONNTRACK, 1)
    major, minor = (int(number) for number in re.findall(r"\d+", platform.release())[:2])
    for problem in sysctl.ensure_all(sysctls, sysctl.ipvs_sysctls(config.ipvs.strict_arp, (major, minor))):
        _log.warning(
            f"A setting of IPVS mode could not be applied; its present value stays. {sysctl.AS_ROOT}", err=problem
        )


def _load_modules(runner: Runner, *names: str) -> None:
    """Load kernel modules, best effort: what is built in needs none, what is missing is noticed when it is used."""
    modprobe = runner.which("modprobe")
    if modprobe is None:
        return
    for name in names:
        if not (done := runner.run([modprobe, "--quiet", name])).ok:
            _log.v(2).info("Module not loaded", module=name, err=done.stderr.strip())
