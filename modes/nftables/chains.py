"""What chains do with traffic to a frontend, by the kind of the frontend. Pure.

The same for the chains that all ports share and for those of one port with client IP affinity: they differ only in the
last statement, which sends the packet to an endpoint.
"""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.model.node_info import DetectLocalBy
from kproxy.modes.nftables import names
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.names import Balancer, Kind
from kproxy.netfilter.objects import (
    AddressIn,
    Chain,
    DnatByMap,
    Drop,
    FibLocal,
    Field,
    Final,
    InSet,
    InterfaceIs,
    MarkSet,
    Match,
    Random,
    Rule,
)

ADDRESS_KEY: tuple[Field, ...] = (Field.DADDR, Field.PROTO, Field.DPORT)
NODE_PORT_KEY: tuple[Field, ...] = (Field.PROTO, Field.DPORT)
SOURCE_KEY = (*ADDRESS_KEY, Field.SADDR)


def balancer_chain(balancer: Balancer, settings: Settings) -> Chain:
    """The chain of all frontends that are treated alike and have as many endpoints."""
    key, target = ADDRESS_KEY, names.ENDPOINTS
    if balancer.kind.of_node_port:
        key, target = NODE_PORT_KEY, names.NODE_PORT_ENDPOINTS
    anywhere, here = (
        DnatByMap((*key, Random(count, first)), target) if count else None
        for count, first in ((balancer.anywhere, 0), (balancer.here, balancer.anywhere))
    )
    return Chain(balancer.name, tuple(rules(balancer.kind, balancer.firewall, anywhere, here, settings)))


def rules(kind: Kind, firewall: bool, anywhere: Final | None, here: Final | None, settings: Settings) -> Iterator[Rule]:
    """The rules for frontends of KIND.

    anywhere, here: what sends a packet to one of all endpoints, and for the local kinds to one of those on this node;
    None when there is none. firewall: only the frontend's sources are let through.
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
    """Whoever is within the cluster may go anywhere: it could as well use the cluster IP."""
    if anywhere:
        if within := _from_pod(settings):
            yield within, anywhere
        yield FibLocal(Field.SADDR), MarkSet(settings.masquerade_mark), anywhere
    yield (here or Drop(),)


def _from_pod(settings: Settings, negate: bool = False) -> Match | None:
    """Whether (or not) a packet comes from a pod of this cluster; None when that cannot be told."""
    detect = settings.detect_local
    if detect.by is DetectLocalBy.CIDR:
        return AddressIn(Field.SADDR, detect.value, negate)
    if detect.by is DetectLocalBy.INTERFACE:
        return InterfaceIs(detect.value.removesuffix("+"), detect.value.endswith("+"), negate)
    return None
