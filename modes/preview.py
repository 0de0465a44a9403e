"""Computes what a node would program, without touching the kernel: for `render`, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy

from kproxy.config.fields import KubeProxyConfiguration
from kproxy.errors import InvalidObject
from kproxy.model.events import Listed
from kproxy.model.node_info import NodeInfo, merged
from kproxy.model.objects import Kind, Object
from kproxy.model.plan_store import FamilyPlans, PlanStore
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.modes.iptables.render import Settings, render_base, render_port, text
from kproxy.modes.ipvs import native
from kproxy.modes.nftables import render as nftables
from kproxy.modes.nftables.render import Layout, lay_out
from kproxy.modes.nftables.text import table_text
from kproxy.modes.settings import (
    USUAL,
    Features,
    iptables_settings,
    ipvs_settings,
    nftables_settings,
    userspace_settings,
)
from kproxy.modes.userspace import native as userspace


def load(node_name: str, objects: Mapping[Kind, Iterable[Object]]) -> tuple[ClusterState, list[InvalidObject]]:
    """The state of a cluster of just these objects, and what is wrong with them."""
    state = ClusterState(node_name)
    # The Node comes first, as its zone decides about plans; a kind without objects is a list as well, an empty one.
    kinds = (Kind.NODE, Kind.SERVICE_CIDR, Kind.SERVICE, Kind.ENDPOINT_SLICE)
    return state, [p for kind in kinds for p in state.apply(Listed(kind, tuple(objects.get(kind, ()))))]


class Preview:
    """The plans of a state for one node, and what each mode makes of them.

    host: the node's own IPs and addresses; the rest is taken from the state.
    """

    def __init__(
        self, state: ClusterState, config: KubeProxyConfiguration, host: NodeInfo, features: Features = USUAL
    ) -> None:
        self._config, self._features = config, features
        self.node = merged(state.node_name, state.node, host, state.service_cidrs)
        dirty = state.take_dirty()._replace(all=True)
        changes = PlanStore().update(state, dirty, self.node, config.external_ips)
        self.families = {family: FamilyPlans() for family in Family}
        for family, plans in self.families.items():
            plans.update(changes[family])

    def of(self, config: KubeProxyConfiguration) -> Preview:
        """The same cluster and node with another configuration."""
        other = copy(self)
        other._config = config
        return other

    def settings(self, family: Family) -> Settings:
        """What iptables mode's rules of one family depend on besides the plans."""
        return iptables_settings(self._config, family, self.node, self.families[family].endpoints, self._features)

    def iptables(self, family: Family) -> str:
        """iptables-save text of one family."""
        settings = self.settings(family)
        plans = self.families[family].plans
        return text(render_base(settings), ((key, render_port(plan, settings)) for key, plan in plans.items()))

    def ipvs(self, family: Family) -> native.Outcome:
        """IPVS mode's state of one family."""
        settings = ipvs_settings(self._config, family, self.node, self._features)
        return native.outcome(self.families[family].plans.items(), settings)

    def nftables_layout(self, family: Family) -> Layout:
        """nftables mode's table of one family, as values."""
        settings = nftables_settings(self._config, family, self.node, self._features)
        plans = self.families[family].plans
        fragments = ((key, nftables.render_port(plan, settings)) for key, plan in plans.items())
        return lay_out(nftables.render_base(settings), fragments)

    def nftables(self, family: Family) -> str:
        """nftables mode's table of one family, as text for `nft -f`."""
        return table_text(self.nftables_layout(family))

    def userspace(self, family: Family) -> userspace.Outcome:
        """userspace mode's state of one family, its proxy ports counted from the first that the configuration has."""
        settings = userspace_settings(self._config, family, self.node)
        first_port = self._config.proxy_ports[0] or userspace.FIRST_PORT
        return userspace.outcome(self.families[family].plans.items(), settings, first_port)
