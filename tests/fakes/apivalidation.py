"""Which objects and options the API stand-in accepts, and the defaults that it gives: a real API server's. Pure.

Of a real server's validation it has what is required, what has few values, what may not change, addresses and names;
not what depends on other objects, such as cluster IPs and node ports that are taken.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from tests.fakes.apistatus import Cause

PROTOCOLS = ("SCTP", "TCP", "UDP")
TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
ADDRESSES: Mapping[str, Any] = {"IPv4": IPv4Address, "IPv6": IPv6Address, "FQDN": str}
MOST_ENDPOINTS = 1000
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAMED_BY_LABEL = frozenset({"Service", "Namespace"})
_EVENT_WORDS = ("reportingController", "reportingInstance", "action", "reason")


def problems(api: str, kind: str, item: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[Cause]:
    """What is wrong with ITEM, which replaces BEFORE (None: which is new). api: the version that it came in.

    Raises TypeError, AttributeError or ValueError where a field has a wrong type.
    """
    found = [*_metadata(kind, item["metadata"])]
    match kind:
        case "Service":
            found += _service(item.get("spec") or {}, (before or {}).get("spec") or {})
        case "EndpointSlice":
            found += _slice(item, before)
        case "ServiceCIDR":
            found += _cidrs((item.get("spec") or {}).get("cidrs"))
        case "Event":
            found += _event(api, item)
    return found


def option_problems(query: Mapping[str, str], watch_lists: bool) -> list[Cause]:
    """What is wrong with the options of a list or watch. watch_lists: whether the server streams lists."""
    return [*(_watch_options(query, watch_lists) if is_true(query, "watch") else _list_options(query))]


def is_true(query: Mapping[str, str], option: str) -> bool:
    return query.get(option, "") in ("1", "t", "T", "true", "TRUE", "True")


def defaulted(kind: str, item: dict[str, Any]) -> dict[str, Any]:
    """ITEM with the defaults of those fields that proxies read."""
    if kind == "EndpointSlice":
        ports = [{"name": "", "protocol": "TCP", **port} for port in item.get("ports") or ()]
        return {**item, "ports": ports} if ports else item
    if kind != "Service":
        return item
    spec = {"type": "ClusterIP", "sessionAffinity": "None", **(item.get("spec") or {})}
    if spec["type"] != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec.get("ports"):
        spec["ports"] = [{"protocol": "TCP", "targetPort": port.get("port"), **port} for port in spec["ports"]]
    if (ip := spec.get("clusterIP")) and ip != "None":
        spec.setdefault("clusterIPs", [ip])
        spec.setdefault("ipFamilies", [f"IPv{ip_address(each).version}" for each in spec["clusterIPs"]])
        spec.setdefault("ipFamilyPolicy", "SingleStack" if len(spec["clusterIPs"]) == 1 else "RequireDualStack")
    return {**item, "spec": spec}


def _metadata(kind: str, metadata: Mapping[str, Any]) -> Iterator[Cause]:
    name = metadata.get("name") or metadata.get("generateName")
    if not name:
        yield _required("metadata.name", "name or generateName is required")
        return
    form = _LABEL if kind in _NAMED_BY_LABEL else _SUBDOMAIN
    if len(name) > 253 or not form.fullmatch(name):
        yield _invalid("metadata.name", name, "must consist of lower case alphanumeric characters or '-'")


def _service(spec: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[Cause]:
    sort, ip = spec.get("type", "ClusterIP"), spec.get("clusterIP")
    if sort not in TYPES:
        yield _unsupported("spec.type", sort, TYPES)
    if sort == "ExternalName":
        if not spec.get("externalName"):
            yield _required("spec.externalName")
        return
    if not spec.get("ports") and ip != "None":
        yield _required("spec.ports")
    yield from _service_ports(spec.get("ports") or [])
    if ip and ip != "None" and not _is_ip(ip, IPv4Address, IPv6Address):
        yield _invalid("spec.clusterIPs[0]", ip, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
    if before.get("clusterIP") and before.get("type") != "ExternalName" and ip != before["clusterIP"]:
        yield _invalid("spec.clusterIPs[0]", ip, "may not change once set")
    if (affinity := spec.get("sessionAffinity", "None")) not in ("ClientIP", "None"):
        yield _unsupported("spec.sessionAffinity", affinity, ("ClientIP", "None"))


def _service_ports(ports: list[Mapping[str, Any]]) -> Iterator[Cause]:
    seen = set[tuple[Any, ...]]()
    for number, port in enumerate(ports):
        field, name = f"spec.ports[{number}]", port.get("name", "")
        if not name and len(ports) > 1:
            yield _required(f"{field}.name")
        if not 1 <= port.get("port", 0) <= 65535:
            yield _invalid(f"{field}.port", port.get("port", 0), "must be between 1 and 65535, inclusive")
        protocol = port.get("protocol", "TCP")
        if protocol not in PROTOCOLS:
            yield _unsupported(f"{field}.protocol", protocol, PROTOCOLS)
        for key in ((name,), (protocol, port.get("port"))):
            if key in seen and key != ("",):
                yield Cause(field, "FieldValueDuplicate", f"Duplicate value: {key}")
            seen.add(key)


def _slice(item: Mapping[str, Any], before: Mapping[str, Any] | None) -> Iterator[Cause]:
    sort = item.get("addressType")
    if not sort:
        yield _required("addressType")
    elif sort not in ADDRESSES:
        yield _unsupported("addressType", sort, sorted(ADDRESSES))
    if before and sort != before.get("addressType"):
        yield _invalid("addressType", sort, "field is immutable")
    endpoints = item.get("endpoints") or []
    if len(endpoints) > MOST_ENDPOINTS:
        yield Cause("endpoints", "FieldValueTooMany", f"Too many: {len(endpoints)}: must have at most {MOST_ENDPOINTS}")
    for number, endpoint in enumerate(endpoints):
        field = f"endpoints[{number}].addresses"
        if not endpoint.get("addresses"):
            yield _required(field, "must contain at least 1 address")
        for place, address in enumerate(endpoint.get("addresses") or ()):
            if sort in ("IPv4", "IPv6") and not _is_ip(address, ADDRESSES[sort]):
                yield _invalid(f"{field}[{place}]", address, f"must be a valid {sort} address")
    for number, port in enumerate(item.get("ports") or ()):
        if port.get("protocol", "TCP") not in PROTOCOLS:
            yield _unsupported(f"ports[{number}].protocol", port["protocol"], PROTOCOLS)


def _cidrs(cidrs: list[str] | None) -> Iterator[Cause]:
    if not cidrs:
        yield _required("spec.cidrs", "at least one CIDR required")
    for number, cidr in enumerate(cidrs or ()):
        try:
            ip_network(cidr)
        except ValueError:
            yield _invalid(f"spec.cidrs[{number}]", cidr, "must be a valid CIDR value")


def _event(api: str, item: Mapping[str, Any]) -> Iterator[Cause]:
    new = api.startswith("events.k8s.io/")
    about = "regarding" if new else "involvedObject"
    namespace = (item.get(about) or {}).get("namespace") or "default"
    if namespace != item["metadata"].get("namespace"):
        yield _invalid("involvedObject.namespace", namespace, "does not match event.namespace")
    if not new:
        return
    for field in ("eventTime", *_EVENT_WORDS):
        if not item.get(field):
            yield _required(field)
        elif field in _EVENT_WORDS and len(item[field]) > 128:
            yield _invalid(field, item[field], "can have at most 128 characters")
    if item.get("type") not in ("Normal", "Warning"):
        yield _invalid("type", item.get("type", ""), "has invalid value")
    if len((item.get("note") or "").encode()) > 1024:
        yield _invalid("message", "", "can have at most 1024 characters")


def _list_options(query: Mapping[str, str]) -> Iterator[Cause]:
    match, version = query.get("resourceVersionMatch", ""), query.get("resourceVersion", "")
    field = "resourceVersionMatch"
    if match:
        if not version:
            yield _forbidden(field, f"{field} is forbidden unless resourceVersion is provided")
        if query.get("continue"):
            yield _forbidden(field, f"{field} is forbidden when continue is provided")
        if match not in ("Exact", "NotOlderThan"):
            yield _unsupported(field, match, ("", "Exact", "NotOlderThan"))
        if match == "Exact" and version == "0":
            yield _forbidden(field, f'{field} "exact" is forbidden for resourceVersion "0"')
    if "sendInitialEvents" in query:
        yield _forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list")


def _watch_options(query: Mapping[str, str], watch_lists: bool) -> Iterator[Cause]:
    match, given = query.get("resourceVersionMatch", ""), "sendInitialEvents" in query
    if given and match != "NotOlderThan":
        yield _forbidden(
            "resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        )
    if given and not watch_lists:
        why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
        yield _forbidden("sendInitialEvents", why)
    if match and not given:
        why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        yield _forbidden("resourceVersionMatch", why)
    if match and query.get("continue"):
        yield _forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided")


def _is_ip(text: str, *types: Any) -> bool:
    try:
        return isinstance(ip_address(text), types)
    except ValueError:
        return False


def _required(field: str, why: str = "") -> Cause:
    return Cause(field, "FieldValueRequired", f"Required value{': ' if why else ''}{why}")


def _invalid(field: str, value: Any, why: str) -> Cause:
    return Cause(field, "FieldValueInvalid", f'Invalid value: "{value}": {why}')


def _unsupported(field: str, value: Any, supported: Collection[str]) -> Cause:
    known = ", ".join(f'"{each}"' for each in supported)
    return Cause(field, "FieldValueNotSupported", f'Unsupported value: "{value}": supported values: {known}')


def _forbidden(field: str, why: str) -> Cause:
    return Cause(field, "FieldValueForbidden", f"Forbidden: {why}")
