"""nftables mode on this host."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from kproxy.errors import KernelError
from kproxy.model.plan_store import FamilyPlans, PlanStore
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes import settings
from kproxy.modes.drivers import Driven, Equipment
from kproxy.modes.nftables.apply import NftablesDataplane
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.names import TABLE
from kproxy.netfilter.changes import TableDrift, WatchedNftables
from kproxy.netfilter.support import missing
from kproxy.netfilter.table import KernelNftables


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
        dataplane = NftablesDataplane(self._settings(family), WatchedNftables(kernel, drift, commits), drift)

        def configure(page: FamilyPlans) -> None:
            dataplane.configure(self._settings(family))

        return Driven(dataplane, configure)

    def answering(self, family: Family, plans: Mapping[PortKey, ServicePlan]) -> Mapping[PortKey, ServicePlan]:
        """As Driver.answering: the endpoints themselves."""
        return plans

    def finish(self, book: PlanStore) -> None:
        """As Driver.finish: the kernel forwards by itself."""

    def _settings(self, family: Family) -> Settings:
        around = self._equipment.surroundings
        config, cidrs = self._equipment.config, around.service_cidrs
        return settings.nftables_settings(config, family, around.node, around.host, cidrs)
