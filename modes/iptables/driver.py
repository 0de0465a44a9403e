"""The driver of iptables mode."""

from __future__ import annotations

from kproxy import logs
from kproxy.errors import KernelError
from kproxy.kernel import sysctl
from kproxy.model.node_info import NodeInfo
from kproxy.model.plan_store import FamilyPlans
from kproxy.model.plans import Family
from kproxy.modes.base import Dataplane
from kproxy.modes.drivers import Driver, Equipment
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings
from kproxy.modes.settings import iptables_settings, serves_localhost
from kproxy.modes.userspace.listeners import Statistics
from kproxy.modes.userspace.localhost_ports import LocalhostNodePorts

_log = logs.get("daemon")


class IptablesDriver(Driver):
    """The iptables mode's Driver."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment
        self._dataplanes: dict[Family, IptablesDataplane] = {}
        self._localhost = LocalhostNodePorts(equipment)

    def dataplane(self, family: Family) -> Dataplane:
        tables, drift = self._equipment.tables(family)
        settings = self._settings(family, NodeInfo(), FamilyPlans())
        self._dataplanes[family] = dataplane = IptablesDataplane(settings, tables, drift)
        return self._localhost.beside(dataplane)

    def forwarder_statistics(self) -> Statistics:
        return self._localhost.statistics()

    def configure(self, family: Family, node: NodeInfo, plans: FamilyPlans) -> None:
        settings = self._settings(family, node, plans)
        if settings.serves_localhost:
            serve_localhost()
        self._dataplanes[family].configure(settings)
        config = self._equipment.config
        # IPv4's rules translate on loopback themselves, by route_localnet.
        by_process = family is Family.IPV6 and config.iptables.localhost_node_ports
        self._localhost.configure(family, by_process and serves_localhost(config, family))

    def _settings(self, family: Family, node: NodeInfo, plans: FamilyPlans) -> Settings:
        config, features = self._equipment.config, self._equipment.features
        return iptables_settings(config, family, node, plans.endpoints, features)


def hand_over(equipment: Equipment, family: Family, node: NodeInfo, plans: FamilyPlans) -> None:
    """Write the rules of iptables mode in place of a mode that ends; they serve until the next proxy starts.

    Raises KernelError.
    """
    wanted = iptables_settings(equipment.config, family, node, plans.endpoints, equipment.features)
    if wanted.serves_localhost:
        serve_localhost()
    tables, _ = equipment.tables(family)
    IptablesDataplane(wanted, tables).apply(plans.plans, None)


def serve_localhost() -> None:
    """Set the sysctl route_localnet, which node ports on 127.0.0.1 need."""
    try:
        if sysctl.ensure(sysctl.SystemSysctls(), sysctl.ROUTE_LOCALNET, 1):
            _log.info("Set net.ipv4.conf.all.route_localnet=1, so that node ports work on 127.0.0.1")
    except KernelError as error:
        _log.warning(f"Node ports will not work on 127.0.0.1. {sysctl.AS_ROOT}", err=str(error))
