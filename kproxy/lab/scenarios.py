"""What traffic must meet, whatever the proxy mode: one table of Services, and who answers whom.

Each scenario is one dual-stack Service with its endpoints, at addresses and ports of its own, so that all of them can
be alive in one cluster at once. A probe says from where and by which way a client comes, and what must become of it;
unless it says otherwise it is made for every port of the Service, and so by TCP and by UDP.

The pods of the table: "a" and "b" on node1, "far" on node2, and "caller" on node1, which serves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kproxy.lab.clusters import BALANCER, CLIENT, Pod, node_address
from kproxy.lab.outcomes import Nothing
from kproxy.model.plans import Family, Protocol

PODS = (Pod("a", 1, 11), Pod("b", 1, 12), Pod("caller", 1, 13), Pod("far", 2, 11))
PORTS = {"a": (8080, 8081), "b": (8080, 8081), "far": (8080, 8081)}
ZONES = {1: "zone-1", 2: "zone-2"}


class Via(Enum):
    """The way to a Service."""

    CLUSTER_IP = "cluster IP"
    NODE_PORT = "node port"
    LOCALHOST = "node port at 127.0.0.1"
    BALANCER = "load balancer IP"
    EXTERNAL_IP = "external IP"


class Seen(Enum):
    """Which source the pod sees: the client's own, one of node1's, or either (a node asks for itself)."""

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
    """One endpoint: the pod, its conditions as the slice shows them, its hints, and which slice it is in."""

    pod: str
    ready: bool | None = True
    serving: bool | None = None
    terminating: bool | None = None
    zone: str = ""
    node: str = ""
    slice: int = 1


@dataclass(frozen=True, slots=True)
class Probe:
    """A client and what it must meet.

    source: a pod, node1, client, or client-other (the client by its second address).
    expect: the pods of which each answers sooner or later, and no other; or why none does.
    sticky: one of them, always the same.
    """

    source: str
    via: Via
    expect: tuple[str, ...] | Nothing
    seen: Seen = Seen.EITHER
    sticky: bool = False
    families: tuple[Family, ...] = tuple(Family)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One Service. spec and status are what its manifest says beyond type, addresses and ports.

    health: what the health check node port answers, 0 when the Service has none.
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

    @property
    def number(self) -> int:
        """Its place in the table, from 1; addresses and ports follow from it."""
        return NUMBERS[self.name]

    def address(self, via: Via, family: Family) -> str:
        """The IP that a client uses to come by VIA."""
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
        """The Service and its EndpointSlices; ENDS takes the place of the endpoints of the table."""
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


LOCAL = {"externalTrafficPolicy": "Local"}
INTERNAL_LOCAL = {"internalTrafficPolicy": "Local"}
A, B, FAR = End("a"), End("b"), End("far")
IP, PORT, LB, EXT, HOME = Via.CLUSTER_IP, Via.NODE_PORT, Via.BALANCER, Via.EXTERNAL_IP, Via.LOCALHOST
KEPT, REWRITTEN = Seen.KEPT, Seen.REWRITTEN
REFUSED, DROPPED = Nothing.REFUSED, Nothing.TIMED_OUT

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "cluster-ip",
        (A, B, FAR),
        (
            Probe("caller", IP, ("a", "b", "far"), KEPT),
            Probe("node1", IP, ("a", "b", "far")),
            Probe("client", IP, ("a", "b", "far"), REWRITTEN),
        ),
    ),
    Scenario("hairpin", (A,), (Probe("a", IP, ("a",), REWRITTEN), Probe("b", IP, ("a",), KEPT))),
    Scenario(
        "no-endpoints",
        (),
        tuple(Probe(source, IP, REFUSED) for source in ("caller", "node1", "client"))
        + tuple(Probe(source, via, REFUSED) for source in ("caller", "client") for via in (PORT, LB, EXT)),
        type="LoadBalancer",
        external_ips=True,
    ),
    Scenario(
        "no-endpoints-policy-local",
        (),
        (Probe("client", PORT, REFUSED), Probe("client", LB, REFUSED), Probe("caller", IP, REFUSED)),
        type="LoadBalancer",
        spec=LOCAL | INTERNAL_LOCAL,
    ),
    Scenario(
        "node-port",
        (A, FAR),
        (
            Probe("client", PORT, ("a", "far"), REWRITTEN),
            Probe("caller", PORT, ("a", "far"), REWRITTEN),
            Probe("node1", PORT, ("a", "far"), REWRITTEN),
            Probe("node1", HOME, ("a", "far"), REWRITTEN, families=(Family.IPV4,)),
        ),
        type="NodePort",
    ),
    Scenario(
        "node-port-local",
        (A, FAR),
        (
            Probe("client", PORT, ("a",), KEPT),
            Probe("caller", PORT, ("a", "far"), KEPT),
            Probe("node1", PORT, ("a", "far"), REWRITTEN),
            Probe("caller", IP, ("a", "far"), KEPT),
        ),
        type="NodePort",
        spec=LOCAL,
    ),
    Scenario(
        "node-port-local-elsewhere",
        (FAR,),
        (
            Probe("client", PORT, DROPPED),
            Probe("caller", PORT, ("far",), KEPT),
            Probe("node1", PORT, ("far",), REWRITTEN),
        ),
        type="NodePort",
        spec=LOCAL,
    ),
    Scenario(
        "load-balancer",
        (A, FAR),
        (
            Probe("client", LB, ("a", "far"), REWRITTEN),
            Probe("caller", LB, ("a", "far"), REWRITTEN),
            Probe("node1", LB, ("a", "far"), REWRITTEN),
        ),
        type="LoadBalancer",
    ),
    Scenario(
        "load-balancer-local",
        (A, FAR),
        (
            Probe("client", LB, ("a",), KEPT),
            Probe("caller", LB, ("a", "far"), KEPT),
            Probe("node1", LB, ("a", "far"), REWRITTEN),
        ),
        type="LoadBalancer",
        spec=LOCAL,
        health=200,
    ),
    Scenario(
        "load-balancer-local-elsewhere",
        (FAR,),
        (Probe("client", LB, DROPPED), Probe("caller", LB, ("far",), KEPT)),
        type="LoadBalancer",
        spec=LOCAL,
        health=503,
    ),
    Scenario(
        "source-ranges",
        (A, FAR),
        (
            Probe("client", LB, ("a", "far"), REWRITTEN),
            Probe("client-other", LB, DROPPED),
            Probe("caller", LB, DROPPED),
            Probe("client-other", PORT, ("a", "far"), REWRITTEN),
            Probe("client-other", IP, ("a", "far"), REWRITTEN),
        ),
        type="LoadBalancer",
        spec={"loadBalancerSourceRanges": [f" {CLIENT[Family.IPV4]}/32 ", f"{CLIENT[Family.IPV6]}/128"]},
    ),
    Scenario(
        "source-ranges-that-hold-the-node",
        (A,),
        (Probe("node1", LB, ("a",), REWRITTEN), Probe("client", LB, ("a",), REWRITTEN), Probe("caller", LB, DROPPED)),
        type="LoadBalancer",
        spec={"loadBalancerSourceRanges": ["172.30.0.0/24", "fd00:30::/64"]},
    ),
    Scenario(
        "balancer-in-mode-proxy",
        (A, FAR),
        (
            Probe("caller", LB, ("balancer",), KEPT),
            Probe("node1", LB, ("balancer",)),
            Probe("client", PORT, ("a", "far"), REWRITTEN),
        ),
        type="LoadBalancer",
        ingress=tuple({"ip": BALANCER[f], "ipMode": "Proxy"} for f in Family),
    ),
    Scenario(
        "external-ip",
        (A, FAR),
        (
            Probe("client", EXT, ("a", "far"), REWRITTEN),
            Probe("caller", EXT, ("a", "far"), REWRITTEN),
            Probe("node1", EXT, ("a", "far"), REWRITTEN),
        ),
        external_ips=True,
    ),
    Scenario(
        "external-ip-local",
        (A, FAR),
        (Probe("client", EXT, ("a",), KEPT), Probe("caller", EXT, ("a", "far"), KEPT)),
        spec=LOCAL,
        external_ips=True,
    ),
    Scenario(
        "internal-local",
        (A, FAR),
        (
            Probe("caller", IP, ("a",), KEPT),
            Probe("node1", IP, ("a",)),
            Probe("client", IP, ("a",), REWRITTEN),
            Probe("client", PORT, ("a", "far"), REWRITTEN),
        ),
        type="NodePort",
        spec=INTERNAL_LOCAL,
    ),
    Scenario(
        "internal-local-elsewhere",
        (FAR,),
        (Probe("caller", IP, DROPPED), Probe("client", IP, DROPPED), Probe("client", PORT, ("far",), REWRITTEN)),
        type="NodePort",
        spec=INTERNAL_LOCAL,
    ),
    Scenario(
        "affinity",
        (A, B, FAR),
        (
            Probe("caller", IP, ("a", "b", "far"), KEPT, sticky=True),
            Probe("client", PORT, ("a", "b", "far"), REWRITTEN, sticky=True),
            Probe("client-other", PORT, ("a", "b", "far"), REWRITTEN, sticky=True),
        ),
        type="NodePort",
        spec={"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}},
    ),
    Scenario("not-ready", (A, End("b", ready=False, serving=False)), (Probe("caller", IP, ("a",), KEPT),)),
    Scenario("conditions-left-out", (End("a", ready=None), FAR), (Probe("caller", IP, ("a", "far"), KEPT),)),
    Scenario("only-not-ready", (End("b", ready=False, serving=False),), (Probe("caller", IP, REFUSED),)),
    Scenario(
        "terminating-beside-ready",
        (A, End("b", ready=False, serving=True, terminating=True)),
        (Probe("caller", IP, ("a",), KEPT),),
    ),
    Scenario(
        "only-terminating",
        (
            End("a", ready=False, serving=True, terminating=True),
            End("far", ready=False, serving=False, terminating=True),
        ),
        (Probe("caller", IP, ("a",), KEPT), Probe("client", PORT, ("a",), REWRITTEN)),
        type="NodePort",
    ),
    Scenario(
        "last-local-terminating",
        (End("a", ready=False, serving=True, terminating=True), FAR),
        (Probe("client", PORT, ("a",), KEPT), Probe("caller", IP, ("far",), KEPT)),
        type="NodePort",
        spec=LOCAL,
    ),
    Scenario(
        "zone-hints",
        (End("a", zone="zone-1"), End("b", zone="zone-2"), End("far", zone="zone-2")),
        (Probe("caller", IP, ("a",), KEPT), Probe("client", IP, ("a",), REWRITTEN)),
    ),
    Scenario(
        "zone-hints-missing-on-one",
        (End("a", zone="zone-1"), FAR),
        (Probe("caller", IP, ("a", "far"), KEPT),),
    ),
    Scenario(
        "zone-hints-for-other-zones",
        (End("a", zone="zone-2"), End("far", zone="zone-3")),
        (Probe("caller", IP, ("a", "far"), KEPT),),
    ),
    Scenario(
        "node-hints",
        (End("a", zone="zone-1", node="node1"), End("far", zone="zone-1", node="node2")),
        (Probe("caller", IP, ("a",), KEPT),),
    ),
    Scenario(
        "two-slices",
        (A, End("far", slice=2), End("a", slice=2)),
        (Probe("caller", IP, ("a", "far"), KEPT),),
    ),
    Scenario(
        "several-ports",
        (A, FAR),
        (Probe("caller", IP, ("a", "far"), KEPT), Probe("client", PORT, ("a", "far"), REWRITTEN)),
        type="NodePort",
        ports=(Port("web", port=80), Port("admin", port=9090, target=8081), Port("dns", Protocol.UDP, 53, 8081)),
    ),
)

NUMBERS = {scenario.name: place for place, scenario in enumerate(SCENARIOS, 1)}
