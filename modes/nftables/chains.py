"""Chains that pass traffic to a frontend on to an endpoint, by the kind of the frontend. Pure.

Two sorts of chains follow the same rules and differ only in the statement that chooses the endpoint: *balancer* chains,
which all ports share, look it up in a map; chains of one port with client IP affinity first look for an endpoint that
the client is used to.

The set of clients has an element for each client and endpoint of a port, by the number of the endpoint; the packet path
adds it, and it times out. So a client keeps its endpoint whichever frontend it uses, and an endpoint that was removed
keeps nobody, as no rule looks for its number any more. All ports with the same timeout share one set: a set for each
endpoint costs the kernel 4 ms and 1 MB.
"""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.model.node_info import DetectLocalBy
from kproxy.model.plans import Endpoint, Family, ServicePlan
from kproxy.modes.nftables import names
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.names import Balancer, Kind, PortNames, clients
from kproxy.netfilter.objects import (
    AddressIn,
    Chain,
    Dnat,
    DnatByMap,
    Drop,
    FibLocal,
    Field,
    Final,
    Goto,
    InSet,
    InterfaceIs,
    MarkSet,
    Match,
    OneIn,
    ProtocolIs,
    Random,
    Rule,
    Set,
    Type,
    Update,
)

MAX_CLIENTS = 3 << 17
"""Elements of one set of clients; further clients are served without affinity. Some kernels allocate room for all of
them at once: 4 MB of buckets."""

ADDRESS_KEY: tuple[Field, ...] = (Field.DADDR, Field.PROTO, Field.DPORT)
NODE_PORT_KEY: tuple[Field, ...] = (Field.PROTO, Field.DPORT)
SOURCE_KEY = (*ADDRESS_KEY, Field.SADDR)


def balancer_chain(balancer: Balancer, settings: Settings) -> Chain:
    """The chain that all frontends of one kind with as many endpoints share."""
    key, target = ADDRESS_KEY, names.ENDPOINTS
    if balancer.kind.of_node_port:
        key, target = NODE_PORT_KEY, names.NODE_PORT_ENDPOINTS
    anywhere, here = (
        DnatByMap((*key, Random(count, first)), target) if count else None
        for count, first in ((balancer.anywhere, 0), (balancer.here, balancer.anywhere))
    )
    return Chain(balancer.name, tuple(rules(balancer.kind, balancer.firewall, anywhere, here, settings)))


def rules(kind: Kind, firewall: bool, anywhere: Final | None, here: Final | None, settings: Settings) -> Iterator[Rule]:
    """The rules for frontends of `kind`.

    anywhere, here: the statement that chooses among all endpoints, and for the local kinds the one that chooses among
    those on this node; None when there are none. firewall: only the frontend's source ranges are let through.
    """
    mark = MarkSet(settings.masquerade_mark)
    if firewall:
        yield InSet(SOURCE_KEY, names.SOURCES, negate=True), Drop()
    if kind is Kind.CLUSTER:
        if settings.masquerade_all:
            yield (mark,)
        elif within := _from_pod(settings, negate=True):
            # Replies must find back through this node.
            yield within, mark
        if anywhere:
            yield (anywhere,)
    elif not kind.local:
        # The endpoint may be on another node, which would answer past this one.
        if anywhere:
            yield mark, anywhere
    else:
        yield from _policy_local(anywhere, here, settings)


def _policy_local(anywhere: Final | None, here: Final | None, settings: Settings) -> Iterator[Rule]:
    """Sources within the cluster may reach any endpoint, as they could by the cluster IP."""
    if anywhere:
        if within := _from_pod(settings):
            yield within, anywhere
        yield FibLocal(Field.SADDR), MarkSet(settings.masquerade_mark), anywhere
    yield (here or Drop(),)


def _from_pod(settings: Settings, negate: bool = False) -> Match | None:
    """Matches packets from pods of this cluster (or all others); None when the two cannot be distinguished."""
    detect = settings.detect_local
    if detect.by is DetectLocalBy.CIDR:
        return AddressIn(Field.SADDR, detect.value, negate)
    if detect.by is DetectLocalBy.INTERFACE:
        return InterfaceIs(detect.value.removesuffix("+"), detect.value.endswith("+"), negate)
    return None


# ---------------------------------------------------------------- client IP affinity


def client_set(plan: ServicePlan) -> Set:
    """The set of clients with the timeout of the port."""
    address = Type.IPV4 if plan.family is Family.IPV4 else Type.IPV6
    seconds = plan.affinity_seconds
    return Set(clients(seconds), (address, Type.SLOT), timeout=seconds, size=MAX_CLIENTS)


def entry_chain(plan: ServicePlan, kind: Kind, firewall: bool, settings: Settings) -> Chain:
    """The chain to which the port's frontends of `kind` jump; it continues in one of `endpoint_chains`."""
    names = PortNames(plan.key)
    anywhere, here = Goto(names.anywhere) if plan.cluster else None, Goto(names.here) if plan.local else None
    if kind is Kind.CLUSTER and plan.internal_local:
        anywhere = here
    return Chain(names.entry(kind, firewall), tuple(rules(kind, firewall, anywhere, here, settings)))


def endpoint_chains(plan: ServicePlan) -> Iterator[Chain]:
    """The chains that choose among all endpoints of the port, and among those on this node."""
    names = PortNames(plan.key)
    for name, endpoints in ((names.anywhere, plan.cluster), (names.here, plan.local)):
        if endpoints:
            yield Chain(name, tuple(_choose(plan, endpoints)))


def _choose(plan: ServicePlan, endpoints: tuple[Endpoint, ...]) -> Iterator[Rule]:
    """The client's former endpoint, else an even choice: the i-th of n gets 1/(n-i) of what is left."""
    names, protocol, held = PortNames(plan.key), ProtocolIs(plan.protocol.lower()), clients(plan.affinity_seconds)
    keys = [(Field.SADDR, Random(1, names.number(e))) for e in endpoints]
    targets = [Dnat(e.ip, e.port) for e in endpoints]
    for key, target in zip(keys, targets, strict=True):
        yield InSet(key, held), protocol, Update(held, key), target
    for remember in (True, False):  # again without, as a full set ends the rule
        for left, key, target in zip(range(len(endpoints), 0, -1), keys, targets, strict=True):
            chance = (OneIn(left),) if left > 1 else ()
            yield *chance, protocol, *((Update(held, key),) if remember else ()), target
