"""userspace mode on this host: a forwarder in processes of its own, and rules that lead to it.

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
from kproxy.model.node_info import family_of
from kproxy.model.plan_store import FamilyPlans, PlanStore
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes import settings
from kproxy.modes.drivers import Driven, Equipment
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.driver import serve_localhost
from kproxy.modes.userspace.apply import UserspaceDataplane
from kproxy.modes.userspace.forwarder import ForwarderProcess
from kproxy.modes.userspace.messages import Settings as ForwarderSettings
from kproxy.modes.userspace.render import Settings

_log = logs.get("userspace")

LAST_CONNECTIONS = 10.0
"""Seconds at most that connections get to end when the daemon ends; a pod is killed 30 s after it was asked to end."""
LAST_ANSWERS = 0.5
"""Seconds that UDP datagrams under way get to be answered, before their flows are led past the forwarder."""
POLL = 0.05


class UserspaceDriver:
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
        equipment.metrics.read_forwarder_with(self._forwarder.statistics)
        self._dataplanes: dict[Family, UserspaceDataplane] = {}

    def drive(self, family: Family) -> Driven:
        """As Driver.drive."""
        tables, drift = self._equipment.tables(family)
        dataplane = UserspaceDataplane(self._settings(family), tables, self._forwarder, drift)
        self._dataplanes[family] = dataplane

        def configure(page: FamilyPlans) -> None:
            dataplane.configure(self._settings(family))

        return Driven(dataplane, configure)

    def answering(self, family: Family, plans: Mapping[PortKey, ServicePlan]) -> Mapping[PortKey, ServicePlan]:
        """As Driver.answering: this node, at the port's proxy ports."""
        # Any of its addresses, also those that take no node ports: traffic is redirected to where it came in.
        own_ips = [ip for ip in self._equipment.surroundings.host.addresses if family_of(ip) is family]
        return self._dataplanes[family].carriers(plans, own_ips)

    def finish(self, book: PlanStore) -> None:
        """As Driver.finish."""
        for family in self._dataplanes:
            self._hand_over(family, book.pages[family])
        _log.info("Handed over to rules of iptables mode, which serve until the next start")
        time.sleep(LAST_ANSWERS)
        for family in self._dataplanes:
            self._redirect_flows(family, book.pages[family])
        self._await_last_connections()

    def _hand_over(self, family: Family, page: FamilyPlans) -> None:
        around, config = self._equipment.surroundings, self._equipment.config
        wanted = settings.iptables_settings(config, family, around.node, around.host, page.endpoints)
        if wanted.serves_localhost:
            serve_localhost()
        tables, _ = self._equipment.tables(family)
        IptablesDataplane(wanted, tables).apply(page.plans, None)

    def _redirect_flows(self, family: Family, page: FamilyPlans) -> None:
        """UDP flows that connection tracking leads to a proxy port would meet a closed one soon."""
        own_ips = self._equipment.surroundings.node_port_ips(family)
        Reconciler(family, KernelConntrack()).reconcile(page.plans, None, own_ips)

    def _await_last_connections(self) -> None:
        until = time.monotonic() + min(LAST_CONNECTIONS, self._equipment.config.userspace.drain_timeout.seconds)
        try:
            while self._forwarder.statistics().connections and time.monotonic() < until:
                time.sleep(POLL)
        except KernelError as error:
            _log.v(2).info("The forwarder has ended already", err=str(error))

    def _settings(self, family: Family) -> Settings:
        around = self._equipment.surroundings
        return settings.userspace_settings(self._equipment.config, family, around.node, around.host)
