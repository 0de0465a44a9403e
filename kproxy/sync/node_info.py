"""The node and host that rules are for: their addresses, zone and pod CIDRs, as they are now."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from kproxy import logs
from kproxy.clocks import Clock
from kproxy.config.fields import KubeProxyConfiguration
from kproxy.errors import KernelError
from kproxy.model.node_info import NodeView, family_of
from kproxy.model.objects import Kind
from kproxy.model.planner import Place
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.modes import settings

_log = logs.get("node")

NODE_PATIENCE = 30.0
"""Seconds to wait for the Node's list: without it kproxy works, but knows no zone and may not know the node's IP.

After as many a wait for the Node's pod CIDR, which does not end by itself, is warned of.
"""


class HostAddresses(Protocol):
    """The host's own addresses."""

    def addresses(self) -> tuple[str, ...]:
        """All of them, without prefix lengths. Raises KernelError."""

    def node_ips(self) -> tuple[str, ...]:
        """Those that other nodes reach it by, at most one a family. Raises KernelError."""

    def changed(self) -> bool:
        """Whether an address came or went since the last call."""


class NodeSurroundings:
    """Keeps a Host up to date, from which settings are made. The loop's Surroundings.

    nfacct, random_fully: what the kernel and its tools can do.
    """

    def __init__(
        self,
        config: KubeProxyConfiguration,
        addresses: HostAddresses,
        clock: Clock,
        nfacct: bool = False,
        random_fully: bool = True,
    ) -> None:
        self._config = config
        self._addresses = addresses
        self._clock = clock
        self._host = settings.Host(nfacct=nfacct, random_fully=random_fully)
        self._node: NodeView | None = None
        self._service_cidrs: tuple[str, ...] = ()
        self._stale = True
        self._news = True
        self._asked_at: float | None = None
        self._cidr_since: float | None = None
        self._warned = self._failing = False
        self._told: tuple[str, ...] | None = None

    def adapt(self, config: KubeProxyConfiguration, nfacct: bool, random_fully: bool) -> None:
        """Go by another configuration, or by what other tools can do, from now on."""
        self._config = config
        self._host = replace(self._host, nfacct=nfacct, random_fully=random_fully)
        self._stale = self._news = True

    @property
    def host(self) -> settings.Host:
        return self._host

    @property
    def node(self) -> NodeView | None:
        """The Node object that the host was last seen with."""
        return self._node

    @property
    def service_cidrs(self) -> tuple[str, ...]:
        """The cluster's ranges of cluster IPs, of both families, as far as it says them."""
        return self._service_cidrs

    def place(self, state: ClusterState) -> Place | None:
        """As Surroundings.place. Waits for the Node's first list, and in mode NodeCIDR for its pod CIDR."""
        if not self._complete(state):
            return None
        if state.service_cidrs != self._service_cidrs:
            self._service_cidrs, self._news = state.service_cidrs, True
        try:
            node = self._remembering(state.node)
            self._stale |= self._addresses.changed() or node != self._node
            if self._stale:
                self._follow(node)
                self._refresh()
        except KernelError as error:  # what was known holds until it can be asked again
            if not self._failing:
                _log.error("This host's addresses cannot be read; those known before hold until they can", error)
            self._failing = True
            if not self._host.addresses:
                return None
        return settings.place(state.node_name, state.node, self._host, self._config.external_ips)

    def changed(self) -> bool:
        """As Surroundings.changed."""
        news, self._news = self._news, False
        return news

    def node_port_ips(self, family: Family) -> tuple[str, ...]:
        """The host's addresses in one family that take node ports."""
        found = settings.addresses_for_node_ports(self._config, family, self._host)
        if found.match_all:
            return tuple(ip for ip in self._host.addresses if family_of(ip) is family)
        return found.ips

    def health_check_ips(self) -> tuple[str, ...] | None:
        """Where health check node ports listen; None for everywhere."""
        ips: list[str] = []
        for family in Family:
            found = settings.addresses_for_node_ports(self._config, family, self._host)
            if found.match_all:
                return None
            ips += found.ips
        return tuple(ips)

    def _complete(self, state: ClusterState) -> bool:
        now = self._clock.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        if settings.waits_for_pod_cidr(self._config, self._remembering(state.node)):
            self._tell_of_waiting(state, now)
            return False
        self._cidr_since = None
        if state.listed(Kind.NODE):
            return True
        if now - self._asked_at <= NODE_PATIENCE:
            return False
        if not self._warned:
            _log.warning(
                f"The Node cannot be had; going on without its zone and IPs until it comes. {_look(state)}",
                node=state.node_name,
            )
            self._warned = True
        return True

    def _tell_of_waiting(self, state: ClusterState, now: float) -> None:
        """Of the wait for the pod CIDR, when it begins and once when it takes long."""
        if self._cidr_since is None:
            _log.info("Waiting for the Node's pod CIDR, which detectLocalMode NodeCIDR needs", node=state.node_name)
            self._cidr_since, self._warned = now, False
        elif now - self._cidr_since > NODE_PATIENCE and not self._warned:
            _log.warning(
                "Still waiting for the Node's pod CIDR, which detectLocalMode NodeCIDR needs; nothing is written "
                f"before it comes. {_look(state)}",
                node=state.node_name,
            )
            self._warned = True

    def _remembering(self, node: NodeView | None) -> NodeView | None:
        """NODE with the pod CIDRs that it had before, should it have none: one that is deleted and made anew keeps its
        pods meanwhile."""
        before = self._node
        if before is None or not before.pod_cidrs or (node is not None and node.pod_cidrs):
            return node
        return replace(node or before, pod_cidrs=before.pod_cidrs)

    def _follow(self, node: NodeView | None) -> None:
        before, self._node = self._node, node
        if before is not None and node is not None and before.pod_cidrs != node.pod_cidrs:
            self._news = True
            _log.info("The Node's pod CIDRs changed", before=before.pod_cidrs, now=node.pod_cidrs)

    def _refresh(self) -> None:
        node_ips = settings.node_ips(self._config, self._node, self._addresses.node_ips())
        host = replace(self._host, node_ips=node_ips, addresses=self._addresses.addresses())
        self._stale = self._failing = False
        if host != self._host:
            self._host, self._news = host, True
            _log.v(2).info("Node addresses", node_ips=node_ips, addresses=len(host.addresses))
        if node_ips != self._told:
            self._tell_node_ips(self._told, node_ips)
            self._told = node_ips

    def _tell_node_ips(self, before: tuple[str, ...] | None, now: tuple[str, ...]) -> None:
        if not now:
            _log.warning("Can't determine this node's IP; if that matters, set --bind-address or the Node's addresses")
        elif before:
            _log.info("This node's IPs changed", before=before, now=now)
        elif self._node is None or not self._node.ips:
            _log.info("The Node object tells no IP; going by this host's own", node_ips=now)


def _look(state: ClusterState) -> str:
    """Where the operator finds out why the Node does not say what it should."""
    if not state.listed(Kind.NODE):
        return "No list of Nodes came: is there a line that they cannot be followed, and may this account list them?"
    if state.node is None:
        return 'There is no Node of this name: compare "kubectl get nodes" with --hostname-override'
    return (
        f'"kubectl get node {state.node_name} -o yaml" shows no spec.podCIDRs: kube-controller-manager sets it with '
        "--allocate-node-cidrs; where the network plugin hands out addresses, use another detectLocalMode"
    )
