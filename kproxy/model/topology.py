"""Chooses the endpoints of a Service port that serve its traffic on this node.

A pure function of the endpoints, the Service's policies, and the node's name and zone. Sources: KEP-1669 (terminating
endpoints), KEP-2433 (zone hints), KEP-3015 (node hints), KEP-2086 (internal traffic policy).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum
from typing import NamedTuple

import msgspec

from kproxy.model.plans import Endpoint
from kproxy.model.slices import SliceAddress


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An endpoint, and its conditions and hints."""

    endpoint: Endpoint
    address: SliceAddress


class Choice(NamedTuple):
    """The endpoints for policy Cluster, for policy Local, and for either; and whether any is usable anywhere."""

    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    reachable: tuple[Endpoint, ...] = ()
    anywhere: bool = False


class _Hints(Enum):
    IGNORED = 0
    NODE = 1
    ZONE = 2


def choose(
    candidates: Collection[Candidate], uses_cluster: bool, uses_local: bool, node_name: str, zone: str
) -> Choice:
    """The endpoints among `candidates` for each traffic policy.

    uses_cluster, uses_local: whether the Service port has traffic under that policy; if not, its list stays empty.
    zone: the node's, "" when it has none.
    """
    cluster: list[Endpoint] = []
    hints = _Hints.IGNORED
    if uses_cluster:
        ready = [c for c in candidates if c.address.ready]
        hints = _usable_hints(ready, node_name, zone)
        hinted = ready if hints is _Hints.IGNORED else [c for c in ready if _hinted(c.address, hints, node_name, zone)]
        cluster = [c.endpoint for c in hinted]
        if not cluster:
            cluster = _draining(candidates)
    if not uses_local:
        return Choice(tuple(cluster), (), tuple(cluster), bool(cluster))
    on_node = [c for c in candidates if c.endpoint.local]
    local = [c.endpoint for c in on_node if c.address.ready] or _draining(on_node)
    if not uses_cluster:
        anywhere = bool(local) or any(_alive(c.address) for c in candidates)
        return Choice((), tuple(local), tuple(local), anywhere)
    return Choice(tuple(cluster), tuple(local), _union(cluster, local), bool(cluster))


def _usable_hints(ready: list[Candidate], node_name: str, zone: str) -> _Hints:
    """The kind of hints to follow: only one that every ready endpoint has, and that names this node or zone once."""
    if not ready or not (ready[0].address.node_hints or ready[0].address.zone_hints):
        return _Hints.IGNORED  # the usual case
    if all(c.address.node_hints for c in ready) and any(node_name in c.address.node_hints for c in ready):
        return _Hints.NODE
    # A node without a zone must not match a hint without a name.
    if zone and all(c.address.zone_hints for c in ready) and any(zone in c.address.zone_hints for c in ready):
        return _Hints.ZONE
    return _Hints.IGNORED


def _hinted(address: SliceAddress, hints: _Hints, node_name: str, zone: str) -> bool:
    return node_name in address.node_hints if hints is _Hints.NODE else zone in address.zone_hints


def _draining(candidates: Iterable[Candidate]) -> list[Endpoint]:
    """The endpoints that terminate but still serve, which are used when none is ready."""
    return [c.endpoint for c in candidates if c.address.serving and c.address.terminating]


def _alive(address: SliceAddress) -> bool:
    return address.ready or (address.serving and address.terminating)


def _union(cluster: list[Endpoint], local: list[Endpoint]) -> tuple[Endpoint, ...]:
    extra = set(local).difference(cluster)
    return tuple(sorted((*cluster, *extra), key=str)) if extra else tuple(cluster)
