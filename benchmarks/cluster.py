"""A cluster of any size, as the API server would send it. Pure, and the same for the same arguments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import msgspec

from kproxy.model.objects import Kind
from kproxy.model.plans import Family

NODE = "node-000"  # where kproxy runs
NODES = 100  # endpoints are spread evenly over these
ZONES = 3
PORT = 8080

_CLUSTER_IP = {Family.IPV4: int(IPv4Address("10.96.1.0")), Family.IPV6: int(IPv6Address("fd00:96::100"))}
_POD_IP = {Family.IPV4: int(IPv4Address("10.128.0.0")), Family.IPV6: int(IPv6Address("fd00:244::"))}
_WHEN = "2025-06-01T12:00:00Z"


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a cluster: Services of one TCP port each, and the endpoints that each has in each family."""

    services: int
    endpoints: int = 5
    families: tuple[Family, ...] = (Family.IPV4,)

    @property
    def ports(self) -> int:
        """Service ports over all families."""
        return self.services * len(self.families)


def service(shape: Shape, number: int) -> dict[str, Any]:
    """Service `number`, with the fields that a real one carries along and kproxy does not read."""
    ips = [_text(family, _CLUSTER_IP[family] + number) for family in shape.families]
    return {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": _metadata(f"service-{number:05}", {"app": f"app-{number:05}"}),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ips[0],
            "clusterIPs": ips,
            "ipFamilies": [str(family) for family in shape.families],
            "ipFamilyPolicy": "RequireDualStack" if len(ips) > 1 else "SingleStack",
            "selector": {"app": f"app-{number:05}"},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": PORT}],
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(shape: Shape, number: int, family: Family, ready: int | None = None) -> dict[str, Any]:
    """The slice of Service `number` in `family`; only the first `ready` endpoints (default: all) are ready."""
    count = shape.endpoints if ready is None else ready
    labels = {"kubernetes.io/service-name": f"service-{number:05}", "app": f"app-{number:05}"}
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": _metadata(slice_name(number, family), labels),
        "addressType": str(family),
        "endpoints": [_endpoint(shape, number, i, family, i < count) for i in range(shape.endpoints)],
        "ports": [{"name": "http", "protocol": "TCP", "port": PORT}],
    }


def slice_name(number: int, family: Family) -> str:
    """Of the slice of Service `number` in `family`."""
    return f"service-{number:05}-{family.lower()}"


def node() -> dict[str, Any]:
    """The node that kproxy runs on."""
    metadata = _metadata(NODE, {"topology.kubernetes.io/zone": "zone-0", "kubernetes.io/hostname": NODE})
    del metadata["namespace"]
    addresses = [{"type": "InternalIP", "address": "192.0.2.10"}, {"type": "InternalIP", "address": "2001:db8::10"}]
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": metadata,
        "spec": {"podCIDR": "10.128.0.0/24", "podCIDRs": ["10.128.0.0/24", "fd00:244::/64"]},
        "status": {"addresses": addresses},
    }


def items(shape: Shape, kind: Kind) -> Iterator[dict[str, Any]]:
    """All objects of one kind."""
    match kind:
        case Kind.SERVICE:
            return (service(shape, i) for i in range(shape.services))
        case Kind.ENDPOINT_SLICE:
            return (endpoint_slice(shape, i, family) for i in range(shape.services) for family in shape.families)
        case Kind.NODE:
            return iter([node()])
        case Kind.SERVICE_CIDR:
            return iter(())


def body(shape: Shape, kind: Kind) -> bytes:
    """The server's answer to a list of one kind, in one page."""
    return msgspec.json.encode(
        {"kind": f"{kind}List", "metadata": {"resourceVersion": "1"}, "items": list(items(shape, kind))}
    )


def _endpoint(shape: Shape, number: int, i: int, family: Family, ready: bool) -> dict[str, Any]:
    at = number * shape.endpoints + i
    where = at % NODES
    return {
        "addresses": [_text(family, _POD_IP[family] + at + 1)],
        "conditions": {"ready": ready, "serving": ready, "terminating": False},
        "nodeName": f"node-{where:03}",
        "zone": f"zone-{where % ZONES}",
        "targetRef": {"kind": "Pod", "namespace": "default", "name": f"pod-{at:06}", "uid": _uid(at)},
    }


def _metadata(name: str, labels: dict[str, str]) -> dict[str, Any]:
    fields = {"f:metadata": {"f:labels": {f"f:{key}": {} for key in labels}}, "f:spec": {"f:ports": {}}}
    return {
        "name": name,
        "namespace": "default",
        "uid": _uid(int.from_bytes(name.encode()[-6:])),
        "resourceVersion": "1",
        "generation": 1,
        "creationTimestamp": _WHEN,
        "labels": labels,
        "managedFields": [
            {
                "manager": "controller-manager",
                "operation": "Update",
                "apiVersion": "v1",
                "time": _WHEN,
                "fieldsType": "FieldsV1",
                "fieldsV1": fields,
            }
        ],
    }


def _uid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number & (2**48 - 1):012x}"


def _text(family: Family, number: int) -> str:
    return str(IPv4Address(number) if family is Family.IPV4 else IPv6Address(number))
