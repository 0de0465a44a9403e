"""Renders userspace mode's rules: portals, which redirect a Service port's traffic to its proxy ports. Pure.

Traffic from pods and other machines (PREROUTING) is redirected to the address at which it came in, the node's own
traffic (OUTPUT) to one address of the node. What must not get through is stopped by iptables mode's filter rules. A
proxy port accepts only what a portal redirected to it; otherwise clients could bypass source ranges and policies, and
reach cluster IPs from outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from kproxy.model.addresses import collapsed, contains
from kproxy.model.node_info import DetectLocal, DetectLocalBy, NodePortAddresses
from kproxy.model.plans import Endpoint, Family, Protocol, ServicePlan, address_port
from kproxy.modes.userspace.listeners import Listener, Reach
from kproxy.modes.xtables.names import FIREWALL
from kproxy.modes.xtables.rules import (
    GUARD,
    NEW,
    Base,
    Chain,
    Fragment,
    PortRules,
    SharedRule,
    filter_chains,
    filter_jumps,
    jump,
)

# Chains, as kube-proxy named them up to 1.25; it had no PROXY_PORTS. Others are in kproxy.modes.xtables.names.
PORTALS_CONTAINER = "KUBE-PORTALS-CONTAINER"
PORTALS_HOST = "KUBE-PORTALS-HOST"
NODEPORT_CONTAINER = "KUBE-NODEPORT-CONTAINER"
NODEPORT_HOST = "KUBE-NODEPORT-HOST"
NODEPORT_NON_LOCAL = "KUBE-NODEPORT-NON-LOCAL"
PROXY_PORTS = "KUBE-PROXY-PORTS"

# Comments of the jumps to them.
PORTALS = "handle ClusterIPs; NOTE: this must be before the NodePort rules"
NODE_PORTS = "handle service NodePorts; NOTE: this must be the last rule in the chain"
NON_LOCAL = "Ensure that non-local NodePort traffic can flow"
TO_PROXY_PORTS = "kubernetes proxy ports are for what portals lead to them"
NOT_REDIRECTED = "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the rules depend on besides the plans and their proxy ports.

    node_ip: the address to which the node's own traffic is redirected; this host must really have it.
    localhost_node_ports: whether node ports answer on loopback addresses of either family; that needs no sysctl here.
    """

    family: Family
    node_ip: str
    localhost_node_ports: bool = True
    detect_local: DetectLocal = field(default_factory=DetectLocal)
    node_port_addresses: NodePortAddresses = field(default_factory=NodePortAddresses)


class Portal(msgspec.Struct, frozen=True, gc=False):
    """A plan, and the proxy port of its listener for each policy; 0 if it has none."""

    plan: ServicePlan
    cluster: int = 0
    local: int = 0

    def port(self, reach: Reach) -> int:
        return self.cluster if reach is Reach.CLUSTER else self.local


# ---------------------------------------------------------------- listeners


def listeners(plan: ServicePlan) -> dict[Reach, Listener]:
    """The listeners that a Service port needs: one for each list of endpoints that some of its traffic may reach.

    None for SCTP, which a process cannot relay as it can TCP and UDP: its associations carry addresses.
    """
    if plan.protocol is Protocol.SCTP:
        return {}
    return {
        reach: Listener(plan.family, endpoints, plan.affinity_seconds) for reach, endpoints in _served_by(plan).items()
    }


def unserved(plan: ServicePlan) -> str:
    """The reason why this mode cannot serve the port, as one line; "" if it can."""
    if plan.protocol is Protocol.SCTP and plan.has_endpoints:
        return f"{plan.key}: SCTP is not forwarded in userspace mode; its clients are refused"
    return ""


def _served_by(plan: ServicePlan) -> dict[Reach, tuple[Endpoint, ...]]:
    outside = plan.externally_accessible
    # Pods and the node itself may reach any endpoint, also through an address with external policy Local.
    cluster = plan.cluster if outside or not plan.internal_local else ()
    local = plan.local if plan.internal_local or (outside and plan.external_local) else ()
    found = {Reach.CLUSTER: cluster, Reach.LOCAL: local}
    return {reach: endpoints for reach, endpoints in found.items() if endpoints and plan.has_endpoints}


def _without_missing(portal: Portal) -> ServicePlan:
    """The plan as far as it is served: without the endpoints of listeners that are missing."""
    plan = portal.plan
    if all(portal.port(reach) for reach in _served_by(plan)):
        return plan
    cluster, local = (plan.cluster if portal.cluster else ()), (plan.local if portal.local else ())
    return replace(plan, cluster=cluster, local=local, has_endpoints=bool(portal.cluster or portal.local))


# ---------------------------------------------------------------- one Service port


def render_port(portal: Portal, settings: Settings) -> Fragment:
    """The rules of one Service port."""
    port = _Port(portal, settings)
    return Fragment(tuple(port.chains()), tuple(port.shared()))


class _Port:
    """Renders one port's rules; a class only so that its parts share the names that they need."""

    __slots__ = ("_plan", "_portal", "_rules", "_settings")

    def __init__(self, portal: Portal, settings: Settings) -> None:
        self._portal, self._settings = portal, settings
        self._plan = _without_missing(portal)
        self._rules = PortRules(self._plan)

    def shared(self) -> Iterator[SharedRule]:
        yield from self._cluster_ip()
        if self._plan.externally_accessible:
            yield from self._outside_addresses()
            yield from self._node_port()
        yield from self._proxy_ports()
        yield from self._rules.filtering()

    def chains(self) -> Iterator[Chain]:
        """The chain of external policy Local, where rules have an order: pods reach any endpoint, others local ones."""
        if not self._splits:
            return
        pods, to = self._settings.detect_local, f"{self._rules.name} external destinations"
        source = f"-s {pods.value}" if pods.by is DetectLocalBy.CIDR else f"-i {pods.value}"
        rules = [f"{source} {self._any(f'pod traffic for {to}')} -j {_redirect(self._portal.cluster)}"]
        if self._portal.local:
            rules.append(f"{self._any(to)} -j {_redirect(self._portal.local)}")
        yield Chain(self._rules.chains.external, tuple(rules))

    def _cluster_ip(self) -> Iterator[SharedRule]:
        number = self._portal.port(Reach.LOCAL if self._plan.internal_local else Reach.CLUSTER)
        if number and self._plan.internal_endpoints:
            yield from self._address(self._plan.cluster_ip, "cluster IP", _redirect(number), self._dnat(number))

    def _outside_addresses(self) -> Iterator[SharedRule]:
        plan, inward, host = self._plan, self._inward(), self._outward()
        for ip in plan.external_ips:
            yield from self._address(ip, "external IP", inward, host)
        # Without overlaps, as ip6tables-nft compares source addresses without their masks (1.8.9): asked to delete
        # fd00::/64 it may delete fd00::/32.
        ranges = collapsed(plan.source_ranges) if self._rules.firewalled else ("",)
        # A load balancer may assign its IP to the node, whose own traffic then has it as source address.
        own = tuple(
            f"{ip}/{self._rules.width}"
            for ip in plan.load_balancer_ips
            if plan.node_in_source_ranges and not any(contains(cidr, ip) for cidr in ranges if cidr)
        )
        for ip in plan.load_balancer_ips:
            for source in ranges:
                yield from self._address(ip, "loadbalancer IP", inward, host, source)
            for source in own if self._rules.firewalled else ():
                yield from self._address(ip, "loadbalancer IP", "", host, source)

    def _node_port(self) -> Iterator[SharedRule]:
        if not self._plan.node_port:
            return
        match = self._rules.at_port(self._plan.node_port, self._rules.name)
        for chain, target in ((NODEPORT_CONTAINER, self._inward()), (NODEPORT_HOST, self._outward())):
            if target:
                yield SharedRule("nat", chain, f"{match} -j {target}")
        for number in self._outside_ports():
            match = self._rules.at_port(number, self._rules.name)
            yield SharedRule("filter", NODEPORT_NON_LOCAL, f"{match} {NEW} -j ACCEPT")

    def _proxy_ports(self) -> Iterator[SharedRule]:
        for number in (self._portal.cluster, self._portal.local):
            if number:
                match = self._rules.at_port(number, f"{self._rules.name} proxy port")
                yield SharedRule("filter", PROXY_PORTS, f"{match} -j REJECT")

    # -- targets

    @property
    def _splits(self) -> bool:
        """Whether traffic to outside addresses is redirected by its source: pods' traffic and others' differently."""
        local = self._plan.externally_accessible and self._plan.external_local
        return local and bool(self._settings.detect_local) and bool(self._portal.cluster)

    def _inward(self) -> str:
        """The target of traffic from pods and other machines to an outside address; "" for none."""
        if self._splits:
            return self._rules.chains.external
        number = self._portal.port(Reach.LOCAL if self._plan.external_local else Reach.CLUSTER)
        return _redirect(number) if number else ""

    def _outward(self) -> str:
        """The target of the node's own traffic to an outside address, which may reach any endpoint."""
        return self._dnat(self._portal.cluster) if self._portal.cluster else ""

    def _outside_ports(self) -> Iterator[int]:
        """The proxy ports that traffic to outside addresses is redirected to."""
        if self._portal.cluster and (self._splits or not self._plan.external_local):
            yield self._portal.cluster
        if self._portal.local and self._plan.external_local:
            yield self._portal.local

    # -- wording

    def _address(self, ip: str, kind: str, container: str, host: str, source: str = "") -> Iterator[SharedRule]:
        for chain, target in ((PORTALS_CONTAINER, container), (PORTALS_HOST, host)):
            if target:
                rule = self._rules.to(ip, f"{self._rules.name} {kind}", target, source)
                yield SharedRule("nat", chain, rule)

    def _any(self, comment: str) -> str:
        return f'-p {self._rules.proto} -m comment --comment "{comment}"'

    def _dnat(self, number: int) -> str:
        return f"DNAT --to-destination {address_port(self._settings.node_ip, number)}"


def _redirect(number: int) -> str:
    return f"REDIRECT --to-ports {number}"


# ---------------------------------------------------------------- the node


def render_base(settings: Settings) -> Base:
    """The chains and jumps that a node needs independently of its Services."""
    nat = (PORTALS_CONTAINER, PORTALS_HOST, NODEPORT_CONTAINER, NODEPORT_HOST)
    shared = {
        **filter_chains(),
        ("filter", NODEPORT_NON_LOCAL): (),
        ("filter", PROXY_PORTS): (),
        **{("nat", chain): () for chain in nat},
    }
    # iptables mode may have set route_localnet, which lasts until the node restarts.
    guard = (GUARD,) if settings.family is Family.IPV4 else ()
    jumps = filter_jumps()
    jumps["filter", "INPUT"] += (
        jump(TO_PROXY_PORTS, PROXY_PORTS, NOT_REDIRECTED),
        jump(NON_LOCAL, NODEPORT_NON_LOCAL),
    )
    jumps["nat", "PREROUTING"] = (jump(PORTALS, PORTALS_CONTAINER), *_containers(settings))
    jumps["nat", "OUTPUT"] = (jump(PORTALS, PORTALS_HOST), *_host(settings))
    return Base({}, shared, {("filter", FIREWALL): guard}, jumps)


def _containers(settings: Settings) -> Iterator[str]:
    """The jumps for pods and other machines, which never send to a loopback address."""
    if settings.node_port_addresses.match_all:
        yield jump(NODE_PORTS, NODEPORT_CONTAINER, "-m addrtype --dst-type LOCAL")
    for address in _addresses(settings, loopback=False):
        yield jump(NODE_PORTS, NODEPORT_CONTAINER, address)


def _host(settings: Settings) -> Iterator[str]:
    if settings.node_port_addresses.match_all:
        loopback = "127.0.0.0/8" if settings.family is Family.IPV4 else "::1/128"
        match = "" if settings.localhost_node_ports else f"! -d {loopback} "
        yield jump(NODE_PORTS, NODEPORT_HOST, f"{match}-m addrtype --dst-type LOCAL")
    for address in _addresses(settings, loopback=settings.localhost_node_ports):
        yield jump(NODE_PORTS, NODEPORT_HOST, address)


def _addresses(settings: Settings, loopback: bool) -> Iterator[str]:
    if settings.node_port_addresses.match_all:
        return
    for ip in settings.node_port_addresses.ips:
        if loopback or not (ip == "::1" or ip.startswith("127.")):
            yield f"-d {ip}/{32 if settings.family is Family.IPV4 else 128}"
