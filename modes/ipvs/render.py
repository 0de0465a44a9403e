"""Renders a plan for IPVS mode: virtual servers, entries of ipsets, addresses, and a few rules. Pure.

Decides: how a plan is expressed in them; the plan has all decisions about the Service. Leaves out: the node's own rules
(rules), and what the kernel holds already (apply).
"""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.kernel.constants import ADDRESS_BITS
from kproxy.kernel.virtual_servers import PERSISTENT, SOURCE_PORT, RealKey, RealServer, ServerKey, VirtualServer
from kproxy.model.plans import Endpoint, Protocol, ServicePlan
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.fragments import Entry, Fragment, Served, Settings
from kproxy.modes.xtables.rules import SharedRule

# Node ports by protocol: the set of all, the set of those with policy Local.
NODE_PORTS = {
    Protocol.TCP: (names.NODE_PORT_TCP, names.NODE_PORT_LOCAL_TCP),
    Protocol.UDP: (names.NODE_PORT_UDP, names.NODE_PORT_LOCAL_UDP),
    Protocol.SCTP: (names.NODE_PORT_SCTP, names.NODE_PORT_LOCAL_SCTP),
}


def render_port(plan: ServicePlan, settings: Settings) -> Fragment:
    """Everything that one Service port needs."""
    port = _Port(plan, settings)
    addresses = tuple(dict.fromkeys(port.addresses()))
    entries = (*port.entries(), *((names.IPVS_IPS, ip) for ip in addresses))
    return Fragment(
        served=port.served(),
        entries=tuple(Entry(names.set_name(short, plan.family), entry) for short, entry in dict.fromkeys(entries)),
        addresses=addresses,
        rules=tuple(port.rules()),
    )


class _Port:
    """Renders one port; it holds what every part needs."""

    __slots__ = ("_plan", "_proto", "_settings")

    def __init__(self, plan: ServicePlan, settings: Settings) -> None:
        self._plan = plan
        self._settings = settings
        self._proto = plan.protocol.lower()

    # -- virtual servers

    def served(self) -> tuple[Served, ...]:
        """The port's virtual servers; an address that is both an external IP and a load balancer's has only one."""
        plan = self._plan
        internal = self._reals(plan.internal_endpoints)
        external = self._reals(plan.external_endpoints)
        found = {plan.cluster_ip: self._server(plan.cluster_ip, plan.port, internal)}
        for ip in (*plan.external_ips, *plan.load_balancer_ips):
            found[ip] = self._server(ip, plan.port, external)
        node_ports = [self._server(ip, plan.node_port, external) for ip in self._node_port_ips]
        return tuple({served.server.key: served for served in (*found.values(), *node_ports)}.values())

    def _reals(self, endpoints: tuple[Endpoint, ...]) -> tuple[RealServer, ...]:
        """The real servers for ENDPOINTS; where these are none, for the endpoints of policy Cluster.

        It is not masqueraded then: clients on this node get an answer all the same, others do not.
        """
        return tuple(RealServer(RealKey(e.ip, e.port)) for e in endpoints or self._plan.cluster)

    def _server(self, ip: str, port: int, reals: tuple[RealServer, ...]) -> Served:
        settings, seconds = self._settings, self._plan.affinity_seconds
        flags = (PERSISTENT if seconds else 0) | (SOURCE_PORT if settings.scheduler == "mh" else 0)
        key = ServerKey(self._plan.protocol, ip, port)
        return Served(VirtualServer(key, settings.scheduler, flags, seconds), reals)

    @property
    def _node_port_ips(self) -> tuple[str, ...]:
        return self._settings.node_port_ips if self._plan.node_port else ()

    # -- addresses for kube-ipvs0

    def addresses(self) -> Iterator[str]:
        """The port's addresses, except the node's own: it accepts those anyway, and must not lose them later."""
        plan = self._plan
        for ip in (plan.cluster_ip, *plan.external_ips, *plan.load_balancer_ips):
            if ip not in self._settings.node_addresses:
                yield ip

    # -- entries of sets: a set's short name, the entry

    def entries(self) -> Iterator[tuple[str, str]]:
        plan = self._plan
        for endpoint in plan.all_local:
            yield names.LOOP_BACK, f"{self._at(endpoint.ip, endpoint.port)},{endpoint.ip}"
        yield names.CLUSTER_IP, self._at(plan.cluster_ip, plan.port)
        for ip in plan.external_ips:
            local = plan.external_local
            yield names.EXTERNAL_IP_LOCAL if local else names.EXTERNAL_IP, self._at(ip, plan.port)
        for ip in plan.load_balancer_ips:
            yield from self._load_balancer(ip, self._at(ip, plan.port))
        yield from self._node_port()
        if plan.health_check_node_port:
            yield names.HEALTH_CHECK_NODE_PORT, str(plan.health_check_node_port)

    def _load_balancer(self, ip: str, at: str) -> Iterator[tuple[str, str]]:
        plan = self._plan
        yield names.LB, at
        if plan.external_local:
            yield names.LB_LOCAL, at
        if not plan.restricts_sources:
            return
        yield names.LB_FIREWALL, at
        for cidr in plan.source_ranges:
            yield names.LB_SOURCE_CIDR, f"{at},{_net(cidr)}"
        if plan.node_in_source_ranges:
            # The node's own connection to an address of its own has that address as source.
            yield names.LB_SOURCE_IP, f"{at},{ip}"

    def _node_port(self) -> Iterator[tuple[str, str]]:
        plan, ips = self._plan, self._node_port_ips
        every, local = NODE_PORTS[plan.protocol]
        found = [self._at(ip, plan.node_port) for ip in ips]
        if plan.protocol is not Protocol.SCTP:
            found = [str(plan.node_port)] if ips else []
        for short in (every, local) if plan.external_local else (every,):
            yield from ((short, entry) for entry in found)

    def _at(self, ip: str, port: int) -> str:
        return f"{ip},{self._proto}:{port}"

    # -- rules

    def rules(self) -> Iterator[SharedRule]:
        """Drops the node's own traffic to load balancers' IPs when the node is outside of their source ranges.

        Its source is that very IP, which is on kube-ipvs0, so no set can tell these packets from others.
        """
        plan = self._plan
        if not plan.restricts_sources or plan.node_in_source_ranges:
            return
        width = ADDRESS_BITS[plan.family]
        for ip in plan.load_balancer_ips:
            server = f"-m ipvs --vproto {self._proto} --vaddr {ip} --vport {plan.port}"
            yield SharedRule("filter", names.IPVS_OUT_FILTER, f"-s {ip}/{width} {server} -j DROP")


def _net(cidr: str) -> str:
    """CIDR as ipset prints it: that of a single address without its length."""
    address, _, length = cidr.partition("/")
    return address if length == ("128" if ":" in address else "32") else cidr
