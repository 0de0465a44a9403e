"""The plan of each Service port in each IP family: its addresses, its endpoints, and what happens to its traffic.

A plan holds every decision that Kubernetes' Service semantics asks for, so that a mode only has to translate it. Plans
are immutable values; two equal plans need the same rules.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec


class Family(StrEnum):
    """An IP family, named as in Service.spec.ipFamilies."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"


class Protocol(StrEnum):
    """A Service port's protocol; the value is the API's, `.value.lower()` is the kernel tools'."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


FAMILIES = {family.value: family for family in Family}
PROTOCOLS = {protocol.value: protocol for protocol in Protocol}
"""By the API's names; ten times as fast as calling the classes."""


class PortKey(NamedTuple):
    """Identifies a Service port within one IP family. `port` is the port's name, "" when it has none."""

    namespace: str
    name: str
    port: str
    protocol: Protocol

    def __str__(self) -> str:
        """namespace/name or namespace/name:port, as kube-proxy writes it in comments and hashes it into chain names."""
        return f"{self.namespace}/{self.name}:{self.port}" if self.port else f"{self.namespace}/{self.name}"


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """An address and port that serves a Service port. local: it runs on this node."""

    ip: str
    port: int
    local: bool = False

    def __str__(self) -> str:
        """10.0.0.1:80 or [fd00::1]:80"""
        return address_port(self.ip, self.port)


class ServicePlan(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One Service port in one IP family.

    All addresses are of the family and in canonical text. The endpoint lists are sorted and free of duplicates:
    `cluster` serves traffic under policy Cluster (empty when nothing uses that policy), `local` under policy Local
    (empty when nothing uses it), `reachable` is their union. Readiness, termination and hints are accounted for.

    has_endpoints: the Service has a usable endpoint somewhere in the cluster, on this node or not. When it is false
    traffic is rejected; when it is true and the list of a policy is empty, that policy's traffic is dropped.
    source_ranges: loadBalancerSourceRanges of this family; empty means that every source may connect, unless
    admits_nobody: ranges are asked for and none of this family could be read.
    node_in_source_ranges: this node's own IP lies in one of them.
    affinity_seconds: the timeout of client IP affinity, 0 without affinity.
    health_check_node_port: 0 unless the Service asks for one (LoadBalancer with policy Local).
    still_serving: for UDP and SCTP, endpoints that serve but get no new flows here (they terminate, or hints point
    elsewhere); existing flows to them are left alone.
    ready_local_ips: of the ready endpoints on this node; empty without a health check node port.
    all_local: all endpoints of the port on this node, usable or not, sorted.
    endpoint_count: the number of endpoints of the port, usable or not; the size of a cluster is their sum.
    """

    key: PortKey
    family: Family
    cluster_ip: str
    port: int
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    admits_nobody: bool = False
    node_in_source_ranges: bool = False
    affinity_seconds: int = 0
    internal_local: bool = False
    external_local: bool = False
    health_check_node_port: int = 0
    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    reachable: tuple[Endpoint, ...] = ()
    has_endpoints: bool = False
    still_serving: tuple[Endpoint, ...] = ()
    ready_local_ips: tuple[str, ...] = ()
    all_local: tuple[Endpoint, ...] = ()
    endpoint_count: int = 0

    @property
    def protocol(self) -> Protocol:
        return self.key.protocol

    @property
    def externally_accessible(self) -> bool:
        """Whether the port has an address besides its cluster IP: a node port, an external or a load balancer's IP."""
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)

    @property
    def restricts_sources(self) -> bool:
        """Whether only some sources, or none, may use the load balancer's addresses."""
        return self.admits_nobody or bool(self.source_ranges)

    @property
    def internal_endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints of traffic to the cluster IP."""
        return self.local if self.internal_local else self.cluster

    @property
    def external_endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints of traffic to node ports, external and load balancer IPs."""
        return self.local if self.external_local else self.cluster


def address_port(ip: str, port: int) -> str:
    """ip:port, with brackets around an IPv6 address."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


class Frontend(NamedTuple):
    """An address and port at which a Service port is reached; ip "" stands for a node port."""

    ip: str
    port: int
    protocol: Protocol


def frontends(plan: ServicePlan) -> tuple[Frontend, ...]:
    """The addresses and ports of PLAN, each once."""
    port, protocol = plan.port, plan.protocol
    ips = dict.fromkeys((plan.cluster_ip, *plan.external_ips, *plan.load_balancer_ips))
    found = [Frontend(ip, port, protocol) for ip in ips if ip]
    if plan.node_port:
        found.append(Frontend("", plan.node_port, protocol))
    return tuple(found)
