"""Turns an EndpointSlice into the part that plans need, in a form that is small in memory.

A slice whose service, family or size is wrong is refused; a bad address or port in it costs only itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import msgspec

from kproxy.errors import InvalidObject, UnusedObject
from kproxy.model import objects
from kproxy.model.addresses import canonical_ip
from kproxy.model.plans import FAMILIES, PROTOCOLS, Family, Protocol
from kproxy.model.services import unusable_name

SERVICE_LABEL = "kubernetes.io/service-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
"""EndpointSlices with this label are a headless Service's, and no proxy's; on a Service it means nothing."""
MAX_ENDPOINTS = 1000  # the API's own limit, discovery.k8s.io/v1


class SliceAddress(msgspec.Struct, frozen=True, gc=False):
    """One endpoint of a slice: its address, node ("" when unknown), conditions and hints."""

    ip: str
    node: str = ""
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()


class Slice(msgspec.Struct, frozen=True, gc=False):
    """One EndpointSlice of one Service. ports: (name, protocol, port)."""

    service: str
    family: Family
    ports: tuple[tuple[str, Protocol, int], ...]
    addresses: tuple[SliceAddress, ...]


def parse(source: objects.EndpointSlice) -> tuple[Slice | None, list[InvalidObject]]:
    """The part of an EndpointSlice that plans need, None when it is unusable or not for this proxy; its problems."""
    reader = _Reader(source)
    return reader.slice(), reader.problems


class _Reader:
    def __init__(self, source: objects.EndpointSlice) -> None:
        self.problems: list[InvalidObject] = []
        self._source = source
        self._name = f"{source.metadata.namespace or 'default'}/{source.metadata.name}"

    def slice(self) -> Slice | None:
        source = self._source
        labels = source.metadata.labels or {}
        if HEADLESS_LABEL in labels or source.address_type == "FQDN":
            return None
        family = FAMILIES.get(source.address_type or "")
        if family is None:
            self._problem("addressType", f"{source.address_type!r} is not IPv4, IPv6 or FQDN")
            return None
        service = labels.get(SERVICE_LABEL)
        if not service:
            field, reason = f"metadata.labels[{SERVICE_LABEL}]", "is missing, so the slice belongs to no Service"
            self.problems.append(UnusedObject("EndpointSlice", self._name, field, reason))
            return None
        if why := unusable_name(service):
            self._problem(f"metadata.labels[{SERVICE_LABEL}]", why)
            return None
        if len(source.endpoints or ()) > MAX_ENDPOINTS:
            self._problem("endpoints", f"{len(source.endpoints or ())} are more than the {MAX_ENDPOINTS} of the API")
            return None
        return Slice(service, family, tuple(self._ports()), tuple(self._addresses(family)))

    def _ports(self) -> Iterator[tuple[str, Protocol, int]]:
        for i, port in enumerate(self._source.ports or ()):
            if port.port is None or port.name is None:
                continue  # "all ports", and ports that no Service port can name, do not concern a Service proxy
            if not 0 < port.port < 65536:
                self._problem(f"ports[{i}].port", f"{port.port} is not between 1 and 65535")
                continue
            protocol = PROTOCOLS.get(port.protocol or "TCP")
            if protocol is None:
                self._problem(f"ports[{i}].protocol", f"{port.protocol!r} is not TCP, UDP or SCTP")
                continue
            yield sys.intern(port.name), protocol, port.port

    def _addresses(self, family: Family) -> Iterator[SliceAddress]:
        is_ipv6 = family is Family.IPV6
        for i, endpoint in enumerate(self._source.endpoints or ()):
            if not endpoint.addresses:
                self._problem(f"endpoints[{i}].addresses", "is empty")
                continue
            text = endpoint.addresses[0]  # by the API only the first has a meaning
            ip = canonical_ip(text)
            if ip is None:
                self._problem(f"endpoints[{i}].addresses[0]", f"{text!r} is not an IP address")
                continue
            if (":" in ip) is not is_ipv6:
                self._problem(f"endpoints[{i}].addresses[0]", f"{text!r} is not of family {family}")
                continue
            # By the API an absent condition means ready, serving, and not terminating.
            c, hints = endpoint.conditions, endpoint.hints
            yield SliceAddress(
                ip,
                sys.intern(endpoint.node_name or ""),
                c is None or c.ready is not False,
                c is None or c.serving is not False,
                c is not None and c.terminating is True,
                _names(hints.for_zones) if hints else (),
                _names(hints.for_nodes) if hints else (),
            )

    def _problem(self, field: str, reason: str) -> None:
        self.problems.append(InvalidObject("EndpointSlice", self._name, field, reason))


def _names(hints: list[objects.Hint] | None) -> tuple[str, ...]:
    return tuple(sys.intern(h.name) for h in hints) if hints else ()
