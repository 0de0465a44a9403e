"""Renders the rules of iptables mode: one fragment per Service port, one base per node. Pure.

Decides: how a plan is expressed in kube-proxy's chains; the plan has all decisions about the Service. Leaves out: what
the kernel holds already (`kproxy.modes.xtables.chain_writer`). Rules are in the option order in which iptables-save
prints them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kproxy.kernel.constants import ADDRESS_BITS, INVALID_DROPPED, LOCALHOST_ACCEPTED
from kproxy.model.node_info import DetectLocal, DetectLocalBy, NodePortAddresses
from kproxy.model.plans import Endpoint, Family, PortKey, ServicePlan
from kproxy.modes.xtables import names
from kproxy.modes.xtables.rules import (
    GUARD,
    Base,
    Chain,
    Fragment,
    PortRules,
    SharedRule,
    filter_chains,
    filter_jumps,
    jump,
)

LAST_RULE = '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain"'


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that rules depend on besides the plans.

    masquerade_mark: the bit of the packet mark that requests masquerading, as a mask (1 << masqueradeBit).
    localhost_node_ports: whether node ports answer on 127.0.0.1 (IPv4 only; needs the sysctl route_localnet).
    nfacct: whether the kernel has nfacct counters, to count in them as kube-proxy does.
    comments: whether rules in the ports' own chains have comments; off in large clusters, where they cost memory.
    """

    family: Family
    masquerade_mark: int = 1 << 14
    masquerade_all: bool = False
    localhost_node_ports: bool = True
    detect_local: DetectLocal = field(default_factory=DetectLocal)
    node_port_addresses: NodePortAddresses = field(default_factory=NodePortAddresses)
    nfacct: bool = False
    tcp_be_liberal: bool = False
    random_fully: bool = True
    comments: bool = True

    @property
    def serves_localhost(self) -> bool:
        """Whether node ports answer on 127.0.0.1, so that the node needs route_localnet and its guard rule."""
        return self.family is Family.IPV4 and self.localhost_node_ports and self.node_port_addresses.loopback


# ---------------------------------------------------------------- one Service port


def render_port(plan: ServicePlan, settings: Settings) -> Fragment:
    """The chains and rules that one Service port needs."""
    port = _Port(plan, settings)
    return Fragment(tuple(port.chains()), tuple(port.shared()))


class _Port:
    """Renders one port; it holds the names that every part needs."""

    __slots__ = ("_chains", "_name", "_plan", "_proto", "_rules", "_settings", "_width")

    def __init__(self, plan: ServicePlan, settings: Settings) -> None:
        self._plan = plan
        self._settings = settings
        self._rules = PortRules(plan)
        self._name, self._proto, self._width = self._rules.name, self._rules.proto, self._rules.width
        self._chains = self._rules.chains

    # -- rules in the chains that all ports share

    def shared(self) -> Iterator[SharedRule]:
        plan, chains = self._plan, self._chains
        if plan.internal_endpoints:
            chain = chains.local if plan.internal_local else chains.cluster
            yield self._dispatch(plan.cluster_ip, "cluster IP", chain)
        if plan.has_endpoints:
            for ip in plan.external_ips:
                yield self._dispatch(ip, "external IP", chains.external)
            for ip in plan.load_balancer_ips:
                yield self._dispatch(
                    ip, "loadbalancer IP", chains.firewall if self._rules.firewalled else chains.external
                )
            if plan.node_port:
                yield from self._node_port()
        yield from self._rules.filtering()

    def _dispatch(self, ip: str, kind: str, chain: str) -> SharedRule:
        return SharedRule("nat", names.SERVICES, self._rules.to(ip, f"{self._name} {kind}", chain))

    def _node_port(self) -> Iterator[SharedRule]:
        rule = self._rules.at_port(self._plan.node_port, self._name)
        if self._settings.nfacct and self._settings.serves_localhost:
            count = f"-m nfacct --nfacct-name {LOCALHOST_ACCEPTED} -j {self._chains.external}"
            yield SharedRule("nat", names.NODE_PORTS, f"-d 127.0.0.0/8 {rule} {count}")
        yield SharedRule("nat", names.NODE_PORTS, f"{rule} -j {self._chains.external}")

    # -- chains of this port alone

    def chains(self) -> Iterator[Chain]:
        plan, chains = self._plan, self._chains
        sep = [(names.endpoint_chain(plan.key, e), e) for e in plan.reachable]
        of = {(e.ip, e.port): chain for chain, e in sep}
        for chain, endpoint in sep:
            yield Chain(chain, tuple(self._endpoint(chain, endpoint)))
        for name, uses, endpoints in (
            (chains.cluster, not plan.internal_local, plan.cluster),
            (chains.local, plan.internal_local, plan.local),
        ):
            if endpoints:
                head = self._masquerade_off_cluster(uses)
                yield Chain(name, (*head, *self._balance([(of[e.ip, e.port], e) for e in endpoints])))
        if plan.has_endpoints and plan.externally_accessible:
            yield Chain(chains.external, tuple(self._external()))
        if self._rules.firewalled:
            yield Chain(chains.firewall, tuple(self._firewall()))

    def _masquerade_off_cluster(self, uses_cluster_ip: bool) -> tuple[str, ...]:
        """Masquerades traffic to the cluster IP that does not come from a pod, so that replies come back this way."""
        plan, settings = self._plan, self._settings
        if not uses_cluster_ip:
            return ()
        cluster = f'-p {self._proto} -m comment --comment "{self._name} cluster IP" -m {self._proto}'
        tail = f"-d {plan.cluster_ip}/{self._width} {{}}{cluster} --dport {plan.port} -j {names.MARK_MASQ}"
        if settings.masquerade_all:
            return (tail.format(""),)
        if settings.detect_local.by is DetectLocalBy.CIDR:
            return (f"! -s {settings.detect_local.value} {tail.format('')}",)
        if settings.detect_local.by is DetectLocalBy.INTERFACE:
            return (tail.format(f"! -i {settings.detect_local.value} "),)
        return ()

    def _balance(self, endpoints: list[tuple[str, Endpoint]]) -> Iterator[str]:
        """Client IP affinity first, then an even choice: the i-th of n rules (from 0 on) matches with probability
        1/(n-i)."""
        if self._plan.affinity_seconds:
            for chain, endpoint in endpoints:
                recent = f"-m recent --rcheck --seconds {self._plan.affinity_seconds} --reap --name {chain}"
                yield f"{self._comment(f'{self._name} -> {endpoint}')}{recent} -j {chain}"
        left = len(endpoints)
        for chain, endpoint in endpoints:
            chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
            yield f"{self._comment(f'{self._name} -> {endpoint}')}{chance}-j {chain}"
            left -= 1

    def _endpoint(self, chain: str, endpoint: Endpoint) -> Iterator[str]:
        comment = self._comment(self._name)
        # An endpoint that connects to itself through the Service would see its own address and bypass the Service.
        yield f"-s {endpoint.ip}/{self._width} {comment}-j {names.MARK_MASQ}"
        recent = f"-m recent --set --name {chain} " if self._plan.affinity_seconds else ""
        yield f"-p {self._proto} {comment}{recent}-m {self._proto} -j DNAT --to-destination {endpoint}"

    def _external(self) -> Iterator[str]:
        plan, detect = self._plan, self._settings.detect_local
        about = f"{self._name} external destinations"
        if not plan.external_local:
            # The endpoint may be on another node, whose reply would bypass this one.
            yield f"{self._comment(f'masquerade traffic for {about}')}-j {names.MARK_MASQ}"
        else:
            cluster = self._chains.cluster
            if detect:
                source = f"-s {detect.value} " if detect.by is DetectLocalBy.CIDR else f"-i {detect.value} "
                yield f"{source}{self._comment(f'pod traffic for {about}')}-j {cluster}"
            local = "-m addrtype --src-type LOCAL"
            yield f"{self._comment(f'masquerade LOCAL traffic for {about}')}{local} -j {names.MARK_MASQ}"
            yield f"{self._comment(f'route LOCAL traffic for {about}')}{local} -j {cluster}"
        if plan.external_endpoints:
            yield f"-j {self._chains.local if plan.external_local else self._chains.cluster}"

    def _firewall(self) -> Iterator[str]:
        plan, name = self._plan, self._name
        comment = f'-m comment --comment "{name} loadbalancer IP"'
        for cidr in plan.source_ranges:
            yield f"-s {cidr} {comment} -j {self._chains.external}"
        if plan.node_in_source_ranges:
            # A load balancer may assign its IP to the node, whose own traffic then has it as source.
            for ip in plan.load_balancer_ips:
                yield f"-s {ip}/{self._width} {comment} -j {self._chains.external}"
        yield f'-m comment --comment "other traffic to {name} will be dropped by {names.PROXY_FIREWALL}"'

    def _comment(self, text: str) -> str:
        return f'-m comment --comment "{text}" ' if self._settings.comments else ""


# ---------------------------------------------------------------- the node


def render_base(settings: Settings) -> Base:
    """The chains, jumps and rules that a node needs regardless of its Services."""
    mark = f"{settings.masquerade_mark:#x}"
    shared: dict[tuple[str, str], tuple[str, ...]] = {
        **filter_chains(),
        ("nat", names.SERVICES): tuple(_node_port_jumps(settings)),
        ("nat", names.NODE_PORTS): (),
    }
    owned: dict[tuple[str, str], tuple[str, ...]] = {
        ("filter", names.FORWARD): tuple(_forward(settings, mark)),
        ("nat", names.MARK_MASQ): (f"-j MARK --set-xmark {mark}/{mark}",),
        ("nat", names.POSTROUTING): (
            f"-m mark ! --mark {mark}/{mark} -j RETURN",
            # Cleared, so that the packet is not masqueraded again when it comes back through another stack.
            f"-j MARK --set-xmark {mark}/0x0",
            '-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE'
            + (" --random-fully" if settings.random_fully else ""),
        ),
    }
    joint: dict[tuple[str, str], tuple[str, ...]] = {
        ("filter", names.FIREWALL): (GUARD,) if settings.serves_localhost else ()
    }
    return Base(owned, shared, joint, _jumps())


def _forward(settings: Settings, mark: str) -> Iterator[str]:
    if not settings.tcp_be_liberal:
        # An INVALID packet passes NAT unchanged and would make the client reset a good connection.
        count = f"-m nfacct --nfacct-name {INVALID_DROPPED} " if settings.nfacct else ""
        yield f"-m conntrack --ctstate INVALID {count}-j DROP"
    yield f'-m comment --comment "kubernetes forwarding rules" -m mark --mark {mark}/{mark} -j ACCEPT'
    established = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    yield f'-m comment --comment "kubernetes forwarding conntrack rule" {established}'


def _node_port_jumps(settings: Settings) -> Iterator[str]:
    addresses, ipv4 = settings.node_port_addresses, settings.family is Family.IPV4
    if addresses.match_all:
        # Node ports never answer on ::1: IPv6 has no route_localnet.
        skip = "" if ipv4 and settings.localhost_node_ports else f"! -d {'127.0.0.0/8' if ipv4 else '::1/128'} "
        yield f"{skip}{LAST_RULE} -m addrtype --dst-type LOCAL -j {names.NODE_PORTS}"
        return
    for ip in addresses.ips:
        loopback = ip.startswith("127.") if ipv4 else ip == "::1"
        if not loopback or (ipv4 and settings.localhost_node_ports):
            yield f"-d {ip}/{ADDRESS_BITS[settings.family]} {LAST_RULE} -j {names.NODE_PORTS}"


def _jumps() -> dict[tuple[str, str], tuple[str, ...]]:
    jumps = filter_jumps()
    firewall, *others = jumps["filter", "FORWARD"]
    portals = (jump("kubernetes service portals", names.SERVICES),)
    return {
        **jumps,
        ("filter", "FORWARD"): (firewall, jump("kubernetes forwarding rules", names.FORWARD), *others),
        ("nat", "PREROUTING"): portals,
        ("nat", "OUTPUT"): portals,
        ("nat", "POSTROUTING"): (jump("kubernetes postrouting rules", names.POSTROUTING),),
    }


# ---------------------------------------------------------------- whole tables


def text(base: Base, fragments: Iterable[tuple[PortKey, Fragment]]) -> str:
    """All rules as one iptables-save text, in the order of the ports' names."""
    tables: dict[str, dict[str, list[str]]] = {"filter": {}, "nat": {}}
    for table, chain in (*base.jumps, *base.shared, *base.owned, *base.joint):
        tables[table].setdefault(chain, [])
    for rules in (base.jumps, base.owned, base.joint):
        for (table, chain), lines in rules.items():
            tables[table][chain].extend(lines)
    for _, fragment in sorted(fragments, key=lambda pair: pair[0]):
        for name, lines in fragment.chains:
            tables["nat"].setdefault(name, []).extend(lines)
        for table, chain, rule in fragment.shared:
            tables[table][chain].append(rule)
    for (table, chain), lines in base.shared.items():
        tables[table][chain].extend(lines)
    return "".join(_table(name, chains) for name, chains in tables.items())


def _table(name: str, chains: dict[str, list[str]]) -> str:
    declared = "".join(f":{c} {'-' if c.startswith('KUBE-') else 'ACCEPT'} [0:0]\n" for c in chains)
    rules = "".join(f"-A {chain} {rule}\n" for chain, lines in chains.items() for rule in lines)
    return f"*{name}\n{declared}{rules}COMMIT\n"
