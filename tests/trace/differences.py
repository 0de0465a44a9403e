"""Where a mode means something else than iptables mode, and nowhere else. docs/modes.md explains why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from kproxy.model.addresses import contains, is_loopback
from kproxy.model.plans import ServicePlan
from kproxy.trace.outcome import Probe
from tests.trace.oracle import DROPPED, REJECTED, UNTOUCHED, Chances, Node


class Case(NamedTuple):
    """A probe on a node with Services, and what it meets in iptables mode."""

    plans: tuple[ServicePlan, ...]
    node: Node
    probe: Probe
    meets: Chances

    @property
    def node_port(self) -> ServicePlan | None:
        """The port whose node port is asked for, None when there is none."""
        if not self.node.host.owns(self.probe.destination):
            return None
        return next((p for p in self.plans if self._is(p, p.node_port)), None)

    @property
    def of_cluster_ip(self) -> bool:
        return any(p.cluster_ip == self.probe.destination for p in self.plans)

    def _is(self, plan: ServicePlan, port: int) -> bool:
        return plan.protocol is self.probe.protocol and port == self.probe.port


class Difference(NamedTuple):
    """reason: in words. concerns: whether it is about that packet. instead: what it meets. documented: the words of
    docs/modes.md, and how preflight calls what it is sent to."""

    reason: str
    concerns: Callable[[Case], bool]
    instead: Chances
    documented: tuple[str, str]


def _on_loopback(case: Case) -> bool:
    return is_loopback(case.probe.destination)


def _no_node_ports_here(case: Case) -> bool:
    return bool(case.node_port) and not case.node.takes_node_ports(case.probe.destination)


def _own_to_nobody(case: Case) -> bool:
    probe = case.probe
    return not probe.interface and any(
        not p.has_endpoints
        and p.protocol is probe.protocol
        and p.port == probe.port
        and probe.destination in (*p.external_ips, *p.load_balancer_ips)
        for p in case.plans
    )


def _port_of_nobody(case: Case) -> bool:
    return case.of_cluster_ip and case.meets == UNTOUCHED


def _address_of_nobody(case: Case) -> bool:
    within = any(contains(cidr, case.probe.destination) for cidr in case.node.service_cidrs)
    return within and not case.of_cluster_ip and case.meets == UNTOUCHED


DIFFERENCES: dict[str, tuple[Difference, ...]] = {
    "nftables": (
        Difference(
            "loopback takes no node ports, and needs no guard",
            _on_loopback,
            UNTOUCHED,
            ("Node ports do not answer on 127.0.0.1", "on loopback"),
        ),
        Difference(
            "addresses that take no node ports are left alone",
            _no_node_ports_here,
            UNTOUCHED,
            ("left alone on other addresses", "on the node's own addresses"),
        ),
        Difference(
            "what the node itself sends to nobody is refused as well",
            _own_to_nobody,
            REJECTED,
            ("A port without endpoints is refused to the node itself as well", " IP"),
        ),
        Difference(
            "ports of cluster IPs that no Service has are refused",
            _port_of_nobody,
            REJECTED,
            ("Nothing at a cluster IP is passed on", "ping and other ports of {} cluster IP"),
        ),
        Difference(
            "cluster IPs that no Service has are dropped",
            _address_of_nobody,
            DROPPED,
            (
                "Addresses of the cluster's ServiceCIDRs that no Service has are dropped",
                "addresses of the ServiceCIDRs",
            ),
        ),
    )
}


def difference(mode: str, case: Case) -> Difference | None:
    """The one that is about this packet, if any."""
    return next((d for d in DIFFERENCES.get(mode, ()) if d.concerns(case)), None)


def meant(mode: str, plans: Iterable[ServicePlan], node: Node, probe: Probe, meets: Chances) -> Chances:
    """What PROBE must meet in MODE where it MEETS this in iptables mode."""
    found = difference(mode, Case(tuple(plans), node, probe, meets))
    return found.instead if found else meets
