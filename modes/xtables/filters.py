"""How rules name one Service port's frontends, and what the filter table says of them. Pure.

Whatever leads traffic to endpoints (NAT here, a process in userspace mode), what must not get through is the same:
traffic that no endpoint takes, and sources that a load balancer's ranges leave out. Packets that were led somewhere
carry another destination by then, so these rules see only those that were not.
"""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.model.plans import Family, ServicePlan
from kproxy.modes.xtables import names
from kproxy.modes.xtables.fragments import SharedRule

NEW = "-m conntrack --ctstate NEW"
# Services on 127.0.0.1 need route_localnet, which would let neighbours reach what listens there: this forbids it again.
GUARD = (
    '! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" '
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
)


class PortRules:
    """Words the rules of one Service port. name, proto: as rules have them; width: of a single address's mask."""

    __slots__ = ("chains", "name", "plan", "proto", "width")

    def __init__(self, plan: ServicePlan) -> None:
        self.plan = plan
        self.name = str(plan.key)
        self.proto = plan.key.protocol.lower()
        self.width = 32 if plan.family is Family.IPV4 else 128
        self.chains = names.PortChains(plan.key)

    @property
    def firewalled(self) -> bool:
        """Only some sources may use the load balancer's addresses."""
        plan = self.plan
        return bool(plan.has_endpoints and plan.load_balancer_ips and plan.source_ranges)

    def to(self, ip: str, comment: str, target: str, source: str = "") -> str:
        """A rule for what goes to the port at IP. source: a CIDR that it must come from, "" for anywhere."""
        origin = f"-s {source} " if source else ""
        match = f'{origin}-d {ip}/{self.width} -p {self.proto} -m comment --comment "{comment}" -m {self.proto}'
        return f"{match} --dport {self.plan.port} -j {target}"

    def at_port(self, number: int, comment: str, match: str = "") -> str:
        """The matches of a rule for what goes to a port of the node, without its target."""
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
        """Comment and verdict for outside traffic that no endpoint may take; None when one may."""
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
    """The jumps that lead there and to KUBE-FIREWALL, as Base.jumps has them."""
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
    """A jump with a comment; `match` comes before it."""
    return f'{match}{" " if match else ""}-m comment --comment "{comment}" -j {target}'
