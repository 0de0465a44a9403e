"""Scenarios: a Service with its endpoints, and the probes that say which client must be answered by whom.

Each scenario is one dual-stack Service at addresses and ports of its own, so that all of them can exist in one cluster
at once. A probe names a client, the way by which it connects, and the expected result; it is made for every port of the
Service, and so by TCP and by UDP. kproxy.lab.scenario_table has the scenarios.

The pods: "a" and "b" on node1, "far" on node2, and "caller" on node1, which serves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kproxy.lab.clusters import BALANCER, Pod, node_address
from kproxy.lab.probes import Nothing
from kproxy.model.plans import Family, Protocol

PODS = (Pod("a", 1, 11), Pod("b", 1, 12), Pod("caller", 1, 13), Pod("far", 2, 11))
PORTS = {"a": (8080, 8081), "b": (8080, 8081), "far": (8080, 8081)}
ZONES = {1: "zone-1", 2: "zone-2"}


class Via(Enum):
    """The kind of address by which a client reaches a Service."""

    CLUSTER_IP = "cluster IP"
    NODE_PORT = "node port"
    LOCALHOST = "node port at 127.0.0.1"
    BALANCER = "load balancer IP"
    EXTERNAL_IP = "external IP"


class Seen(Enum):
    """The source address that the pod sees: the client's own, one of node1's, or either (when node1 is the client)."""

    KEPT = "kept"
    REWRITTEN = "rewritten"
    EITHER = "either"


@dataclass(frozen=True, slots=True)
class Port:
    name: str = "tcp"
    protocol: Protocol = Protocol.TCP
    port: int = 80
    target: int = 8080


TCP_AND_UDP = (Port(), Port("udp", Protocol.UDP))


@dataclass(frozen=True, slots=True)
class End:
    """One endpoint: its pod, its conditions and hints in the EndpointSlice, and the number of that slice."""

    pod: str
    ready: bool | None = True
    serving: bool | None = None
    terminating: bool | None = None
    zone: str = ""
    node: str = ""
    slice: int = 1


@dataclass(frozen=True, slots=True)
class Probe:
    """A client and the result that it must see.

    source: a pod, node1, client, or client-other (the client by its second address).
    expect: the pods that answer, each of them sooner or later and no other; or how the connection fails.
    sticky: always the same one of them answers.
    """

    source: str
    via: Via
    expect: tuple[str, ...] | Nothing
    seen: Seen = Seen.EITHER
    sticky: bool = False
    families: tuple[Family, ...] = tuple(Family)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One Service. spec: the fields of its manifest besides type, addresses and ports.

    health: the status of its health check node port, 0 if it has none. number: its place in the table, from 1, from
    which addresses and ports follow.
    """

    name: str
    ends: tuple[End, ...]
    probes: tuple[Probe, ...]
    type: str = "ClusterIP"
    spec: Mapping[str, Any] = field(default_factory=dict)
    ports: tuple[Port, ...] = TCP_AND_UDP
    external_ips: bool = False
    ingress: tuple[Mapping[str, str], ...] = ()
    health: int = 0
    number: int = 0

    def address(self, via: Via, family: Family) -> str:
        """The IP that a client connects to."""
        four = family is Family.IPV4
        match via:
            case Via.CLUSTER_IP:
                return f"10.96.1.{self.number}" if four else f"fd00:96::1{self.number:02x}"
            case Via.NODE_PORT:
                return node_address(1, family)
            case Via.LOCALHOST:
                return "127.0.0.1" if four else "::1"
            case Via.BALANCER if self.ingress:
                return BALANCER[family]
            case Via.BALANCER:
                return f"203.0.113.{self.number}" if four else f"2001:db8:113::{self.number:x}"
            case Via.EXTERNAL_IP:
                return f"203.0.113.{100 + self.number}" if four else f"2001:db8:113::1{self.number:02x}"

    def port(self, via: Via, port: Port) -> int:
        """The port that goes with `address`."""
        if via in (Via.NODE_PORT, Via.LOCALHOST):
            return 30000 + 4 * self.number + self.ports.index(port)
        return port.port

    @property
    def health_port(self) -> int:
        return 32000 + self.number

    def objects(self, ends: tuple[End, ...] | None = None) -> list[dict[str, Any]]:
        """The Service and its EndpointSlices; `ends` takes the place of the endpoints of the table."""
        ends = self.ends if ends is None else ends
        return [self._service(), *(self._slice(f, n, ends) for f in Family for n in sorted({e.slice for e in ends}))]

    def _service(self) -> dict[str, Any]:
        outside = self.type in ("NodePort", "LoadBalancer")
        ports = [
            {"name": p.name, "protocol": p.protocol.value, "port": p.port, "targetPort": p.target}
            | ({"nodePort": self.port(Via.NODE_PORT, p)} if outside else {})
            for p in self.ports
        ]
        ips = [self.address(Via.CLUSTER_IP, f) for f in Family]
        spec: dict[str, Any] = {"type": self.type, "clusterIP": ips[0], "clusterIPs": ips, "ports": ports}
        if self.external_ips:
            spec["externalIPs"] = [self.address(Via.EXTERNAL_IP, f) for f in Family]
        if self.health:
            spec["healthCheckNodePort"] = self.health_port
        service: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self._metadata(self.name),
            "spec": spec | dict(self.spec),
        }
        if self.type == "LoadBalancer":
            ingress = [dict(i) for i in self.ingress] or [{"ip": self.address(Via.BALANCER, f)} for f in Family]
            service["status"] = {"loadBalancer": {"ingress": ingress}}
        return service

    def _slice(self, family: Family, number: int, ends: tuple[End, ...]) -> dict[str, Any]:
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": self._metadata(f"{self.name}-{family.value.lower()}-{number}")
            | {"labels": {"kubernetes.io/service-name": self.name}},
            "addressType": family.value,
            "ports": [{"name": p.name, "protocol": p.protocol.value, "port": p.target} for p in self.ports],
            "endpoints": [_endpoint(e, family) for e in ends if e.slice == number],
        }

    def _metadata(self, name: str) -> dict[str, Any]:
        return {"name": name, "namespace": "traffic"}


def _endpoint(end: End, family: Family) -> dict[str, Any]:
    pod = next(p for p in PODS if p.name == end.pod)
    conditions = {"ready": end.ready, "serving": end.serving, "terminating": end.terminating}
    hints = {"forZones": [{"name": end.zone}]} if end.zone else {}
    hints |= {"forNodes": [{"name": end.node}]} if end.node else {}
    return {
        "addresses": [pod.ip(family)],
        "nodeName": f"node{pod.node}",
        "zone": ZONES[pod.node],
        "conditions": {k: v for k, v in conditions.items() if v is not None},
    } | ({"hints": hints} if hints else {})


def node_objects() -> list[dict[str, Any]]:
    """The two Nodes of the cluster, each in a zone of its own."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": f"node{n}", "labels": {"topology.kubernetes.io/zone": ZONES[n]}},
            "spec": {"podCIDR": f"10.244.{n}.0/24", "podCIDRs": [f"10.244.{n}.0/24", f"fd00:244:{n}::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": node_address(n, f)} for f in Family]},
        }
        for n in (1, 2)
    ]
