"""Follows what this node is: its Node object, the host's own addresses, the pod CIDRs."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from kproxy import logs
from kproxy.clocks import Clock
from kproxy.config.fields import KubeProxyConfiguration
from kproxy.errors import KernelError
from kproxy.kernel.interfaces import AddressMonitor, node_ip, own_addresses
from kproxy.model.node_info import NodeInfo, merged
from kproxy.model.objects import Kind
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.modes import settings

_log = logs.get("node")

NODE_PATIENCE = 30.0
"""Seconds to wait for the Node's list: without it kproxy works, but knows no zone and may not know the node's IP.

After as long a wait for the Node's pod CIDR, which does not end by itself, there is a warning.
"""


class HostAddresses(Protocol):
    """The host's own addresses."""

    def addresses(self) -> tuple[str, ...]:
        """All addresses, without prefix lengths. Raises KernelError."""

    def node_ips(self) -> tuple[str, ...]:
        """The addresses by which other nodes reach it, at most one per family. Raises KernelError."""

    def changed(self) -> bool:
        """Whether an address came or went since the last call. Raises KernelError."""


class LiveAddresses:
    """The addresses of the host that this process runs on, with a notification of their changes."""

    def __init__(self) -> None:
        self._monitor = AddressMonitor()

    def addresses(self) -> tuple[str, ...]:
        return tuple(sorted(own_addresses()))

    def node_ips(self) -> tuple[str, ...]:
        return tuple(ip for family in Family if (ip := node_ip(family)))

    def changed(self) -> bool:
        return self._monitor.changed()

    def close(self) -> None:
        """Stop listening."""
        self._monitor.close()


class NodeWatcher:
    """Keeps a NodeInfo up to date. For one thread."""

    def __init__(self, config: KubeProxyConfiguration, host: HostAddresses, clock: Clock) -> None:
        self._config, self._host, self._clock = config, host, clock
        self._node: NodeInfo | None = None  # as its object shows it
        self._made_anew = False  # without a zone so far
        self._shown: NodeInfo | None = None  # as the host shows it: ips, addresses
        self._stale = True
        self._asked_at: float | None = None
        self._cidr_since: float | None = None
        self._warned = self._failing = False
        self._reported_ips: tuple[str, ...] | None = None

    def reconfigure(self, config: KubeProxyConfiguration) -> None:
        """Use another configuration from now on."""
        self._config, self._stale = config, True

    def external_ips(self) -> bool:
        """Whether external IPs of Services are served."""
        return self._config.external_ips

    def current(self, state: ClusterState) -> NodeInfo | None:
        """The node as it is now; None while too little is known of it to program anything.

        Waits for the Node's first list, and in detectLocalMode NodeCIDR for its pod CIDR.
        """
        node = self._remembering(state.node)
        if not self._complete(state, node):
            return None
        if node != self._node:
            self._follow(node)
            self._stale = True
        try:
            self._stale |= self._host.changed()
            if self._stale:
                self._refresh()
        except KernelError as error:  # what was known of the host holds until it can be read again
            if not self._failing:
                _log.error("Cannot read this host's addresses; using the last known ones until it works", error)
            self._failing = self._stale = True
        if self._shown is None:
            return None
        return merged(state.node_name, self._node, self._shown, state.service_cidrs)

    def _complete(self, state: ClusterState, node: NodeInfo | None) -> bool:
        now = self._clock.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        if settings.waits_for_pod_cidr(self._config, node):
            self._report_waiting(state, now)
            return False
        self._cidr_since = None
        if state.listed(Kind.NODE):
            return True
        if now - self._asked_at <= NODE_PATIENCE:
            return False
        if not self._warned:
            _log.warning(
                f"The Node object is not available; going on without its zone and IPs until it is. {_advice(state)}",
                node=state.node_name,
            )
            self._warned = True
        return True

    def _report_waiting(self, state: ClusterState, now: float) -> None:
        """Log the wait for the pod CIDR when it begins, and once more when it takes long."""
        if self._cidr_since is None:
            _log.info("Waiting for the Node's pod CIDR, which detectLocalMode NodeCIDR needs", node=state.node_name)
            self._cidr_since, self._warned = now, False
        elif now - self._cidr_since > NODE_PATIENCE and not self._warned:
            _log.warning(
                "Still waiting for the Node's pod CIDR, which detectLocalMode NodeCIDR needs; nothing is written "
                f"before it is known. {_advice(state)}",
                node=state.node_name,
            )
            self._warned = True

    def _remembering(self, node: NodeInfo | None) -> NodeInfo | None:
        """`node`, with what was known before where it is gone or incomplete.

        A Node that is deleted and made anew gets its addresses, pod CIDRs and zone back one after the other, from
        several controllers, and its pods run on meanwhile. kube-proxy ends at the deletion, and waits at its start for
        the addresses and pod CIDRs. A label that is removed from a Node that stays is another matter: its zone is gone.
        """
        before = self._node
        if before is None:
            return node
        if node is None:
            self._made_anew = True
            return before
        self._made_anew = not node.zone and (self._made_anew or node.uid != before.uid)
        return replace(
            node,
            zone=before.zone if self._made_anew else node.zone,
            ips=node.ips or before.ips,
            pod_cidrs=node.pod_cidrs or before.pod_cidrs,
        )

    def _follow(self, node: NodeInfo | None) -> None:
        before, self._node = self._node, node
        if before is not None and node is not None and before.pod_cidrs != node.pod_cidrs:
            _log.info("The Node's pod CIDRs changed", before=before.pod_cidrs, now=node.pod_cidrs)

    def _refresh(self) -> None:
        ips = settings.node_ips(self._config, self._node, self._host.node_ips())
        shown = NodeInfo(ips=ips, addresses=self._host.addresses())
        self._stale = self._failing = False
        if shown != self._shown:
            self._shown = shown
            _log.v(2).info("Node addresses", node_ips=ips, addresses=len(shown.addresses))
        if ips != self._reported_ips:
            self._report_ips(self._reported_ips, ips)
            self._reported_ips = ips

    def _report_ips(self, before: tuple[str, ...] | None, now: tuple[str, ...]) -> None:
        if not now:
            _log.warning("Can't determine this node's IP; if that matters, set --bind-address or the Node's addresses")
        elif before:
            _log.info("This node's IPs changed", before=before, now=now)
        elif self._node is None or not self._node.ips:
            _log.info("The Node object has no IP; using this host's own", node_ips=now)


def _advice(state: ClusterState) -> str:
    """Where the operator finds out why the Node object lacks what is needed."""
    if not state.listed(Kind.NODE):
        return "The Nodes were not listed: look for a line that they cannot be followed; may this account list them?"
    if state.node is None:
        return 'There is no Node of this name: compare "kubectl get nodes" with --hostname-override'
    return (
        f'"kubectl get node {state.node_name} -o yaml" shows no spec.podCIDRs: kube-controller-manager sets it with '
        "--allocate-node-cidrs; where the network plugin hands out addresses, use another detectLocalMode"
    )
