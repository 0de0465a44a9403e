"""Finds Services that use the same node port, or the same external address and port.

The API server lets two Services have one external IP and port, and manifests may give a health check node port that is
another Service's node port. Every mode serves one of them. Cluster IPs are left out, as the API server allocates each
only once. Updated by one change at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from kproxy.model.plans import Frontend, PortKey, Protocol, ServicePlan, address_port

_Changes = Mapping[PortKey, tuple[ServicePlan | None, ServicePlan | None]]


class Conflict(NamedTuple):
    """A frontend of several Services. claimants: as namespace/name or namespace/name:port, sorted, at least two."""

    frontend: Frontend
    claimants: tuple[str, ...]

    @property
    def where(self) -> str:
        """The frontend as text: "node port 30080/TCP" or "203.0.113.1:80/TCP"."""
        ip, port, protocol = self.frontend
        return f"{address_port(ip, port)}/{protocol}" if ip else f"node port {port}/{protocol}"


class _Claimant(NamedTuple):
    key: PortKey
    check: bool  # claims a health check node port, which all ports of a Service share

    @property
    def text(self) -> str:
        return f"{self.key.namespace}/{self.key.name} (health checks)" if self.check else str(self.key)


class Conflicts:
    """The conflicts of one family."""

    def __init__(self) -> None:
        self._claimants: dict[Frontend, tuple[_Claimant, ...]] = {}
        self._found: dict[Frontend, Conflict] = {}

    @property
    def found(self) -> tuple[Conflict, ...]:
        """The conflicts that exist now."""
        return tuple(self._found.values())

    def update(self, changes: _Changes) -> list[Conflict]:
        """Apply changes of plans, each as (before, after); returns the conflicts that are new or different."""
        affected: dict[Frontend, None] = {}
        for key, (old, new) in changes.items():
            before, after = set(_frontends(key, old)), set(_frontends(key, new))
            for frontend, claimant in before - after:
                self._put(frontend, tuple(c for c in self._claimants.get(frontend, ()) if c != claimant))
                affected[frontend] = None
            for frontend, claimant in after - before:
                self._put(frontend, (*(c for c in self._claimants.get(frontend, ()) if c != claimant), claimant))
                affected[frontend] = None
        return list(self._judge(affected))

    def _put(self, frontend: Frontend, claimants: tuple[_Claimant, ...]) -> None:
        if claimants:
            self._claimants[frontend] = claimants
        else:
            self._claimants.pop(frontend, None)

    def _judge(self, frontends: Iterable[Frontend]) -> Iterator[Conflict]:
        for frontend in frontends:
            texts = {claimant.text for claimant in self._claimants.get(frontend, ())}
            before = self._found.pop(frontend, None)
            if len(texts) > 1:
                self._found[frontend] = conflict = Conflict(frontend, tuple(sorted(texts)))
                if conflict != before:
                    yield conflict


def _frontends(key: PortKey, plan: ServicePlan | None) -> Iterator[tuple[Frontend, _Claimant]]:
    if plan is None:
        return
    if plan.node_port:
        yield Frontend("", plan.node_port, key.protocol), _Claimant(key, False)
    for ip in (*plan.external_ips, *plan.load_balancer_ips):
        yield Frontend(ip, plan.port, key.protocol), _Claimant(key, False)
    if plan.health_check_node_port:
        yield Frontend("", plan.health_check_node_port, Protocol.TCP), _Claimant(key, True)
