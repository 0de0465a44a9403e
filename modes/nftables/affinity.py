"""Client IP affinity: sets and chains of one Service port. Pure.

Each endpoint has a set of its clients, which the packet path fills and whose elements time out. A set goes with its
endpoint, so one that left keeps nobody, in the same transaction. Whichever frontend a client uses, it is the same sets.
"""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.model.nft import (
    Chain,
    Dnat,
    Field,
    Goto,
    InSet,
    OneIn,
    ProtocolIs,
    Rule,
    Set,
    Type,
    Update,
)
from kproxy.model.plans import Endpoint, Family, ServicePlan
from kproxy.modes.nftables.chains import rules
from kproxy.modes.nftables.names import Kind, PortNames
from kproxy.modes.nftables.settings import Settings

__all__ = ["MAX_CLIENTS", "entry_chain", "list_chains", "sets"]

MAX_CLIENTS = 65535  # of one endpoint, nft's own default; those beyond it are served without affinity


def sets(plan: ServicePlan) -> tuple[Set, ...]:
    """One set of clients for each endpoint."""
    names, seconds = PortNames(plan.key), plan.affinity_seconds
    key = (Type.IPV4 if plan.family is Family.IPV4 else Type.IPV6,)
    return tuple(Set(names.clients(e, seconds), key, timeout=seconds, size=MAX_CLIENTS) for e in plan.reachable)


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
    names, protocol, client = PortNames(plan.key), ProtocolIs(plan.protocol.lower()), (Field.SADDR,)
    known = [names.clients(e, plan.affinity_seconds) for e in endpoints]
    targets = [Dnat(e.ip, e.port) for e in endpoints]
    for clients, target in zip(known, targets, strict=True):
        yield InSet(client, clients), protocol, Update(clients, client), target
    for remember in (True, False):  # again without, as a full set ends the rule
        for left, clients, target in zip(range(len(endpoints), 0, -1), known, targets, strict=True):
            chance = (OneIn(left),) if left > 1 else ()
            yield *chance, protocol, *((Update(clients, client),) if remember else ()), target
