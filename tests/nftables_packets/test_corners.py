"""Real packets in corner cases of nftables mode: the rendered table on one node, and no daemon."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from kproxy.config.files import from_text
from kproxy.lab import links, probes
from kproxy.lab.clusters import CLUSTER_CIDRS, Cluster, build, gateway_of, node_address
from kproxy.lab.namespaces import unavailable
from kproxy.lab.probes import Answered, Nothing
from kproxy.lab.scenarios import PODS, PORTS
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import TYPES, Kind, Object
from kproxy.model.plans import Family, Protocol
from kproxy.modes.preview import Preview, load
from tests.nftables_packets.corners import CORNERS, HELD, HOST_PORT, NOBODY, VIP, Ask, Corner, Service, address

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable(("nft",))), reason=unavailable(("nft",)))]

TARGET = 8080
CIDRS = {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]}}
PATIENCE, IMPATIENCE, CROWD = 5.0, 0.25, 16
ECHO = {Family.IPV4: (8, 3, 3), Family.IPV6: (128, 1, 4)}  # the request's type; type and code of port unreachable


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with build(PODS, PORTS) as made:
        node = made.spaces["node1"]
        for family in Family:
            links.address(node, "lo", f"{address(HELD, family)}/{32 if family is Family.IPV4 else 128}")
            links.route(made.spaces["client"], "eth0", f"{gateway_of(1, family)}", via=node_address(1, family))
        made.servers.add(node, "host", [node_address(1, family) for family in Family], [HOST_PORT])
        yield made


def converted(kind: Kind, raw: dict[str, Any]) -> Object:
    item: Object = msgspec.convert(raw, TYPES[kind])
    return item


def objects(services: tuple[Service, ...]) -> dict[Kind, list[Object]]:
    kinds: dict[Kind, list[Object]] = {Kind.SERVICE_CIDR: [converted(Kind.SERVICE_CIDR, CIDRS)]}
    for service in services:
        kinds.setdefault(Kind.SERVICE, []).append(converted(Kind.SERVICE, manifest(service)))
        slices = kinds.setdefault(Kind.ENDPOINT_SLICE, [])
        slices += [converted(Kind.ENDPOINT_SLICE, slice_of(service, family)) for family in Family]
    return kinds


def manifest(service: Service) -> dict[str, Any]:
    ips = [address(service.vip, family) for family in Family]
    ports = [
        {"name": p.value, "protocol": p.value, "port": service.port, "nodePort": service.node_port}
        for p in (Protocol.TCP, Protocol.UDP)
    ]
    spec = {
        "type": "LoadBalancer" if service.balancer else "NodePort" if service.node_port else "ClusterIP",
        "clusterIP": ips[0],
        "clusterIPs": ips,
        "ports": ports,
        "externalIPs": [address(name, family) for name in service.external for family in Family],
    }
    ingress = [{"ip": address(name, family)} for name in service.balancer for family in Family]
    return {
        "metadata": {"name": service.name, "namespace": "corner"},
        "spec": spec | dict(service.spec),
        "status": {"loadBalancer": {"ingress": ingress}},
    }


def slice_of(service: Service, family: Family) -> dict[str, Any]:
    nodes = {"host": "node1"} | {pod.name: f"node{pod.node}" for pod in PODS}
    port = HOST_PORT if "host" in service.ends else TARGET
    return {
        "metadata": {
            "name": f"{service.name}-{family.value}",
            "namespace": "corner",
            "labels": {"kubernetes.io/service-name": service.name},
        },
        "addressType": family.value,
        "ports": [{"name": p.value, "protocol": p.value, "port": port} for p in (Protocol.TCP, Protocol.UDP)],
        "endpoints": [
            {"addresses": [address("node1" if end == "host" else end, family)], "nodeName": nodes[end]}
            for end in service.ends
        ],
    }


def program(cluster: Cluster, corner: Corner, family: Family) -> None:
    state, problems = load("node1", objects(corner.services))
    assert not problems
    header = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables"}
    config = from_text(json.dumps({**header, "clusterCIDR": CLUSTER_CIDRS, **corner.config}))
    ips = tuple(node_address(1, f) for f in Family)
    own = (*ips, *(gateway_of(1, f) for f in Family), *(address(HELD, f) for f in Family))
    text = Preview(state, config, NodeInfo(ips=ips, addresses=own)).nftables(family)
    cluster.spaces["node1"].run(["nft", "-f", "-"], text)


def fault(cluster: Cluster, ask: Ask, protocol: Protocol, family: Family) -> str:
    """What is wrong with what `ask` met, "" when nothing is."""
    function = probes.udp if protocol is Protocol.UDP else probes.tcp
    timeout = IMPATIENCE if ask.meets is Nothing.TIMED_OUT else PATIENCE
    own = address(ask.own, family) if ask.own else ""
    found = cluster.spaces[ask.source].call(function, address(ask.target, family), ask.port, timeout, own)
    if isinstance(ask.meets, Nothing) or not isinstance(found, Answered):
        return "" if found is ask.meets else f"{found}, not {ask.meets}"
    if found.pod not in ask.meets:
        return f"{found}, not {ask.meets}"
    return "" if not ask.seen or found.source == address(ask.seen, family) else f"{found}, seen as {ask.seen}"


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("corner", CORNERS, ids=lambda corner: corner.name)
def test_packets_are_treated_as_required(cluster: Cluster, corner: Corner, family: Family) -> None:
    program(cluster, corner, family)
    with ThreadPoolExecutor(CROWD) as crowd:
        asked = {
            (ask.source, ask.own, ask.target, ask.port, protocol.value): crowd.submit(
                fault, cluster, ask, protocol, family
            )
            for ask in corner.asks
            for protocol in ask.protocols
        }
    assert {key: told for key, answer in asked.items() if (told := answer.result())} == {}


# ---------------------------------------------------------------- ping


def pinged(ip: str, family: Family) -> Nothing | None:
    """What an echo request meets; None when it is answered. Needs a raw socket."""
    request, unreachable, port = ECHO[family]
    four = family is Family.IPV4
    kind = (socket.AF_INET, socket.IPPROTO_ICMP) if four else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    with socket.socket(kind[0], socket.SOCK_RAW, kind[1]) as raw:
        raw.settimeout(IMPATIENCE)
        message = bytearray((request, 0, 0, 0, 0, 7, 0, 1))
        if four:
            message[2:4] = (~(request * 256 + 7 + 1) & 0xFFFF).to_bytes(2, "big")
        try:
            raw.sendto(message, (ip, 0))
        except PermissionError:
            return Nothing.REFUSED  # by a rule, before it left this host
        try:
            while True:
                data = raw.recv(2048)
                told = data[(data[0] & 15) * 4 :] if four else data
                if (told[0], told[1]) == (unreachable, port):
                    return Nothing.REFUSED
                if told[0] in (0, 129):
                    return None
        except TimeoutError:
            return Nothing.TIMED_OUT


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("source", ["caller", "client", "node1"])
def test_a_ping_to_a_cluster_ip_is_refused_and_one_to_nobody_dropped(
    cluster: Cluster, family: Family, source: str
) -> None:
    program(cluster, Corner("ping", (Service(("a",)),), ()), family)
    space = cluster.spaces[source]
    assert space.call(pinged, address(VIP, family), family) is Nothing.REFUSED
    lost = {Nothing.TIMED_OUT} if source != "node1" else {Nothing.REFUSED}  # the node's own is not even sent
    assert space.call(pinged, address(NOBODY, family), family) in lost
    assert space.call(pinged, address("far", family), family) is None
