"""The driver of nftables mode."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from kproxy.errors import KernelError
from kproxy.model.node_info import NodeInfo
from kproxy.model.plan_store import FamilyPlans
from kproxy.model.plans import Family
from kproxy.modes import settings
from kproxy.modes.base import Dataplane
from kproxy.modes.drivers import Driver, Equipment
from kproxy.modes.nftables.apply import NftablesDataplane
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.names import LOCALHOST_REFUSE, TABLE
from kproxy.modes.nftables.render import COUNTED
from kproxy.modes.userspace.listeners import Statistics
from kproxy.modes.userspace.localhost_ports import LocalhostNodePorts
from kproxy.netfilter.kernel import KernelNftables
from kproxy.netfilter.support import missing
from kproxy.netfilter.table import Table


class NftablesDriver(Driver):
    """The nftables mode's Driver."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment
        self._dataplanes: dict[Family, NftablesDataplane] = {}
        self._localhost = LocalhostNodePorts(equipment)

    def dataplane(self, family: Family) -> Dataplane:
        stack, commits = self._equipment.stack, self._equipment.commits
        kernel = stack.enter_context(KernelNftables())
        if lacking := missing(kernel, family, platform.release()):
            raise KernelError(f"nftables mode does not work here: {'; '.join(lacking)}")
        table = Table(family, TABLE, kernel, commits)
        stack.callback(table.close)
        self._dataplanes[family] = dataplane = NftablesDataplane(self._settings(family, NodeInfo()), table)
        return self._localhost.beside(dataplane)

    def forwarder_statistics(self) -> Statistics:
        return self._localhost.statistics()

    def localhost_rejected(self) -> Mapping[tuple[str, str], int]:
        with KernelNftables() as kernel:
            return {
                (family.value, protocol.upper()): packets
                for family in self._dataplanes
                for protocol, packets in zip(COUNTED, kernel.counts(family, TABLE, LOCALHOST_REFUSE), strict=False)
            }

    def configure(self, family: Family, node: NodeInfo, plans: FamilyPlans) -> None:
        found = self._settings(family, node)
        self._dataplanes[family].configure(found)
        self._localhost.configure(family, serves=bool(found.localhost_networks))

    def _settings(self, family: Family, node: NodeInfo) -> Settings:
        return settings.nftables_settings(self._equipment.config, family, node, self._equipment.features)
