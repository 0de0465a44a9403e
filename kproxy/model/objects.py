"""The objects that kproxy watches, with the fields that it reads.

msgspec decodes them straight from the API server's bytes: a field that is not named here costs nothing and harms
nothing, and null stands for an absent value, so newer and older servers are understood. The Structs are not tracked by
the garbage collector, so that 10,000 EndpointSlices stay small.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class Kind(StrEnum):
    """A kind of object that kproxy watches; the value is the `kind` of the API."""

    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"
    SERVICE_CIDR = "ServiceCIDR"


class Metadata(msgspec.Struct, gc=False, rename="camel"):
    name: str = ""
    namespace: str | None = None
    uid: str | None = None
    labels: dict[str, str | None] | None = None
    annotations: dict[str, str | None] | None = None
    resource_version: str | None = None
    deletion_timestamp: str | None = None


class ServicePort(msgspec.Struct, gc=False, rename="camel"):
    port: int | None = None
    name: str | None = None
    protocol: str | None = None
    node_port: int | None = None


class ClientIPConfig(msgspec.Struct, gc=False, rename="camel"):
    timeout_seconds: int | None = None


class SessionAffinityConfig(msgspec.Struct, gc=False, rename="camel"):
    client_ip: ClientIPConfig | None = msgspec.field(name="clientIP", default=None)


class ServiceSpec(msgspec.Struct, gc=False, rename="camel"):
    type: str | None = None
    cluster_ip: str | None = msgspec.field(name="clusterIP", default=None)
    cluster_ips: list[str] | None = msgspec.field(name="clusterIPs", default=None)
    ip_families: list[str] | None = None
    external_ips: list[str] | None = msgspec.field(name="externalIPs", default=None)
    ports: list[ServicePort] | None = None
    session_affinity: str | None = None
    session_affinity_config: SessionAffinityConfig | None = None
    load_balancer_source_ranges: list[str] | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    health_check_node_port: int | None = None


class LoadBalancerIngress(msgspec.Struct, gc=False, rename="camel"):
    ip: str | None = None
    hostname: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(msgspec.Struct, gc=False, rename="camel"):
    ingress: list[LoadBalancerIngress] | None = None


class ServiceStatus(msgspec.Struct, gc=False, rename="camel"):
    load_balancer: LoadBalancerStatus | None = None


class Service(msgspec.Struct, gc=False, rename="camel"):
    metadata: Metadata
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class Conditions(msgspec.Struct, gc=False, rename="camel"):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(msgspec.Struct, gc=False, rename="camel"):
    name: str = ""


class Hints(msgspec.Struct, gc=False, rename="camel"):
    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class SliceEndpoint(msgspec.Struct, gc=False, rename="camel"):
    addresses: list[str] | None = None
    conditions: Conditions | None = None
    node_name: str | None = None
    hints: Hints | None = None


class SlicePort(msgspec.Struct, gc=False, rename="camel"):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class EndpointSlice(msgspec.Struct, gc=False, rename="camel"):
    metadata: Metadata
    address_type: str | None = None
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None


class NodeAddress(msgspec.Struct, gc=False, rename="camel"):
    type: str = ""
    address: str = ""


class Taint(msgspec.Struct, gc=False, rename="camel"):
    key: str = ""
    effect: str | None = None


class NodeSpec(msgspec.Struct, gc=False, rename="camel"):
    pod_cidr: str | None = msgspec.field(name="podCIDR", default=None)
    pod_cidrs: list[str] | None = msgspec.field(name="podCIDRs", default=None)
    taints: list[Taint] | None = None


class NodeStatus(msgspec.Struct, gc=False, rename="camel"):
    addresses: list[NodeAddress] | None = None


class Node(msgspec.Struct, gc=False, rename="camel"):
    metadata: Metadata
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class ServiceCIDRSpec(msgspec.Struct, gc=False, rename="camel"):
    cidrs: list[str] | None = None


class ServiceCIDR(msgspec.Struct, gc=False, rename="camel"):
    metadata: Metadata
    spec: ServiceCIDRSpec | None = None


Object = Service | EndpointSlice | Node | ServiceCIDR

TYPES: dict[Kind, type[Any]] = {
    Kind.SERVICE: Service,
    Kind.ENDPOINT_SLICE: EndpointSlice,
    Kind.NODE: Node,
    Kind.SERVICE_CIDR: ServiceCIDR,
}
