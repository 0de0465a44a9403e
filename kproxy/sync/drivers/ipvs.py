"""IPVS mode on this host."""

from __future__ import annotations

from collections.abc import Mapping

from kproxy.kernel.dummies import KernelAddresses
from kproxy.kernel.ipset import KernelIpSets
from kproxy.kernel.ipvs import KernelIpvs
from kproxy.model.book import Book, Page
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.ipvs.apply import IpvsProgrammer
from kproxy.modes.ipvs.settings import Settings
from kproxy.sync import hosting, settings
from kproxy.sync.drivers.base import Driven, Equipment

__all__ = ["IpvsDriver"]


class IpvsDriver:
    """The IPVS mode's Driver."""

    def __init__(self, equipment: Equipment) -> None:
        """Raises KernelError when this kernel has no IPVS, or not the scheduler that is asked for."""
        self._equipment = equipment
        hosting.prepare_ipvs(equipment.commands, equipment.config)

    def drive(self, family: Family) -> Driven:
        """As Driver.drive."""
        stack = self._equipment.stack
        tables, drift = self._equipment.tables(family)
        programmer = IpvsProgrammer(
            self._settings(family),
            stack.enter_context(KernelIpvs()),
            stack.enter_context(KernelIpSets()),
            stack.enter_context(KernelAddresses()),
            tables,
            drift,
        )

        def configure(page: Page) -> None:
            programmer.configure(self._settings(family))

        return Driven(programmer, configure)

    def answering(self, family: Family, plans: Mapping[PortKey, ServicePlan]) -> Mapping[PortKey, ServicePlan]:
        """As Driver.answering: IPVS tells connection tracking of the endpoint that it chose."""
        return plans

    def finish(self, book: Book) -> None:
        """As Driver.finish: the kernel forwards by itself."""

    def _settings(self, family: Family) -> Settings:
        around = self._equipment.surroundings
        return settings.ipvs_settings(self._equipment.config, family, around.node, around.host)
