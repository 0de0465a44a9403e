"""What is written to the API server: the requests, and which packet proves that each has taken effect. Pure.

Every endpoint that a run adds has an address that was never used before, so a connection that ends there proves the
change which added it and no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

import msgspec

from benchmarks import cluster
from benchmarks.cluster import Shape
from benchmarks.suite.network import FIRST_REPLACEMENT, REPLACEMENTS
from kproxy.model.plans import Family

SLICES = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"
SERVICES = "/api/v1/namespaces/{}/services"


@dataclass(frozen=True, slots=True)
class Write:
    """One request. body: JSON, b"" for none."""

    method: str
    path: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Change:
    """A write, and what it brings: from then on, a connection to Service NUMBER may end at one of ADDRESSES."""

    write: Write
    number: int
    addresses: tuple[str, ...]


def spread(services: int, count: int) -> list[int]:
    """Up to COUNT different numbers below SERVICES, evenly apart, the first and the last among them."""
    last = services - 1
    return sorted({round(i * last / max(1, count - 1)) for i in range(count)})


def storm(services: int, endpoints: int, share: float, rate: float, seconds: float) -> list[int]:
    """The Services of a rolling update, in its order: one endpoint of each is replaced.

    SHARE of all endpoints, at RATE writes a second, but for no longer than SECONDS. Each Service has its turn before
    any has a second one.
    """
    count = max(1, min(round(services * endpoints * share), int(rate * seconds)))
    step = max(1, services // count)
    return [(i * step + i * step // services) % services for i in range(count)]


def created(item: dict[str, Any]) -> dict[str, Any]:
    """ITEM as a client creates it: without what is the server's to say, such as a resourceVersion."""
    return {**item, "metadata": {key: item["metadata"][key] for key in ("name", "labels")}}


@dataclass(slots=True)
class Objects:
    """The cluster as the writes so far have made it. namespace: where all of it is.

    addressed: whether Services ask for their cluster IP; else the server gives them one, which `learn` is to be told.
    """

    shape: Shape
    namespace: str = "default"
    addressed: bool = True
    _ips: dict[int, str] = field(default_factory=dict)
    _held: dict[int, list[str]] = field(default_factory=dict)
    _turns: dict[int, int] = field(default_factory=dict)
    _added: int = 0
    _used: int = 0

    def ip(self, number: int) -> str:
        """The cluster IP of Service NUMBER."""
        return self._ips.get(number) or str(self._service(number)["spec"]["clusterIP"])

    def learn(self, number: int, ip: str) -> None:
        self._ips[number] = ip

    def endpoints(self, number: int) -> list[str]:
        """The addresses behind Service NUMBER now."""
        if number not in self._held:
            item = cluster.endpoint_slice(self.shape, number, Family.IPV4)
            self._held[number] = [endpoint["addresses"][0] for endpoint in item["endpoints"]]
        return self._held[number]

    def replace(self, number: int) -> Change:
        """One endpoint of Service NUMBER makes way for another; each time the next of them."""
        held, turn = self.endpoints(number), self._turns.get(number, 0)
        self._turns[number] = turn + 1
        address = held[turn % len(held)] = self._unused()
        body = {"endpoints": self._slice(number)["endpoints"]}
        return Change(self._write("PATCH", SLICES, self._slice_name(number), body), number, (address,))

    def add(self) -> tuple[Write, Change]:
        """A Service more: its endpoints, which mean nothing by themselves, and then the Service."""
        number = self.shape.services + self._added
        self._added += 1
        self._held[number] = [self._unused() for _ in range(self.shape.endpoints)]
        first = self._write("POST", SLICES, "", self._slice(number))
        then = self._write("POST", SERVICES, "", self._service(number))
        return first, Change(then, number, tuple(self._held[number]))

    def remove(self, number: int) -> tuple[Write, Write]:
        """A Service goes: first the Service, then its endpoints."""
        del self._held[number]
        name = self._service(number)["metadata"]["name"]
        return self._write("DELETE", SERVICES, name), self._write("DELETE", SLICES, self._slice_name(number))

    def everything(self) -> Iterator[tuple[int, Write, Write]]:
        """What makes the whole cluster: number, endpoints and Service of each."""
        for number in range(self.shape.services):
            service, item = self._service(number), self._slice(number)
            yield number, self._write("POST", SLICES, "", item), self._write("POST", SERVICES, "", service)

    def _service(self, number: int) -> dict[str, Any]:
        item = self._placed(cluster.service(self.shape, number))
        # Without a selector, the endpoints are nobody's but ours.
        item["spec"].pop("selector", None)
        if not self.addressed:
            del item["spec"]["clusterIP"], item["spec"]["clusterIPs"], item["status"]
        return item

    def _slice(self, number: int) -> dict[str, Any]:
        item = self._placed(cluster.endpoint_slice(self.shape, number, Family.IPV4))
        for endpoint, address in zip(item["endpoints"], self.endpoints(number), strict=True):
            endpoint["addresses"] = [address]
        return item

    def _slice_name(self, number: int) -> str:
        return str(cluster.slice_name(number, Family.IPV4))

    def _placed(self, item: dict[str, Any]) -> dict[str, Any]:
        made = created(item)
        return {**made, "metadata": {**made["metadata"], "namespace": self.namespace}}

    def _write(self, method: str, place: str, name: str, item: dict[str, Any] | None = None) -> Write:
        path = place.format(self.namespace) + (f"/{name}" if name else "")
        return Write(method, path, msgspec.json.encode(item) if item is not None else b"")

    def _unused(self) -> str:
        if self._used >= REPLACEMENTS:
            raise OverflowError(f"a run replaces {REPLACEMENTS:,} endpoints at most")
        self._used += 1
        return str(IPv4Address(FIRST_REPLACEMENT + self._used))
