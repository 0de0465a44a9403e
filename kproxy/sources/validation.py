"""Does for objects of manifests what the API server does for its own: sets defaults, and says what is wrong. Pure.

Only fields that kproxy reads are looked at. What the API server refuses and the model would take for something else
(`local` for Local) makes the object unusable; what merely leads to nothing is said, and the rest of the object is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, get_args

import msgspec

from kproxy.errors import InvalidObject
from kproxy.model.addresses import canonical_ip
from kproxy.model.objects import TYPES, EndpointSlice, Kind, Metadata, Node, Object, Service, ServiceCIDR, ServiceSpec
from kproxy.model.slices import HEADLESS_LABEL

Found = Iterator[tuple[str, str]]
"""Fields, and what is wrong with each."""

_NOBODY_ALLOCATES = "is missing, and without an API server nobody allocates one"
_POLICIES = ("Cluster", "Local")


def set_defaults(item: Object) -> None:
    """Set in place what the API server would set, as far as it means something else than nothing."""
    match item:
        case EndpointSlice():
            for port in item.ports or ():
                port.name = port.name or ""
        case Service(spec=ServiceSpec() as spec):
            if not spec.cluster_ip and spec.cluster_ips:
                spec.cluster_ip = spec.cluster_ips[0]
        case _:
            pass


def refusals(item: Object) -> list[InvalidObject]:
    """What makes ITEM unusable."""
    return _problems(Kind.SERVICE, item.metadata, _service_refusals(item)) if isinstance(item, Service) else []


def remarks(kind: Kind, value: dict[str, Any], item: Object) -> list[InvalidObject]:
    """What leads to nothing in ITEM, which was decoded from the plain VALUE."""
    return _problems(kind, item.metadata, (*_misspelled(value, TYPES[kind], ""), *_idle(item)))


def _problems(kind: Kind, metadata: Metadata, found: Found | Sequence[tuple[str, str]]) -> list[InvalidObject]:
    name = f"{metadata.namespace}/{metadata.name}" if metadata.namespace else metadata.name
    return [InvalidObject(kind, name, field, reason) for field, reason in found]


# ---------------------------------------------------------------- refused


def _service_refusals(service: Service) -> Found:
    spec = service.spec or ServiceSpec()
    yield from _one_of("spec.type", spec.type, ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"))
    yield from _one_of("spec.sessionAffinity", spec.session_affinity, ("None", "ClientIP"))
    yield from _one_of("spec.internalTrafficPolicy", spec.internal_traffic_policy, _POLICIES)
    yield from _one_of("spec.externalTrafficPolicy", spec.external_traffic_policy, _POLICIES)
    for i, family in enumerate(spec.ip_families or ()):
        yield from _one_of(f"spec.ipFamilies[{i}]", family, ("IPv4", "IPv6"))
    for i, (family, ip) in enumerate(zip(spec.ip_families or (), spec.cluster_ips or (spec.cluster_ip,), strict=False)):
        address = canonical_ip(ip or "")
        if address and family in ("IPv4", "IPv6") and (":" in address) is not (family == "IPv6"):
            yield f"spec.ipFamilies[{i}]", f"is {family}, and the cluster IP of that place is {ip}"
    first = (spec.cluster_ips or [spec.cluster_ip or ""])[0]
    if (canonical_ip(first) or first) != (canonical_ip(spec.cluster_ip or "") or spec.cluster_ip or ""):
        yield "spec.clusterIPs[0]", f"is {first!r} and must be spec.clusterIP, {spec.cluster_ip!r}"
    balancer = service.status and service.status.load_balancer
    for i, ingress in enumerate((balancer and balancer.ingress) or ()):
        yield from _one_of(f"status.loadBalancer.ingress[{i}].ipMode", ingress.ip_mode, ("VIP", "Proxy"))


def _one_of(field: str, value: str | None, values: Sequence[str]) -> Found:
    if value and value not in values:
        yield field, f"{value!r} is not {', '.join(values[:-1])} or {values[-1]}"


# ---------------------------------------------------------------- without effect


def _idle(item: Object) -> Found:
    match item:
        case Service():
            yield from _idle_service(item.spec or ServiceSpec())
        case EndpointSlice():
            if HEADLESS_LABEL in (item.metadata.labels or {}) or item.address_type == "FQDN":
                return
            if item.endpoints and item.ports is None:  # an empty list is what a controller writes for no port
                yield "ports", "is missing, so the endpoints serve no port of a Service"
        case ServiceCIDR():
            if not (item.spec and item.spec.cidrs):
                yield "spec.cidrs", "is missing"
        case Node():
            known = ("InternalIP", "ExternalIP", "Hostname", "InternalDNS", "ExternalDNS")
            for i, address in enumerate((item.status and item.status.addresses) or ()):
                yield from _one_of(f"status.addresses[{i}].type", address.type, known)


def _idle_service(spec: ServiceSpec) -> Found:
    if spec.type == "ExternalName" or spec.cluster_ip == "None":
        return
    if not spec.cluster_ip:
        yield "spec.clusterIP", _NOBODY_ALLOCATES
    if not spec.ports:
        yield "spec.ports", "is missing, so there is nothing to connect to"
    if spec.type == "NodePort":
        for i, port in enumerate(spec.ports or ()):
            if not port.node_port:
                yield f"spec.ports[{i}].nodePort", _NOBODY_ALLOCATES


def _misspelled(value: Any, kind: Any, path: str) -> Found:
    """Fields of VALUE, which was decoded as KIND, that differ from a known one in case, '-' or '_' alone."""
    if isinstance(value, list):
        for i, each in enumerate(value):
            yield from _misspelled(each, kind, f"{path}[{i}]")
    elif isinstance(value, dict):
        inner, plain = _fields(kind)
        for name, each in value.items():
            if (item := inner.get(name)) is not None:
                yield from _misspelled(each, item, f"{path}.{name}" if path else name)
            elif name not in inner and (meant := plain.get(_plain(str(name)))):
                yield f"{path}.{name}" if path else str(name), f"unknown field (is {meant} meant?)"


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[dict[str, type[msgspec.Struct] | None], dict[str, str]]:
    """The fields of an object, with the type of the objects in each, None where there are none; and their names by
    `_plain`."""
    inner = {field.encode_name: next(_structs(field.type), None) for field in msgspec.structs.fields(kind)}
    return inner, {_plain(name): name for name in inner}


def _structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for each in get_args(kind):
        yield from _structs(each)


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "").casefold()
