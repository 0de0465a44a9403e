"""What a probe must meet, told from the plans alone: no rule is looked at.

Written from Kubernetes' Service semantics and from what kube-proxy documents of each traffic policy, to be held against
what a trace through rules says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import ip_network
from itertools import islice

from kproxy.model.addresses import contains, is_loopback
from kproxy.model.node_info import DetectLocal, DetectLocalBy, NodePortAddresses, family_of
from kproxy.model.plans import Endpoint, Family, Protocol, ServicePlan
from kproxy.modes.iptables.render import Settings
from kproxy.trace.outcome import Fate, Host, Probe, Verdict

Chances = dict[Verdict, Fraction]

NODE_PORT = "node port"

REJECTED: Chances = {Verdict(Fate.REJECTED): Fraction(1)}
DROPPED: Chances = {Verdict(Fate.DROPPED): Fraction(1)}
UNTOUCHED: Chances = {Verdict(Fate.UNTOUCHED): Fraction(1)}


@dataclass(frozen=True)
class Node:
    """What the answer depends on besides the plans."""

    host: Host
    detect_local: DetectLocal
    node_port_addresses: NodePortAddresses
    localhost_node_ports: bool = True
    masquerade_all: bool = False
    service_cidrs: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings, addresses: Iterable[str], service_cidrs: Iterable[str] = ()) -> Node:
        return cls(
            Host(frozenset(addresses)),
            settings.detect_local,
            settings.node_port_addresses,
            settings.localhost_node_ports,
            settings.masquerade_all,
            tuple(c for c in service_cidrs if family_of(c) is settings.family),
        )

    def pod(self, probe: Probe) -> bool:
        """Whether the probe counts as a pod's of this node."""
        match self.detect_local.by:
            case DetectLocalBy.CIDR:
                return contains(self.detect_local.value, probe.source)
            case DetectLocalBy.INTERFACE:
                value = self.detect_local.value
                return probe.interface.startswith(value[:-1]) if value.endswith("+") else probe.interface == value
        return False

    def takes_node_ports(self, ip: str) -> bool:
        """Whether the node's address IP is one where node ports answer."""
        if is_loopback(ip) and not (self.localhost_node_ports and ip != "::1"):
            return False
        return self.node_port_addresses.match_all or ip in self.node_port_addresses.ips

    def guards(self, probe: Probe) -> bool:
        """Services on 127.0.0.1 must not open loopback to neighbours."""
        serves = probe.family is Family.IPV4 and self.localhost_node_ports and self.node_port_addresses.loopback
        return serves and is_loopback(probe.destination) and not is_loopback(probe.source)


class AmbiguousError(Exception):
    """Two Services claim the address: the semantics leave open which of them has it."""


def claimants(plans: Iterable[ServicePlan], node: Node, probe: Probe) -> list[tuple[ServicePlan, str]]:
    """The Services to which the probe's address and port belong, by name, and the way by which it comes to them.

    An address that is given twice counts as what it is first: of the cluster, external, a load balancer's.
    """
    concerned = [p for p in plans if p.protocol is probe.protocol]
    found = [(p, way) for p in concerned if p.port == probe.port for way in islice(_ways(p, probe.destination), 1)]
    here = node.host.owns(probe.destination)
    found += [(p, NODE_PORT) for p in concerned if p.node_port == probe.port and here]
    return sorted(found, key=lambda claim: claim[0].key)


def expected(plans: Iterable[ServicePlan], node: Node, probe: Probe) -> Chances:
    """Every verdict that the probe may meet, with its probability."""
    found = claimants(plans, node, probe)
    if len(found) > 1:
        raise AmbiguousError
    if not found:
        return DROPPED if node.guards(probe) else UNTOUCHED
    plan, way = found[0]
    if way == NODE_PORT:
        return _node_port(plan, node, probe)
    if way == "cluster IP":
        return _inside(plan, node, probe)
    if way == "load balancer IP" and plan.has_endpoints and plan.restricts_sources and not _may_enter(plan, probe):
        return DROPPED
    return _outside(plan, node, probe)


def _ways(plan: ServicePlan, ip: str) -> Iterator[str]:
    if ip == plan.cluster_ip:
        yield "cluster IP"
    if ip in plan.external_ips:
        yield "external IP"
    if ip in plan.load_balancer_ips:
        yield "load balancer IP"


def _may_enter(plan: ServicePlan, probe: Probe) -> bool:
    if any(contains(cidr, probe.source) for cidr in plan.source_ranges):
        return True
    return plan.node_in_source_ranges and probe.source in plan.load_balancer_ips


def _inside(plan: ServicePlan, node: Node, probe: Probe) -> Chances:
    if not plan.internal_endpoints:
        return DROPPED if plan.has_endpoints else REJECTED
    off_cluster = bool(node.detect_local) and not node.pod(probe)
    return _balanced(plan.internal_endpoints, probe, node.masquerade_all or off_cluster)


def _outside(plan: ServicePlan, node: Node, probe: Probe) -> Chances:
    if not plan.has_endpoints:
        # The node's own packets to an address that is not its own are not refused: they leave.
        return REJECTED if probe.interface or node.host.owns(probe.destination) else UNTOUCHED
    if not plan.external_local:
        return _balanced(plan.cluster, probe, True)
    if node.pod(probe):
        return _balanced(plan.cluster, probe, False)
    if node.host.owns(probe.source):
        return _balanced(plan.cluster, probe, True)
    return _balanced(plan.local, probe, False) if plan.local else DROPPED


def _node_port(plan: ServicePlan, node: Node, probe: Probe) -> Chances:
    if plan.has_endpoints and node.takes_node_ports(probe.destination):
        return _outside(plan, node, probe)
    if node.guards(probe):
        return DROPPED
    if not plan.has_endpoints:
        return REJECTED
    # An address that takes no node ports: nothing is led away there, but what may not be served is still kept out.
    return UNTOUCHED if plan.external_endpoints else DROPPED


def _balanced(endpoints: tuple[Endpoint, ...], probe: Probe, masquerade: bool) -> Chances:
    share = Fraction(1, len(endpoints))
    hairpin = {str(e): e.ip == probe.source for e in endpoints}
    return {Verdict(Fate.DELIVERED, str(e), masquerade or hairpin[str(e)]): share for e in endpoints}


# ---------------------------------------------------------------- probes


def probes(plans: Iterable[ServicePlan], node: Node, family: Family) -> Iterator[Probe]:
    """To every frontend, beside and past it: from pods, from the node itself, from outside, from each source range."""
    own = sorted(a for a in node.host.addresses if (":" in a) is (family is Family.IPV6) and not is_loopback(a))
    loopback = "127.0.0.1" if family is Family.IPV4 else "::1"
    for plan in plans:
        fronts = [(ip, plan.port) for ip in (plan.cluster_ip, *plan.external_ips, *plan.load_balancer_ips)]
        fronts += [(ip, plan.node_port) for ip in (*own, loopback) if plan.node_port]
        for ip, port in fronts:
            if is_loopback(ip):
                yield Probe(ip, ip, plan.protocol, port)
                yield Probe(own[0], ip, plan.protocol, port)
            for source, interface in _sources(plan, family):
                yield Probe(source, ip, plan.protocol, port, interface)
            if not is_loopback(ip):
                yield Probe(own[0], ip, plan.protocol, port)
                yield from (Probe(s, ip, plan.protocol, port) for s in plan.load_balancer_ips if node.host.owns(s))
        for endpoint in plan.reachable[:1]:
            yield Probe(endpoint.ip, endpoint.ip, plan.protocol, endpoint.port, "veth3")
            yield Probe(own[0], endpoint.ip, plan.protocol, endpoint.port)
        first, interface = next(_sources(plan, family))
        other = Protocol.UDP if plan.protocol is Protocol.TCP else Protocol.TCP
        yield Probe(own[0], plan.cluster_ip, plan.protocol, plan.port + 7)
        yield Probe(first, plan.cluster_ip, other, plan.port, interface)
    for ip in ("10.96.255.1", "fd00:96::ff:1"):
        if family_of(ip) is family:
            yield from (Probe(own[0], ip, protocol, 80) for protocol in Protocol)


def _sources(plan: ServicePlan, family: Family) -> Iterator[tuple[str, str]]:
    four = family is Family.IPV4
    yield ("192.0.2.77", "eth0") if four else ("2001:db8:77::7", "eth0")
    yield ("10.244.0.200", "veth7") if four else ("fd00:10:244::c8", "veth7")
    yield ("10.244.0.201", "cbr0") if four else ("fd00:10:244::c9", "cbr0")
    for endpoint in plan.reachable[:2]:
        yield endpoint.ip, "veth3" if endpoint.local else "eth0"
    for cidr in plan.source_ranges:
        yield str(ip_network(cidr)[1 if ip_network(cidr).num_addresses > 1 else 0]), "eth0"
