"""The driver of userspace mode: a forwarder in processes of its own, and rules that redirect to it.

When the daemon ends its forwarder ends with it, so the Services are handed over to iptables mode's rules first: they
serve until the next start, in whatever mode. Connections that are under way get a while to end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from kproxy import logs
from kproxy.conntrack.reconciler import Reconciler
from kproxy.conntrack.table import KernelConntrack
from kproxy.errors import KernelError
from kproxy.model.node_info import NodeInfo, family_of
from kproxy.model.plan_store import FamilyPlans
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes import settings
from kproxy.modes.base import Dataplane
from kproxy.modes.drivers import Driver, Equipment
from kproxy.modes.iptables.driver import hand_over
from kproxy.modes.userspace.apply import UserspaceDataplane
from kproxy.modes.userspace.forwarder import ForwarderProcess
from kproxy.modes.userspace.listeners import Statistics
from kproxy.modes.userspace.messages import Settings as ForwarderSettings
from kproxy.modes.userspace.render import Settings

_log = logs.get("userspace")

LAST_CONNECTIONS = 10.0
"""Seconds at most that connections get to end when the daemon ends; a pod is killed 30 s after it was asked to end."""
LAST_ANSWERS = 0.5
"""Seconds that UDP datagrams under way get to be answered, before their flows are led past the forwarder."""
POLL = 0.05


class UserspaceDriver(Driver):
    """The userspace mode's Driver."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment
        config = equipment.config
        self._forwarder = ForwarderProcess(
            ForwarderSettings(
                port_range=config.proxy_ports,
                udp_idle_seconds=config.userspace.udp_idle_timeout.seconds,
                drain_seconds=config.userspace.drain_timeout.seconds,
                translated_only=True,
                log_format=config.logging.format.value,
                verbosity=config.logging.verbosity,
            )
        )
        equipment.stack.callback(self._forwarder.close)
        self._dataplanes: dict[Family, UserspaceDataplane] = {}

    def dataplane(self, family: Family) -> Dataplane:
        tables, drift = self._equipment.tables(family)
        dataplane = UserspaceDataplane(self._settings(family, NodeInfo()), tables, self._forwarder, drift)
        self._dataplanes[family] = dataplane
        return dataplane

    def forwarder_statistics(self) -> Statistics:
        return self._forwarder.statistics()

    def configure(self, family: Family, node: NodeInfo, plans: FamilyPlans) -> None:
        self._dataplanes[family].configure(self._settings(family, node))

    def answering(
        self, family: Family, plans: Mapping[PortKey, ServicePlan], node: NodeInfo
    ) -> Mapping[PortKey, ServicePlan]:
        # This node answers, at the port's proxy ports, by any of its addresses, also by those that take no node ports:
        # traffic is redirected to where it came in.
        own_ips = [ip for ip in node.addresses if family_of(ip) is family]
        return self._dataplanes[family].carriers(plans, own_ips)

    def finish(self, plans: Mapping[Family, FamilyPlans], node: NodeInfo) -> None:
        for family in plans:
            hand_over(self._equipment, family, node, plans[family])
        _log.info("Handed over to rules of iptables mode, which serve until the next start")
        time.sleep(LAST_ANSWERS)
        for family in plans:
            self._redirect_flows(family, plans[family], node)
        self._await_last_connections()

    def _redirect_flows(self, family: Family, plans: FamilyPlans, node: NodeInfo) -> None:
        """Delete UDP flows that connection tracking sends to a proxy port, which is closed soon."""
        own_ips = settings.node_port_ips(self._equipment.config, family, node)
        Reconciler(family, KernelConntrack()).reconcile(plans.plans, None, own_ips)

    def _await_last_connections(self) -> None:
        until = time.monotonic() + min(LAST_CONNECTIONS, self._equipment.config.userspace.drain_timeout.seconds)
        try:
            while self._forwarder.statistics().connections and time.monotonic() < until:
                time.sleep(POLL)
        except KernelError as error:
            _log.v(2).info("The forwarder has ended already", err=str(error))

    def _settings(self, family: Family, node: NodeInfo) -> Settings:
        return settings.userspace_settings(self._equipment.config, family, node)
