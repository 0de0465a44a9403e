"""Rules and elements of nftables mode, as values: of one Service port, of the node, and the whole table. Pure.

Decides nothing about Services: the plan has all decisions, and this module writes them down in the layout of
docs/nftables.md. Leaves out: what the kernel already holds, and how it gets there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import msgspec

from kproxy.kernel.constants import LOOPBACK_NETWORK
from kproxy.model.addresses import collapsed, is_loopback
from kproxy.model.plans import Endpoint, Family, Frontend, PortKey, ServicePlan
from kproxy.modes.nftables import chains, names
from kproxy.modes.nftables.chains import ADDRESS_KEY, NODE_PORT_KEY, balancer_chain
from kproxy.modes.nftables.fragments import Base, Claim, Fragment, Settings, Targets
from kproxy.modes.nftables.names import Balancer, Kind, PortNames
from kproxy.modes.userspace.listeners import LOOPBACK, localhost_listener
from kproxy.netfilter.objects import (
    AddressIn,
    BaseChain,
    Chain,
    Count,
    CtInvalid,
    CtTranslated,
    DnatByMap,
    Drop,
    Element,
    FibLocal,
    Field,
    Goto,
    Hook,
    InSet,
    Jump,
    Lookup,
    MarkClear,
    MarkHas,
    Masquerade,
    ProtocolIs,
    Reject,
    Rule,
    Set,
    SetKind,
    Type,
    Verdict,
)

MAX_COMMENT = 128  # characters, of nft's text; the names of a namespace, a Service and a port may have 189
# Priorities. Just after kube-proxy's and iptables' -100: should kube-proxy take the node back, its translations win,
# though it knows nothing of our table and leaves it.
DSTNAT, FILTER, SRCNAT = -99, 0, 100
COUNTED = ("tcp", "udp", "sctp")
"""The protocols of the rules that refuse node ports on loopback and count the packets, in their order."""


# ---------------------------------------------------------------- one Service port


def render_port(plan: ServicePlan, settings: Settings) -> Fragment:
    """The elements that one Service port needs, and with client IP affinity its sets and chains."""
    claims = tuple(_claims(plan, settings))
    hairpins = tuple(dict.fromkeys([e.ip for e in plan.reachable])) if plan.has_endpoints else ()
    if not (plan.affinity_seconds and plan.has_endpoints):
        return Fragment(claims, plan.cluster_ip, hairpins)
    own_chains = tuple(_own_chains(plan, claims, settings))
    return Fragment(claims, plan.cluster_ip, hairpins, (chains.client_set(plan),), own_chains)


def _own_chains(plan: ServicePlan, claims: Iterable[Claim], settings: Settings) -> Iterator[Chain]:
    """The chains of a port with affinity: one for each kind of frontend, and those that choose an endpoint."""
    entries = {(c.balancer.kind, c.balancer.firewall): None for c in claims if c.balancer}
    for kind, firewall in entries:
        yield chains.entry_chain(plan, kind, firewall, settings)
    yield from chains.endpoint_chains(plan)


def _claims(plan: ServicePlan, settings: Settings) -> Iterator[Claim]:
    """One claim for each frontend of the port; an address that is given twice counts as the first kind it has."""
    seen = {plan.cluster_ip}
    yield _claim(plan, plan.cluster_ip, Kind.CLUSTER, plan.internal_endpoints)
    kind = Kind.LOCAL if plan.external_local else Kind.EXTERNAL
    for ips, ranges in ((plan.external_ips, None), (plan.load_balancer_ips, _ranges(plan))):
        for ip in ips:
            if ip not in seen:
                seen.add(ip)
                yield _claim(plan, ip, kind, plan.cluster, ranges)
    if plan.node_port:
        claim = _claim(plan, "", Kind.NODE_LOCAL if plan.external_local else Kind.NODE_EXTERNAL, plan.cluster)
        yield claim._replace(loopback=tuple(_on_loopback(plan, settings))) if settings.refuses_localhost else claim


def _on_loopback(plan: ServicePlan, settings: Settings) -> Iterator[Element]:
    """What packets to the node port on loopback need: to get to the process that serves it, or else to be refused."""
    key = (plan.protocol.lower(), plan.node_port)
    yield Element(names.LOCALHOST_REFUSED, key)
    if settings.localhost_networks and localhost_listener(plan):
        yield Element(names.LOCALHOST_PORTS, key, (LOOPBACK[plan.family], plan.node_port))


def _claim(
    plan: ServicePlan, ip: str, kind: Kind, anywhere: tuple[Endpoint, ...], ranges: tuple[str, ...] | None = None
) -> Claim:
    """What one frontend needs to reach its endpoints, or to be refused. ip: "" for the node port; ranges: as `_ranges`
    returns them."""
    protocol, port = plan.protocol.lower(), plan.port if ip else plan.node_port
    frontend = Frontend(ip, port, plan.protocol)
    key = (ip, protocol, port) if ip else (protocol, port)
    here = plan.local if kind.local else ()
    comment = str(plan.key)[:MAX_COMMENT]
    vmap = names.SERVICES if ip else names.NODE_PORTS
    if not plan.has_endpoints:
        return Claim(frontend, Element(vmap, key, Verdict(names.REFUSE), comment))
    if not anywhere and not here:
        return Claim(frontend, Element(vmap, key, Verdict(), comment))
    balancer, verdict = _balancer(kind, len(anywhere), len(here), ranges is not None)
    sources = tuple([Element(names.SOURCES, (*key, cidr)) for cidr in ranges or ()])
    if plan.affinity_seconds:
        chain = PortNames(plan.key).entry(kind, balancer.firewall)
        return Claim(frontend, Element(vmap, key, Verdict(chain), comment), None, sources, balancer, own=True)
    targets = Targets(names.ENDPOINTS if ip else names.NODE_PORT_ENDPOINTS, key, anywhere + here)
    return Claim(frontend, Element(vmap, key, verdict, comment), targets, sources, balancer)


@functools.lru_cache(maxsize=4096)
def _balancer(kind: Kind, anywhere: int, here: int, firewall: bool) -> tuple[Balancer, Verdict]:
    """The chain that all such frontends share, and the verdict that sends packets there."""
    balancer = Balancer(kind, anywhere, here, firewall)
    return balancer, Verdict(balancer.name)


def _ranges(plan: ServicePlan) -> tuple[str, ...] | None:
    """The sources that may use the load balancer's addresses, without overlaps; None for all of them, () for none."""
    if not plan.restricts_sources:
        return None
    allowed = list(plan.source_ranges)
    if plan.node_in_source_ranges:
        # A load balancer may make its IP an address of the node, whose own traffic then carries it as source.
        allowed += plan.load_balancer_ips
    return _without_overlaps(allowed) or (() if plan.admits_nobody else None)


def _without_overlaps(cidrs: Iterable[str]) -> tuple[str, ...]:
    """CIDRS without overlaps, which the kernel's interval sets refuse; empty when they hold everything."""
    return tuple(cidr for cidr in collapsed(cidrs) if not cidr.endswith("/0"))


# ---------------------------------------------------------------- the node


def render_base(settings: Settings) -> Base:
    """The sets, maps and chains that a node needs whatever its Services are."""
    address = Type.IPV4 if settings.family is Family.IPV4 else Type.IPV6
    addresses = settings.node_port_addresses
    sets, elements = list(_maps(settings, address)), []
    if settings.service_cidrs:
        sets.append(Set(names.SERVICE_CIDRS, (address,), interval=True))
        cidrs = _without_overlaps(settings.service_cidrs)
        elements += [Element(names.SERVICE_CIDRS, (cidr,)) for cidr in cidrs]
    if not addresses.match_all:
        sets.append(Set(names.NODE_PORT_ADDRESSES, (address,)))
        elements += [Element(names.NODE_PORT_ADDRESSES, (ip,)) for ip in addresses.ips if not is_loopback(ip)]
    return Base(settings, tuple(sets), tuple(_chains(settings)), tuple(elements))


def _maps(settings: Settings, address: Type) -> Iterator[Set]:
    """The sets and maps that hold elements of Service ports."""
    frontend = (address, Type.PROTO, Type.PORT)
    target = (address, Type.PORT)
    yield Set(names.SERVICES, frontend, SetKind.VERDICTS)
    yield Set(names.NODE_PORTS, frontend[1:], SetKind.VERDICTS)
    yield Set(names.ENDPOINTS, (*frontend, Type.SLOT), SetKind.MAP, target)
    yield Set(names.NODE_PORT_ENDPOINTS, (*frontend[1:], Type.SLOT), SetKind.MAP, target)
    yield Set(names.SOURCES, (*frontend, address), interval=True)
    yield Set(names.CLUSTER_IPS, (address,))
    yield Set(names.HAIRPINS, (address, address))
    if settings.refuses_localhost:
        yield Set(names.LOCALHOST_REFUSED, frontend[1:])
    if settings.localhost_networks:
        yield Set(names.LOCALHOST_PORTS, frontend[1:], SetKind.MAP, target)


def _chains(settings: Settings) -> Iterator[Chain]:
    services = ((Jump(names.SERVICES),),)
    yield Chain(names.REFUSE, ((Reject(),),))
    if settings.refuses_localhost:
        yield Chain(names.LOCALHOST, tuple(_localhost(settings)))
        # A client on this node that gets an ICMPv6 error notices it only when it sends again, a second later.
        refused = tuple((ProtocolIs(p), Count(), Reject(tcp_reset=p == "tcp")) for p in COUNTED)
        yield Chain(names.LOCALHOST_REFUSE, refused)
    yield Chain(names.SERVICES, tuple(_services(settings)))
    yield Chain("nat-prerouting", services, BaseChain("nat", Hook.PREROUTING, DSTNAT))
    yield Chain("nat-output", services, BaseChain("nat", Hook.OUTPUT, DSTNAT))
    yield Chain("nat-postrouting", tuple(_postrouting(settings)), BaseChain("nat", Hook.POSTROUTING, SRCNAT))
    if not settings.tcp_be_liberal:
        # An INVALID packet passes NAT unchanged and would make the client reset a living connection.
        yield Chain("filter-forward", ((CtInvalid(), Drop()),), BaseChain("filter", Hook.FORWARD, FILTER))


def _services(settings: Settings) -> Iterator[Rule]:
    """NAT chains see the first packet of a connection only, so these rules concern new connections."""
    yield (Lookup(ADDRESS_KEY, names.SERVICES),)
    yield InSet((Field.DADDR,), names.CLUSTER_IPS), Reject()
    if settings.service_cidrs:
        yield InSet((Field.DADDR,), names.SERVICE_CIDRS), Drop()
    if settings.refuses_localhost:
        yield AddressIn(Field.DADDR, LOOPBACK_NETWORK[settings.family]), Goto(names.LOCALHOST)
    node_ports = Lookup(NODE_PORT_KEY, names.NODE_PORTS)
    if settings.node_port_addresses.match_all:
        yield AddressIn(Field.DADDR, LOOPBACK_NETWORK[settings.family], negate=True), FibLocal(Field.DADDR), node_ports
    else:
        yield InSet((Field.DADDR,), names.NODE_PORT_ADDRESSES), node_ports


def _localhost(settings: Settings) -> Iterator[Rule]:
    """Sends what is served on loopback to the one address that the process listens on, and refuses other node ports."""
    for network in settings.localhost_networks:
        yield AddressIn(Field.DADDR, network), DnatByMap(NODE_PORT_KEY, names.LOCALHOST_PORTS)
    yield InSet(NODE_PORT_KEY, names.LOCALHOST_REFUSED), Goto(names.LOCALHOST_REFUSE)


def _postrouting(settings: Settings) -> Iterator[Rule]:
    masquerade, mark = Masquerade(settings.random_fully), settings.masquerade_mark
    # Cleared, so that the packet is not masqueraded again when it comes back through another stack.
    yield MarkHas(mark), MarkClear(mark), masquerade
    # An endpoint that reaches itself through a Service would see its own address and answer past the Service.
    yield CtTranslated(), InSet((Field.SADDR, Field.DADDR), names.HAIRPINS), masquerade


def verdict_entries(fragment: Fragment) -> tuple[str, ...]:
    """One line for each frontend of the port, as nft prints it, its map first:
    services { 10.96.0.1 . tcp . 80 : goto cluster-3 }"""
    verdicts = (claim.verdict for claim in fragment.claims)
    return tuple(f"{e.set} {{ {' . '.join(str(part) for part in e.key)} : {e.data} }}" for e in verdicts)


# ---------------------------------------------------------------- the whole table


class Layout(msgspec.Struct, frozen=True):
    """The whole table: sets and chains by name, and the elements of each set, in the order of their ports' names."""

    family: Family
    sets: dict[str, Set]
    chains: dict[str, Chain]
    elements: dict[str, tuple[Element, ...]]


def lay_out(base: Base, fragments: Iterable[tuple[PortKey, Fragment]]) -> Layout:
    """The table for BASE and all FRAGMENTS. Of two ports that claim one frontend the first by name gets it."""
    sets = {s.name: s for s in base.sets}
    own: list[Chain] = []
    claimed: set[Frontend] = set()
    shared: dict[Element, None] = {}
    balancers: set[Balancer] = set()
    elements: dict[str, list[Element]] = {}
    for _, fragment in sorted(fragments, key=lambda pair: pair[0]):
        sets.update((s.name, s) for s in fragment.sets)
        own.extend(fragment.chains)
        shared.update(dict.fromkeys(fragment.shared))
        for claim in fragment.claims:
            if claim.frontend in claimed:
                continue
            claimed.add(claim.frontend)
            if claim.needs:
                balancers.add(claim.needs)
            for element in claim.elements:
                elements.setdefault(element.set, []).append(element)
    for element in (*base.elements, *shared):
        elements.setdefault(element.set, []).append(element)
    shared_chains = [balancer_chain(b, base.settings) for b in sorted(balancers)]
    by_name = {c.name: c for c in (*base.chains, *shared_chains, *own)}
    return Layout(base.settings.family, sets, by_name, {name: tuple(found) for name, found in elements.items()})
