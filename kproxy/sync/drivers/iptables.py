"""iptables mode on this host."""

from __future__ import annotations

from collections.abc import Mapping

from kproxy.model.book import Book, Page
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.iptables.apply import IptablesProgrammer
from kproxy.modes.iptables.render import Settings
from kproxy.sync import hosting, settings
from kproxy.sync.drivers.base import Driven, Equipment

__all__ = ["IptablesDriver"]


class IptablesDriver:
    """The iptables mode's Driver."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment

    def drive(self, family: Family) -> Driven:
        """As Driver.drive."""
        tables, drift = self._equipment.tables(family)
        programmer = IptablesProgrammer(self._settings(family, Page()), tables, drift)

        def configure(page: Page) -> None:
            wanted = self._settings(family, page)
            if wanted.serves_localhost:
                hosting.serve_localhost()
            programmer.configure(wanted)

        return Driven(programmer, configure)

    def answering(self, family: Family, plans: Mapping[PortKey, ServicePlan]) -> Mapping[PortKey, ServicePlan]:
        """As Driver.answering: the endpoints themselves."""
        return plans

    def finish(self, book: Book) -> None:
        """As Driver.finish: rules need no process."""

    def _settings(self, family: Family, page: Page) -> Settings:
        around = self._equipment.surroundings
        return settings.iptables_settings(self._equipment.config, family, around.node, around.host, page.endpoints)
