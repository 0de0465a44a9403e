"""Which Services ask for the same way in from outside: one node port, or one external address and port.

The API server allows two Services to have one external IP and port, and does not know of health check node ports that
are another Service's node port when objects come from elsewhere. Every mode serves one of them. Cluster IPs are left
out: the API server gives each only once. Kept up to date one change at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from kproxy.model.plans import Frontend, PortKey, Protocol, ServicePlan, address_port

Touched = Mapping[PortKey, tuple[ServicePlan | None, ServicePlan | None]]


class Conflict(NamedTuple):
    """Several that ask for one way in. claimants: as namespace/name or namespace/name:port, sorted, two at least."""

    frontend: Frontend
    claimants: tuple[str, ...]

    @property
    def where(self) -> str:
        """node port 30080/TCP, or 203.0.113.1:80/TCP"""
        ip, port, protocol = self.frontend
        return f"{address_port(ip, port)}/{protocol}" if ip else f"node port {port}/{protocol}"


class _Claim(NamedTuple):
    key: PortKey
    check: bool  # for health checks, which the ports of a Service have together

    @property
    def owner(self) -> str:
        return f"{self.key.namespace}/{self.key.name} (health checks)" if self.check else str(self.key)


class Conflicts:
    """The conflicts of one family."""

    def __init__(self) -> None:
        self._claims: dict[Frontend, tuple[_Claim, ...]] = {}
        self._found: dict[Frontend, Conflict] = {}

    @property
    def found(self) -> tuple[Conflict, ...]:
        """Those that exist now."""
        return tuple(self._found.values())

    def update(self, touched: Touched) -> list[Conflict]:
        """Take in plans that changed, each with what it was before; returns the conflicts that are new or different."""
        looked_at: dict[Frontend, None] = {}
        for key, (old, new) in touched.items():
            before, after = set(_claims(key, old)), set(_claims(key, new))
            for frontend, claim in before - after:
                self._put(frontend, tuple(c for c in self._claims.get(frontend, ()) if c != claim))
                looked_at[frontend] = None
            for frontend, claim in after - before:
                self._put(frontend, (*(c for c in self._claims.get(frontend, ()) if c != claim), claim))
                looked_at[frontend] = None
        return list(self._look(looked_at))

    def _put(self, frontend: Frontend, claims: tuple[_Claim, ...]) -> None:
        if claims:
            self._claims[frontend] = claims
        else:
            self._claims.pop(frontend, None)

    def _look(self, frontends: Iterable[Frontend]) -> Iterator[Conflict]:
        for frontend in frontends:
            owners = {claim.owner for claim in self._claims.get(frontend, ())}
            before = self._found.pop(frontend, None)
            if len(owners) > 1:
                self._found[frontend] = conflict = Conflict(frontend, tuple(sorted(owners)))
                if conflict != before:
                    yield conflict


def _claims(key: PortKey, plan: ServicePlan | None) -> Iterator[tuple[Frontend, _Claim]]:
    if plan is None:
        return
    if plan.node_port:
        yield Frontend("", plan.node_port, key.protocol), _Claim(key, False)
    for ip in (*plan.external_ips, *plan.load_balancer_ips):
        yield Frontend(ip, plan.port, key.protocol), _Claim(key, False)
    if plan.health_check_node_port:
        yield Frontend("", plan.health_check_node_port, Protocol.TCP), _Claim(key, True)
