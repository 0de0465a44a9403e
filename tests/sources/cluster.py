"""Objects for the API stand-in, and what a source that follows it has to know in the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kproxy.model.objects import Kind
from tests.fakes.apiserver import ApiServer
from tests.fakes.apistore import Selection
from tests.fakes.sinks import Mirror

QUERIES = {
    Kind.SERVICE: Selection("Service", labels="!service.kubernetes.io/service-proxy-name"),
    Kind.ENDPOINT_SLICE: Selection("EndpointSlice", labels="!service.kubernetes.io/headless"),
    Kind.NODE: Selection("Node", fields="metadata.name=node1"),
    Kind.SERVICE_CIDR: Selection("ServiceCIDR"),
}


def service(name: str, namespace: str = "default", ip: str = "10.96.0.10", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": "web", **labels}},
        "spec": {"clusterIP": ip, "ports": [{"port": 80, "protocol": "TCP"}]},
    }


def endpoint_slice(name: str, *addresses: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name, **labels},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [a], "nodeName": "node1", "conditions": {"ready": True}} for a in addresses],
        "ports": [{"port": 8080}],
    }


def node(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDR": "10.244.0.0/24"}}


def cidr(name: str, *cidrs: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": list(cidrs)},
    }


EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
EVENT: dict[str, Any] = {
    "metadata": {"name": "e1"},
    "eventTime": "2026-01-02T03:04:05.000000Z",
    "reportingController": "kproxy",
    "reportingInstance": "node1",
    "action": "Sync",
    "reason": "Broken",
    "type": "Warning",
    "regarding": {"kind": "Node", "name": "node1"},
}


def expected(server: ApiServer, kind: Kind) -> dict[str, str]:
    """What the mirror has to hold, from the server's own memory."""
    items = server.store.objects(QUERIES[kind])[1]
    return {f"{item.namespace or 'default'}/{item.name}": str(item.version) for item in items}


def agrees(server: ApiServer, mirror: Mirror) -> bool:
    return mirror.complete and all(mirror.versions(kind) == expected(server, kind) for kind in Kind)


def eventually(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    """Wait until CONDITION holds, at most that many SECONDS; whether it does."""
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return held


def fill(server: ApiServer) -> None:
    """A small cluster: two Services, the endpoints of one, two Nodes, a ServiceCIDR."""
    items = (service("web"), service("api"), endpoint_slice("web", "10.244.0.5"), node("node1"), node("node2"))
    for item in (*items, cidr("kubernetes", "10.96.0.0/16")):
        server.apply(item)
