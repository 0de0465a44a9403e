"""The driver of nftables mode."""

from __future__ import annotations

import platform

from kproxy.errors import KernelError
from kproxy.model.node_info import NodeInfo
from kproxy.model.plan_store import FamilyPlans
from kproxy.model.plans import Family
from kproxy.modes import settings
from kproxy.modes.base import Dataplane
from kproxy.modes.drivers import Driver, Equipment
from kproxy.modes.nftables.apply import NftablesDataplane
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.names import TABLE
from kproxy.netfilter.kernel import KernelNftables
from kproxy.netfilter.support import missing
from kproxy.netfilter.table import Table


class NftablesDriver(Driver):
    """The nftables mode's Driver."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment
        self._dataplanes: dict[Family, NftablesDataplane] = {}

    def dataplane(self, family: Family) -> Dataplane:
        stack, commits = self._equipment.stack, self._equipment.commits
        kernel = stack.enter_context(KernelNftables())
        if lacking := missing(kernel, family, platform.release()):
            raise KernelError(f"nftables mode does not work here: {'; '.join(lacking)}")
        table = Table(family, TABLE, kernel, commits)
        stack.callback(table.close)
        dataplane = NftablesDataplane(self._settings(family, NodeInfo()), table)

        self._dataplanes[family] = dataplane
        return dataplane

    def configure(self, family: Family, node: NodeInfo, plans: FamilyPlans) -> None:
        self._dataplanes[family].configure(self._settings(family, node))

    def _settings(self, family: Family, node: NodeInfo) -> Settings:
        return settings.nftables_settings(self._equipment.config, family, node, self._equipment.features)
