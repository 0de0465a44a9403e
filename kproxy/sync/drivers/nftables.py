"""nftables mode on this host."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from kproxy.errors import KernelError
from kproxy.kernel.drift import TableDrift, WatchedNftables
from kproxy.kernel.nftables import KernelNftables
from kproxy.kernel.nftables_support import missing
from kproxy.model.book import Book, Page
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.nftables.apply import NftablesProgrammer
from kproxy.modes.nftables.names import TABLE
from kproxy.modes.nftables.settings import Settings
from kproxy.sync import settings
from kproxy.sync.drivers.base import Driven, Equipment

__all__ = ["NftablesDriver"]


class NftablesDriver:
    """The nftables mode's Driver."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment

    def drive(self, family: Family) -> Driven:
        """As Driver.drive. Raises KernelError when this kernel lacks what the mode needs."""
        stack, commits = self._equipment.stack, self._equipment.commits
        kernel = stack.enter_context(KernelNftables())
        if lacking := missing(kernel, family, platform.release()):
            raise KernelError(f"nftables mode does not work here: {'; '.join(lacking)}")
        drift = TableDrift(family, TABLE, kernel.portid, commits)
        stack.callback(drift.close)
        programmer = NftablesProgrammer(self._settings(family), WatchedNftables(kernel, drift, commits), drift)

        def configure(page: Page) -> None:
            programmer.configure(self._settings(family))

        return Driven(programmer, configure)

    def answering(self, family: Family, plans: Mapping[PortKey, ServicePlan]) -> Mapping[PortKey, ServicePlan]:
        """As Driver.answering: the endpoints themselves."""
        return plans

    def finish(self, book: Book) -> None:
        """As Driver.finish: the kernel forwards by itself."""

    def _settings(self, family: Family) -> Settings:
        around = self._equipment.surroundings
        config, cidrs = self._equipment.config, around.service_cidrs
        return settings.nftables_settings(config, family, around.node, around.host, cidrs)
