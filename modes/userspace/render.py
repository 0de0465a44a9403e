"""Rules of userspace mode, as pure text: portals that lead to the proxy ports of a Service port's listeners.

Traffic from containers (PREROUTING) is redirected to the address at which it came in, the node's own traffic (OUTPUT)
to one address of the node. What must not get through meets the filter rules of iptables mode. A proxy port takes only
what a portal led to it: it would know nothing of source ranges and policies, nor that a cluster IP is no node port.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from kproxy.model.node_info import DetectLocal, DetectLocalBy, NodePortAddresses
from kproxy.model.plans import Endpoint, Family, Protocol, ServicePlan, address_port
from kproxy.modes.userspace import names
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

PORTALS = "handle ClusterIPs; NOTE: this must be before the NodePort rules"
NODE_PORTS = "handle service NodePorts; NOTE: this must be the last rule in the chain"
NON_LOCAL = "Ensure that non-local NodePort traffic can flow"
DIRECT = "kubernetes proxy ports are for what portals lead to them"
NOT_LED = "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"


@dataclass(frozen=True, slots=True)
class Settings:
    """All that rules depend on besides the plans and their proxy ports.

    node_ip: where the node's own traffic is led to, an address that this host really has.
    localhost_node_ports: node ports answer on loopback addresses too, of either family; that needs no sysctl here.
    """

    family: Family
    node_ip: str
    localhost_node_ports: bool = True
    detect_local: DetectLocal = field(default_factory=DetectLocal)
    node_port_addresses: NodePortAddresses = field(default_factory=NodePortAddresses)


class Portal(msgspec.Struct, frozen=True, gc=False):
    """A plan, and the proxy port of its listener for each policy; 0 where it has none."""

    plan: ServicePlan
    cluster: int = 0
    local: int = 0

    def port(self, reach: Reach) -> int:
        return self.cluster if reach is Reach.CLUSTER else self.local


# ---------------------------------------------------------------- what listens


def listeners(plan: ServicePlan) -> dict[Reach, Listener]:
    """The listeners that a Service port needs: one for each list of endpoints that some of its traffic may reach.

    None for SCTP, which a process cannot take over as it can TCP and UDP: its associations carry addresses.
    """
    if plan.protocol is Protocol.SCTP:
        return {}
    return {
        reach: Listener(plan.family, endpoints, plan.affinity_seconds) for reach, endpoints in _served_by(plan).items()
    }


def unserved(plan: ServicePlan) -> str:
    """Why the port cannot be served in this mode at all, as one line; "" when it can."""
    if plan.protocol is Protocol.SCTP and plan.has_endpoints:
        return f"{plan.key}: SCTP is not forwarded in userspace mode; its clients are refused"
    return ""


def _served_by(plan: ServicePlan) -> dict[Reach, tuple[Endpoint, ...]]:
    outside = plan.externally_accessible
    # Pods and the node itself may go anywhere, also by way of an address whose outside traffic stays here.
    cluster = plan.cluster if outside or not plan.internal_local else ()
    local = plan.local if plan.internal_local or (outside and plan.external_local) else ()
    found = {Reach.CLUSTER: cluster, Reach.LOCAL: local}
    return {reach: endpoints for reach, endpoints in found.items() if endpoints and plan.has_endpoints}


def _without_missing(portal: Portal) -> ServicePlan:
    """The plan as far as it is served: without the endpoints that no listener leads to, and without endpoints at all
    when there is no listener though there should be."""
    plan = portal.plan
    if all(portal.port(reach) for reach in _served_by(plan)):
        return plan
    cluster, local = (plan.cluster if portal.cluster else ()), (plan.local if portal.local else ())
    return replace(plan, cluster=cluster, local=local, has_endpoints=bool(portal.cluster or portal.local))


# ---------------------------------------------------------------- one Service port


def render_port(portal: Portal, settings: Settings) -> Fragment:
    """The rules that one Service port needs."""
    port = _Port(portal, settings)
    return Fragment(tuple(port.chains()), tuple(port.shared()))


class _Port:
    """One port's rules while they are written; only to share the names that every part needs."""

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
        """For policy Local, where the order of rules counts: pods may go anywhere, all others only here."""
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
        ranges = plan.source_ranges if self._rules.firewalled else ("",)
        # A load balancer may make its IP an address of the node, whose own traffic then carries it as source.
        own = tuple(f"{ip}/{self._rules.width}" for ip in plan.load_balancer_ips if plan.node_in_source_ranges)
        for ip in plan.load_balancer_ips:
            for source in ranges:
                yield from self._address(ip, "loadbalancer IP", inward, host, source)
            for source in own if self._rules.firewalled else ():
                yield from self._address(ip, "loadbalancer IP", "", host, source)

    def _node_port(self) -> Iterator[SharedRule]:
        if not self._plan.node_port:
            return
        match = self._rules.at_port(self._plan.node_port, self._rules.name)
        for chain, target in ((names.NODEPORT_CONTAINER, self._inward()), (names.NODEPORT_HOST, self._outward())):
            if target:
                yield SharedRule("nat", chain, f"{match} -j {target}")
        for number in self._taking():
            match = self._rules.at_port(number, self._rules.name)
            yield SharedRule("filter", names.NODEPORT_NON_LOCAL, f"{match} {NEW} -j ACCEPT")

    def _proxy_ports(self) -> Iterator[SharedRule]:
        for number in (self._portal.cluster, self._portal.local):
            if number:
                match = self._rules.at_port(number, f"{self._rules.name} proxy port")
                yield SharedRule("filter", names.PROXY_PORTS, f"{match} -j REJECT")

    # -- where it leads

    @property
    def _splits(self) -> bool:
        """Outside traffic is led by its source: pods' traffic elsewhere than others'."""
        local = self._plan.externally_accessible and self._plan.external_local
        return local and bool(self._settings.detect_local) and bool(self._portal.cluster)

    def _inward(self) -> str:
        """The target for what comes from containers and other machines to an outside address; "" for none."""
        if self._splits:
            return self._rules.chains.external
        number = self._portal.port(Reach.LOCAL if self._plan.external_local else Reach.CLUSTER)
        return _redirect(number) if number else ""

    def _outward(self) -> str:
        """The target for the node's own traffic to an outside address, which may go anywhere."""
        return self._dnat(self._portal.cluster) if self._portal.cluster else ""

    def _taking(self) -> Iterator[int]:
        """The proxy ports that take what comes to an outside address."""
        if self._portal.cluster and (self._splits or not self._plan.external_local):
            yield self._portal.cluster
        if self._portal.local and self._plan.external_local:
            yield self._portal.local

    # -- wording

    def _address(self, ip: str, kind: str, container: str, host: str, source: str = "") -> Iterator[SharedRule]:
        for chain, target in ((names.PORTALS_CONTAINER, container), (names.PORTALS_HOST, host)):
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
    """The chains and jumps that a node needs whatever its Services are."""
    nat = (names.PORTALS_CONTAINER, names.PORTALS_HOST, names.NODEPORT_CONTAINER, names.NODEPORT_HOST)
    shared = {
        **filter_chains(),
        ("filter", names.NODEPORT_NON_LOCAL): (),
        ("filter", names.PROXY_PORTS): (),
        **{("nat", chain): () for chain in nat},
    }
    # iptables mode may have set route_localnet, which lasts until the node restarts.
    guard = (GUARD,) if settings.family is Family.IPV4 else ()
    jumps = filter_jumps()
    jumps["filter", "INPUT"] += (
        jump(DIRECT, names.PROXY_PORTS, NOT_LED),
        jump(NON_LOCAL, names.NODEPORT_NON_LOCAL),
    )
    jumps["nat", "PREROUTING"] = (jump(PORTALS, names.PORTALS_CONTAINER), *_containers(settings))
    jumps["nat", "OUTPUT"] = (jump(PORTALS, names.PORTALS_HOST), *_host(settings))
    return Base({}, shared, {("filter", FIREWALL): guard}, jumps)


def _containers(settings: Settings) -> Iterator[str]:
    """What comes to a loopback address never comes from elsewhere."""
    if settings.node_port_addresses.match_all:
        yield jump(NODE_PORTS, names.NODEPORT_CONTAINER, "-m addrtype --dst-type LOCAL")
    for address in _addresses(settings, loopback=False):
        yield jump(NODE_PORTS, names.NODEPORT_CONTAINER, address)


def _host(settings: Settings) -> Iterator[str]:
    if settings.node_port_addresses.match_all:
        loopback = "127.0.0.0/8" if settings.family is Family.IPV4 else "::1/128"
        match = "" if settings.localhost_node_ports else f"! -d {loopback} "
        yield jump(NODE_PORTS, names.NODEPORT_HOST, f"{match}-m addrtype --dst-type LOCAL")
    for address in _addresses(settings, loopback=settings.localhost_node_ports):
        yield jump(NODE_PORTS, names.NODEPORT_HOST, address)


def _addresses(settings: Settings, loopback: bool) -> Iterator[str]:
    if settings.node_port_addresses.match_all:
        return
    for ip in settings.node_port_addresses.ips:
        if loopback or not (ip == "::1" or ip.startswith("127.")):
            yield f"-d {ip}/{32 if settings.family is Family.IPV4 else 128}"
