"""What a node would program, without touching one: for `render`, for tests, for benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kproxy.config.fields import KubeProxyConfiguration
from kproxy.errors import InvalidObject
from kproxy.model.events import Listed
from kproxy.model.objects import Kind, Object
from kproxy.model.plan_store import PlanStore
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.modes.iptables.render import Settings, render_base, render_port, text
from kproxy.modes.ipvs import native
from kproxy.modes.nftables import render as nftables
from kproxy.modes.nftables.layout import Layout, lay_out
from kproxy.modes.nftables.text import table_text
from kproxy.modes.settings import Host, iptables_settings, ipvs_settings, nftables_settings, place, userspace_settings
from kproxy.modes.userspace import native as userspace


def load(node_name: str, objects: Mapping[Kind, Iterable[Object]]) -> tuple[ClusterState, list[InvalidObject]]:
    """The state that a cluster of just these objects leads to, and what is wrong with them."""
    state = ClusterState(node_name)
    # The Node comes first, as its zone decides about plans; a kind without objects is a list as well, an empty one.
    kinds = (Kind.NODE, Kind.SERVICE_CIDR, Kind.SERVICE, Kind.ENDPOINT_SLICE)
    return state, [p for kind in kinds for p in state.apply(Listed(kind, tuple(objects.get(kind, ()))))]


class Preview:
    """The plans of a state, and what each mode makes of them."""

    def __init__(self, state: ClusterState, config: KubeProxyConfiguration, host: Host) -> None:
        self._state, self._config, self._host = state, config, host
        self.book = PlanStore()
        dirty = state.take_dirty()._replace(all=True)
        self.book.update(state, dirty, place(state.node_name, state.node, host, config.external_ips))

    def settings(self, family: Family) -> Settings:
        """What iptables mode's rules of one family depend on besides the plans."""
        endpoints = self.book.pages[family].endpoints
        return iptables_settings(self._config, family, self._state.node, self._host, endpoints)

    def iptables(self, family: Family) -> str:
        """iptables-save text of one family."""
        settings = self.settings(family)
        plans = self.book.pages[family].plans
        return text(render_base(settings), ((key, render_port(plan, settings)) for key, plan in plans.items()))

    def ipvs(self, family: Family) -> native.Outcome:
        """What IPVS mode has of one family."""
        settings = ipvs_settings(self._config, family, self._state.node, self._host)
        return native.outcome(self.book.pages[family].plans.items(), settings)

    def nftables_layout(self, family: Family) -> Layout:
        """nftables mode's table of one family, as values."""
        cidrs = self._state.service_cidrs
        settings = nftables_settings(self._config, family, self._state.node, self._host, cidrs)
        plans = self.book.pages[family].plans
        fragments = ((key, nftables.render_port(plan, settings)) for key, plan in plans.items())
        return lay_out(nftables.render_base(settings), fragments)

    def nftables(self, family: Family) -> str:
        """nftables mode's table of one family, as text for `nft -f`."""
        return table_text(self.nftables_layout(family))

    def userspace(self, family: Family) -> userspace.Outcome:
        """What userspace mode has of one family, its proxy ports counted from the first that the configuration has."""
        settings = userspace_settings(self._config, family, self._state.node, self._host)
        first_port = self._config.proxy_ports[0] or userspace.FIRST_PORT
        return userspace.outcome(self.book.pages[family].plans.items(), settings, first_port)
