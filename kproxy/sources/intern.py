"""Makes decoded objects small: drops what kproxy never reads, and keeps values that many objects repeat only once.

Decides which labels and annotations are kept, and which values are shared. Objects are changed in place, right after
they were decoded and before anyone else has seen them; from then on they are immutable by convention.
"""

from __future__ import annotations

from sys import intern
from typing import Any

from kproxy.model.objects import EndpointSlice, Hints, Metadata, Object, SlicePort

LABELS = frozenset(
    {
        "kubernetes.io/hostname",
        "kubernetes.io/service-name",
        "service.kubernetes.io/headless",
        "service.kubernetes.io/service-proxy-name",
        "topology.kubernetes.io/zone",
    }
)
"""The labels that kproxy reads, whatever the kind of object."""
ANNOTATIONS = frozenset({"endpoints.kubernetes.io/last-change-trigger-time", "lint.kproxy.io/ignore"})
"""The annotations that kproxy reads."""
_REMEMBERED = 4096


class Interner:
    """Interns the values of many objects, and remembers at most 4,096 of them. For one thread."""

    def __init__(self) -> None:
        self._shared: dict[tuple[Any, ...], Any] = {}

    def intern(self, item: Object) -> None:
        """Make `item` smaller in place; its meaning stays."""
        drop_unread_metadata(item.metadata)
        if isinstance(item, EndpointSlice):
            self._intern_slice(item)

    def _intern_slice(self, item: EndpointSlice) -> None:
        shared = self._shared
        if len(shared) > _REMEMBERED:
            shared.clear()
        if item.ports:
            item.ports = shared.setdefault(_ports_key(item.ports), item.ports)
        for endpoint in item.endpoints or ():
            if endpoint.node_name is not None:
                endpoint.node_name = intern(endpoint.node_name)
            if (c := endpoint.conditions) is not None:
                endpoint.conditions = shared.setdefault((c.ready, c.serving, c.terminating), c)
            if (h := endpoint.hints) is not None:
                endpoint.hints = shared.setdefault(_hints_key(h), h)


def drop_unread_metadata(metadata: Metadata) -> None:
    """Drop labels and annotations that kproxy does not read, in place. Enough for objects that are not kept."""
    if metadata.labels is not None:
        metadata.labels = _only(metadata.labels, LABELS)
    if metadata.annotations is not None:
        metadata.annotations = _only(metadata.annotations, ANNOTATIONS)
    if metadata.namespace is not None:
        metadata.namespace = intern(metadata.namespace)


def _only(values: dict[str, str | None], wanted: frozenset[str]) -> dict[str, str | None] | None:
    return {k: v for k, v in values.items() if k in wanted} or None


# The first word of a key keeps the values of different types apart: conditions have none, being three booleans.


def _ports_key(ports: list[SlicePort]) -> tuple[Any, ...]:
    return ("ports", *[(p.name, p.protocol, p.port) for p in ports])


def _hints_key(hints: Hints) -> tuple[Any, ...]:
    zones, nodes = hints.for_zones, hints.for_nodes
    return (
        "hints",
        None if zones is None else tuple([z.name for z in zones]),
        None if nodes is None else tuple([n.name for n in nodes]),
    )
