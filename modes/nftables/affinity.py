"""Client IP affinity: chains of one Service port, and the set that holds the clients of all. Pure.

An element of the set is a client and the number of an endpoint of a port; the packet path adds it, and it times out. So
a client keeps its endpoint whichever frontend it uses, and an endpoint that left keeps nobody, as no rule asks for it
any more. One set for all with the same timeout: a set of its own for each endpoint costs the kernel 4 ms and 1 MB.
"""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.model.plans import Endpoint, Family, ServicePlan
from kproxy.modes.nftables.chains import rules
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.names import Kind, PortNames, clients
from kproxy.netfilter.objects import Chain, Dnat, Field, Goto, InSet, OneIn, ProtocolIs, Random, Rule, Set, Type, Update

MAX_CLIENTS = 3 << 17
"""Of one set; those beyond it are served without affinity. Some kernels make room for all at once: 4 MB of buckets."""


def client_set(plan: ServicePlan) -> Set:
    """The set of clients with the timeout that the port asks for."""
    address = Type.IPV4 if plan.family is Family.IPV4 else Type.IPV6
    seconds = plan.affinity_seconds
    return Set(clients(seconds), (address, Type.SLOT), timeout=seconds, size=MAX_CLIENTS)


def entry_chain(plan: ServicePlan, kind: Kind, firewall: bool, settings: Settings) -> Chain:
    """The chain to which the port's frontends of KIND lead; it goes on to one of `list_chains`."""
    names = PortNames(plan.key)
    anywhere, here = Goto(names.anywhere) if plan.cluster else None, Goto(names.here) if plan.local else None
    if kind is Kind.CLUSTER and plan.internal_local:
        anywhere = here
    return Chain(names.entry(kind, firewall), tuple(rules(kind, firewall, anywhere, here, settings)))


def list_chains(plan: ServicePlan) -> Iterator[Chain]:
    """The chains that choose among all endpoints, and among those on this node."""
    names = PortNames(plan.key)
    for name, endpoints in ((names.anywhere, plan.cluster), (names.here, plan.local)):
        if endpoints:
            yield Chain(name, tuple(_choose(plan, endpoints)))


def _choose(plan: ServicePlan, endpoints: tuple[Endpoint, ...]) -> Iterator[Rule]:
    """The endpoint that the client is used to, else an even choice: the i-th of n gets 1/(n-i) of what is left."""
    names, protocol, held = PortNames(plan.key), ProtocolIs(plan.protocol.lower()), clients(plan.affinity_seconds)
    keys = [(Field.SADDR, Random(1, names.number(e))) for e in endpoints]
    targets = [Dnat(e.ip, e.port) for e in endpoints]
    for key, target in zip(keys, targets, strict=True):
        yield InSet(key, held), protocol, Update(held, key), target
    for remember in (True, False):  # again without, as a full set ends the rule
        for left, key, target in zip(range(len(endpoints), 0, -1), keys, targets, strict=True):
            chance = (OneIn(left),) if left > 1 else ()
            yield *chance, protocol, *((Update(held, key),) if remember else ()), target
