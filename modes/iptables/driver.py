"""iptables mode on this host."""

from __future__ import annotations

from collections.abc import Mapping

from kproxy import logs
from kproxy.errors import KernelError
from kproxy.kernel import sysctl
from kproxy.model.plan_store import FamilyPlans, PlanStore
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes import settings
from kproxy.modes.drivers import Driven, Equipment
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings

_log = logs.get("daemon")


class IptablesDriver:
    """The iptables mode's Driver."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment

    def drive(self, family: Family) -> Driven:
        """As Driver.drive."""
        tables, drift = self._equipment.tables(family)
        dataplane = IptablesDataplane(self._settings(family, FamilyPlans()), tables, drift)

        def configure(page: FamilyPlans) -> None:
            wanted = self._settings(family, page)
            if wanted.serves_localhost:
                serve_localhost()
            dataplane.configure(wanted)

        return Driven(dataplane, configure)

    def answering(self, family: Family, plans: Mapping[PortKey, ServicePlan]) -> Mapping[PortKey, ServicePlan]:
        """As Driver.answering: the endpoints themselves."""
        return plans

    def finish(self, book: PlanStore) -> None:
        """As Driver.finish: rules need no process."""

    def _settings(self, family: Family, page: FamilyPlans) -> Settings:
        around = self._equipment.surroundings
        return settings.iptables_settings(self._equipment.config, family, around.node, around.host, page.endpoints)


def serve_localhost() -> None:
    """Let packets to 127.0.0.1 be translated, which node ports on localhost need."""
    try:
        if sysctl.ensure(sysctl.SystemSysctls(), "net.ipv4.conf.all.route_localnet", 1):
            _log.info("Set net.ipv4.conf.all.route_localnet=1, so that node ports work on 127.0.0.1")
    except KernelError as error:
        _log.warning(f"Node ports will not work on 127.0.0.1. {sysctl.AS_ROOT}", err=str(error))
