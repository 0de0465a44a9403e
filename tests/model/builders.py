"""Short ways to write objects as the API server would send them: keyword arguments are the API's own field names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from kproxy.model import objects
from kproxy.model.events import Changed, Deleted, Listed, ListPage
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Kind
from kproxy.model.planner import plan_service
from kproxy.model.plans import Family, ServicePlan
from kproxy.model.slices import SERVICE_LABEL
from kproxy.model.state import ClusterState, ServiceName

NODE = "node1"
ZONE = "zone-a"
HTTP = {"name": "http", "port": 80}
DUAL = ["10.96.0.1", "fd00:96::1"]


def service(name: str = "web", namespace: str | None = "default", /, **spec: Any) -> objects.Service:
    """A ClusterIP Service on 10.96.0.1 with port http; `labels`, `ingress` and everything of its spec may be given."""
    labels, ingress = spec.pop("labels", None), spec.pop("ingress", None)
    raw = {
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"clusterIP": "10.96.0.1", "ports": [HTTP], **spec},
        "status": {"loadBalancer": {"ingress": ingress}},
    }
    return msgspec.convert(raw, objects.Service)


def endpoint(ip: str, node: str | None = NODE, conditions: str | None = None, **more: Any) -> dict[str, Any]:
    """An endpoint of a slice. conditions: "ready", "draining" (terminates, still serves), "dead"; None leaves them out.

    zones, nodes: its hints.
    """
    shapes = {
        "ready": {"ready": True, "serving": True, "terminating": False},
        "draining": {"ready": False, "serving": True, "terminating": True},
        "dead": {"ready": False, "serving": False, "terminating": False},
    }
    zones, nodes = more.pop("zones", ()), more.pop("nodes", ())
    hints = {"forZones": [{"name": z} for z in zones], "forNodes": [{"name": n} for n in nodes]}
    shape = shapes[conditions] if conditions else None
    return {"addresses": [ip], "nodeName": node, "conditions": shape, "hints": hints, **more}


def slice_(
    name: str = "web-1",
    endpoints: Iterable[dict[str, Any]] | None = (),
    service: str | None = "web",
    /,
    *,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    namespace: str | None = "default",
    **fields: Any,
) -> objects.EndpointSlice:
    """An IPv4 EndpointSlice of Service web with port http on 8080."""
    own = {SERVICE_LABEL: service} if service is not None else {}
    raw = {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {**own, **(labels or {})},
            "annotations": annotations,
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": None if endpoints is None else list(endpoints),
        **fields,
    }
    return msgspec.convert(raw, objects.EndpointSlice)


def node(name: str = NODE, zone: str | None = ZONE, **fields: Any) -> objects.Node:
    labels = {"topology.kubernetes.io/zone": zone} if zone else None
    raw = {"metadata": {"name": name, "labels": labels, **fields.pop("metadata", {})}, **fields}
    return msgspec.convert(raw, objects.Node)


def cidr(name: str, *cidrs: str) -> objects.ServiceCIDR:
    return msgspec.convert({"metadata": {"name": name}, "spec": {"cidrs": list(cidrs)}}, objects.ServiceCIDR)


KINDS: dict[type[Any], Kind] = {
    objects.Service: Kind.SERVICE,
    objects.EndpointSlice: Kind.ENDPOINT_SLICE,
    objects.Node: Kind.NODE,
    objects.ServiceCIDR: Kind.SERVICE_CIDR,
}


def changed(item: objects.Object) -> Changed:
    return Changed(KINDS[type(item)], item)


def deleted(item: objects.Object) -> Deleted:
    return Deleted(KINDS[type(item)], item.metadata.namespace or "default", item.metadata.name)


def listed(kind: Kind, *items: objects.Object, unreadable: Iterable[str] = ()) -> Listed:
    return Listed(kind, items, frozenset(unreadable))


def in_pages(kind: Kind, items: Sequence[objects.Object], size: int) -> Iterator[ListPage | Listed]:
    """The same list in pages of `size` objects."""
    names: set[str] = set()
    while len(items) > size:
        page, items = tuple(items[:size]), items[size:]
        names.update(f"{o.metadata.namespace or 'default'}/{o.metadata.name}" for o in page)
        yield ListPage(kind, page)
    yield Listed(kind, tuple(items), delivered=frozenset(names))


def cluster(*items: objects.Object, node_name: str = NODE) -> ClusterState:
    """A state in which all kinds are listed, with just these objects and nothing dirty."""
    state = ClusterState(node_name)
    for kind in Kind:
        state.apply(listed(kind, *(i for i in items if KINDS[type(i)] is kind)))
    state.take_dirty()
    return state


def plans(*items: objects.Object, name: str = "web", zone: str = ZONE) -> list[ServicePlan]:
    """The plans of one Service of namespace default in a cluster of these objects."""
    here = NodeInfo(NODE, zone, ("172.18.0.2", "fd00:18::2"))
    return plan_service(cluster(*items), ServiceName("default", name), here)


def plan(*items: objects.Object, family: Family = Family.IPV4, zone: str = ZONE) -> ServicePlan:
    """The only plan of Service web in a family."""
    (found,) = (p for p in plans(*items, zone=zone) if p.family is family)
    return found
