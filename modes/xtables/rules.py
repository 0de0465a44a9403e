"""The rules that a Service port and a node need, as values, and those of the filter table, which all modes share. Pure.

A rule is the text after "-A CHAIN ", in the option order of iptables-save.

Whatever brings traffic to endpoints (NAT, or a process in userspace mode), what must not get through is the same:
traffic to a port without endpoints, and sources outside a load balancer's ranges. Packets that were redirected have
another destination by the time they reach these rules, so these rules match only those that were not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from kproxy.kernel.constants import ADDRESS_BITS
from kproxy.model.plans import ServicePlan
from kproxy.modes.xtables import names

NEW = "-m conntrack --ctstate NEW"
# Node ports on 127.0.0.1 need route_localnet, which alone would let neighbours reach what listens there.
GUARD = (
    '! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" '
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
)


class Chain(NamedTuple):
    """A chain of the nat table that belongs to one Service port, with all its rules."""

    name: str
    rules: tuple[str, ...]


class SharedRule(NamedTuple):
    """One rule of one Service port in a chain that all ports share."""

    table: str
    chain: str
    rule: str


class Fragment(msgspec.Struct, frozen=True, gc=False):
    """Everything that one Service port needs: its own chains, and its rules in the shared ones."""

    chains: tuple[Chain, ...] = ()
    shared: tuple[SharedRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Base:
    """What a node needs regardless of its Services. Keys are (table, chain).

    owned: chains that belong to kproxy alone, with all their rules (KUBE-MARK-MASQ, KUBE-POSTROUTING, KUBE-FORWARD).
    shared: chains that hold the SharedRules of all ports, each with the rules that must stay last in it (the node port
    jumps of KUBE-SERVICES). The order of the rules before those does not matter.
    joint: rules in chains that other programs use as well (KUBE-FIREWALL, also the kubelet's); only these are touched.
    jumps: rules in built-in chains, each inserted at the head when absent, in this order from head to tail.
    """

    owned: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    shared: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    joint: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    jumps: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)


# ---------------------------------------------------------------- one Service port


class PortRules:
    """Builds rules about one Service port. name, proto: as rules have them; width: the prefix length of one address."""

    __slots__ = ("chains", "name", "plan", "proto", "width")

    def __init__(self, plan: ServicePlan) -> None:
        self.plan = plan
        self.name = str(plan.key)
        self.proto = plan.key.protocol.lower()
        self.width = ADDRESS_BITS[plan.family]
        self.chains = names.PortChains(plan.key)

    @property
    def firewalled(self) -> bool:
        """Whether only some sources may use the load balancer's addresses."""
        plan = self.plan
        return bool(plan.has_endpoints and plan.load_balancer_ips and plan.restricts_sources)

    def to(self, ip: str, comment: str, target: str, source: str = "") -> str:
        """A rule for traffic to the port at IP. source: the CIDR that it must come from, "" for any."""
        origin = f"-s {source} " if source else ""
        match = f'{origin}-d {ip}/{self.width} -p {self.proto} -m comment --comment "{comment}" -m {self.proto}'
        return f"{match} --dport {self.plan.port} -j {target}"

    def at_port(self, number: int, comment: str, match: str = "") -> str:
        """The matches of a rule for traffic to a node port, without the target."""
        return f'-p {self.proto} -m comment --comment "{comment}" {match}-m {self.proto} --dport {number}'

    def filtering(self) -> Iterator[SharedRule]:
        """The port's rules in the filter table."""
        plan = self.plan
        if not plan.internal_endpoints:
            verdict = self._dropped() if plan.has_endpoints else self._rejected()
            yield SharedRule("filter", names.SERVICES, self.to(plan.cluster_ip, *verdict))
        target = self._outside()
        if self.firewalled:
            why = f"{self.name} traffic not accepted by {self.chains.firewall}"
            for ip in plan.load_balancer_ips:
                yield SharedRule("filter", names.PROXY_FIREWALL, self.to(ip, why, "DROP"))
        if target:
            for ip in (*plan.external_ips, *plan.load_balancer_ips):
                yield SharedRule("filter", names.EXTERNAL_SERVICES, self.to(ip, *target))
        if target and plan.node_port:
            match = self.at_port(plan.node_port, target[0], "-m addrtype --dst-type LOCAL ")
            yield SharedRule("filter", names.EXTERNAL_SERVICES, f"{match} -j {target[1]}")
        if check := plan.health_check_node_port:
            match = f'-p tcp -m comment --comment "{self.name} health check node port" -m tcp --dport {check}'
            yield SharedRule("filter", names.NODE_PORTS, f"{match} -j ACCEPT")

    def _outside(self) -> tuple[str, str] | None:
        """Comment and verdict for external traffic when no endpoint may take it; None when one may."""
        if not self.plan.has_endpoints:
            return self._rejected()
        return None if self.plan.external_endpoints else self._dropped()

    def _rejected(self) -> tuple[str, str]:
        return f"{self.name} has no endpoints", "REJECT"

    def _dropped(self) -> tuple[str, str]:
        return f"{self.name} has no local endpoints", "DROP"


# ---------------------------------------------------------------- the node


def filter_chains() -> dict[tuple[str, str], tuple[str, ...]]:
    """The chains that `PortRules.filtering` writes into, as Base.shared has them."""
    chains = (names.SERVICES, names.EXTERNAL_SERVICES, names.NODE_PORTS, names.PROXY_FIREWALL)
    return {("filter", chain): () for chain in chains}


def filter_jumps() -> dict[tuple[str, str], tuple[str, ...]]:
    """The jumps to these chains and to KUBE-FIREWALL, as Base.jumps has them."""
    external = jump("kubernetes externally-visible service portals", names.EXTERNAL_SERVICES, NEW)
    firewall = jump("kubernetes load balancer firewall", names.PROXY_FIREWALL, NEW)
    portals = jump("kubernetes service portals", names.SERVICES, NEW)
    guard = f"-j {names.FIREWALL}"
    health = jump("kubernetes health check service ports", names.NODE_PORTS)
    return {
        ("filter", "INPUT"): (guard, firewall, health, external),
        ("filter", "FORWARD"): (firewall, portals, external),
        ("filter", "OUTPUT"): (guard, firewall, portals),
    }


def jump(comment: str, target: str, match: str = "") -> str:
    """A jump with a comment. match: what comes before the comment, "" for nothing."""
    return f'{match}{" " if match else ""}-m comment --comment "{comment}" -j {target}'
