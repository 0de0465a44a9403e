"""Unusable objects with the lines that report them, and a Service beside them that must work."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from kproxy.errors import one_line

Object = dict[str, Any]


def service(name: str, number: int) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "bad"},
        "spec": {
            "type": "NodePort",
            "clusterIP": f"10.96.9.{number}",
            "clusterIPs": [f"10.96.9.{number}"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30900 + number}],
        },
    }


def endpoint_slice(name: str, number: int) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "bad", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [f"10.244.9.{number}"]}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


@dataclass(frozen=True)
class Bad:
    """An unusable object. lines: the problems that are reported. programmed: addresses that work nevertheless."""

    name: str
    kind: str
    item: Object
    lines: tuple[str, ...]
    programmed: tuple[str, ...] = ()


def _bad(
    kind: str, name: str, number: int, spoil: Callable[[Object], object], *said: str, programmed: tuple[str, ...] = ()
) -> Bad:
    item = service(name, number) if kind == "Service" else endpoint_slice(name, number)
    spoil(item)
    where = one_line(f"{kind} bad/{item['metadata']['name']}")
    return Bad(name, kind, item, tuple(f"{where}: {line}" for line in said), programmed)


def port_of(item: Object) -> Object:
    found: Object = (item.get("spec") or item)["ports"][0]
    return found


SERVICE_NAME = "kubernetes.io/service-name"
NAME_RULE = "is not a valid name: letters, digits, '-', '_' and '.' only, at most 253"

BAD: tuple[Bad, ...] = (
    _bad("Service", "wrong-type", 1, lambda s: s["spec"].update(ports="all of them"),
         "spec.ports: Expected array, got str"),
    _bad("Service", "impossible-ip", 2, lambda s: s["spec"].update(clusterIP="10.96.0.256", clusterIPs=["10.96.0.256"]),
         "spec.clusterIPs[0]: '10.96.0.256' is not an IP address"),
    _bad("Service", "port-70000", 3, lambda s: port_of(s).update(port=70000),
         "spec.ports[0].port: 70000 is not between 1 and 65535"),
    _bad("Service", "node-port-70000", 4, lambda s: port_of(s).update(nodePort=70000),
         "spec.ports[0].nodePort: 70000 is not between 0 and 65535", programmed=("10.96.9.4/32",)),
    _bad("Service", "one-good-port", 5,
         lambda s: s["spec"]["ports"].append({"name": "other", "port": -1, "nodePort": 30899}),
         "spec.ports[1].port: -1 is not between 1 and 65535", programmed=("10.96.9.5/32",)),
    _bad("Service", "quote", 6, lambda s: s["metadata"].update(name='a"b'),
         f"metadata.name: 'a\"b' {NAME_RULE}"),
    _bad("Service", "newline", 7, lambda s: s["metadata"].update(name="a\n-A INPUT -j DROP"),
         f"metadata.name: 'a\\n-A INPUT -j DROP' {NAME_RULE}"),
    _bad("EndpointSlice", "many", 8,
         lambda s: s.update(endpoints=[{"addresses": [f"10.245.{i >> 8}.{i & 255}"]} for i in range(2000)]),
         "endpoints: 2000 are more than the 1000 of the API"),
    _bad("EndpointSlice", "service-name", 9, lambda s: s["metadata"]["labels"].update({SERVICE_NAME: "a/b"}),
         f"metadata.labels[{SERVICE_NAME}]: 'a/b' {NAME_RULE}"),
    _bad("EndpointSlice", "endpoint-ip", 10, lambda s: s["endpoints"][0].update(addresses=["10.244.9.x"]),
         "endpoints[0].addresses[0]: '10.244.9.x' is not an IP address"),
    _bad("EndpointSlice", "endpoint-port", 11, lambda s: port_of(s).update(port=70000),
         "ports[0].port: 70000 is not between 1 and 65535"),
    _bad("EndpointSlice", "conditions", 12, lambda s: s["endpoints"][0].update(conditions={"ready": "yes"}),
         "endpoints[0].conditions.ready: Expected bool, got str"),
    _bad("Service", "two-problems", 13,
         lambda s: (port_of(s).update(port=0), s["spec"].update(externalIPs=["nowhere"])),
         "spec.externalIPs[0]: 'nowhere' is not an IP address", "spec.ports[0].port: 0 is not between 1 and 65535"),
)  # fmt: skip


@pytest.fixture(scope="session")
def bad() -> tuple[Bad, ...]:
    return copy.deepcopy(BAD)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "each" in metafunc.fixturenames:
        metafunc.parametrize("each", BAD, ids=[bad.name for bad in BAD])


@pytest.fixture(scope="session")
def good() -> list[Object]:
    """Return objects that must work whatever is beside them."""
    return [service("good", 200), endpoint_slice("good", 200)]
