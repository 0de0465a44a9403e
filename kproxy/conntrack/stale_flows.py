"""Decides which connection tracking entries are stale: they translate to something that no longer serves the Service.

The kernel translates the first packet of a flow by the rules and every later one by its conntrack entry. A TCP
connection ends with its endpoint, but UDP and SCTP clients keep sending, so an entry that outlives its endpoint
swallows their packets. Pure. Leaves out: reading and deleting entries (kproxy.conntrack.table), and TCP.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec

from kproxy.model.plans import Frontend, PortKey, Protocol, ServicePlan, frontends

TRACKED = frozenset({Protocol.UDP, Protocol.SCTP})

Backends = frozenset[tuple[str, int]]
"""IP and port of everything that may answer a flow."""


class Flow(msgspec.Struct, frozen=True, gc=False):
    """One conntrack entry. Addresses are canonical text.

    The client sends from source to destination; the reply source is what answers it, and differs from the destination
    if the packets are translated. zone, zone_of_original (the zone applies to the client's direction only) and id are
    the kernel's and identify exactly this entry.
    """

    protocol: Protocol
    source: str
    source_port: int
    destination: str
    destination_port: int
    reply_source: str
    reply_port: int
    zone: int = 0
    zone_of_original: bool = False
    id: int = 0

    @property
    def translated(self) -> bool:
        """Whether something other than the address that the client asked for answers."""
        return self.reply_source != self.destination or self.reply_port != self.destination_port


def backends(plan: ServicePlan) -> Backends:
    """The endpoints that may answer a flow to `plan`, of either policy: a flow keeps the policy that it began under."""
    return frozenset((e.ip, e.port) for e in (*plan.reachable, *plan.still_serving))


class Update(NamedTuple):
    """What a call of `LiveFrontends.update` changed.

    changed: anything that a flow could notice. retired: frontends that no Service has any more. failed: ports that are
    as they were, because an exception was raised for them.
    """

    changed: bool
    retired: set[Frontend]
    failed: dict[PortKey, Exception]


class LiveFrontends:
    """The frontends of one IP family and the backends of each, kept up to date port by port. UDP and SCTP only."""

    def __init__(self) -> None:
        self._ports: dict[PortKey, tuple[tuple[Frontend, ...], Backends]] = {}
        # Two Services may share an external IP and port; the endpoints of both may then answer a flow.
        self._owners: dict[Frontend, dict[PortKey, Backends]] = {}
        self._live: dict[Frontend, Backends] = {}

    def __contains__(self, frontend: Frontend) -> bool:
        return frontend in self._live

    def keys(self) -> Collection[PortKey]:
        return self._ports.keys()

    def protocols(self) -> frozenset[Protocol]:
        return frozenset(key.protocol for key in self._ports)

    def put(self, key: PortKey, plan: ServicePlan | None) -> tuple[bool, frozenset[Frontend]]:
        """Set one port's plan, None if it is gone. Returns whether that changed anything, and the frontends retired."""
        new = (frontends(plan), backends(plan)) if plan is not None and key.protocol in TRACKED else None
        old = self._ports.get(key)
        if old == new:
            return False, frozenset()
        if new is None:
            del self._ports[key]
        else:
            self._ports[key] = new
        lost = frozenset(old[0] if old else ()).difference(new[0] if new else ())
        for frontend in lost:
            self._set(frontend, key, None)
        if new is not None:
            for frontend in new[0]:
                self._set(frontend, key, new[1])
        return True, frozenset(f for f in lost if f not in self._live)

    def update(self, wanted: Mapping[PortKey, ServicePlan], keys: Iterable[PortKey]) -> Update:
        """Set every port of `keys` to its plan in `wanted`, or remove it if it has none there."""
        changed, retired, failed = False, set[Frontend](), dict[PortKey, Exception]()
        for key in keys:
            try:
                one, lost = self.put(key, wanted.get(key))
            except Exception as error:
                failed[key] = error
                continue
            changed |= one
            retired |= lost
        # A frontend that one of the ports lost may by now be another's.
        return Update(changed, {f for f in retired if f not in self._live}, failed)

    def stale(self, flows: Iterable[Flow], retired: Collection[Frontend], node_ips: Collection[str]) -> list[Flow]:
        """The flows among `flows` that are stale.

        retired: frontends that no Service has any more; every translated flow to them is stale, whoever answers.
        node_ips: the node's own addresses that accept node ports; the same port of another machine is unrelated.
        """
        own, gone = frozenset(node_ips), frozenset(retired)
        return [flow for flow in flows if self._is_stale(flow, gone, own)]

    def _is_stale(self, flow: Flow, retired: frozenset[Frontend], own: frozenset[str]) -> bool:
        exact = Frontend(flow.destination, flow.destination_port, flow.protocol)
        by_node_port = Frontend("", flow.destination_port, flow.protocol) if flow.destination in own else exact
        allowed = self._live.get(exact)
        if allowed is None:
            allowed = self._live.get(by_node_port)
        if allowed is None:
            return flow.translated and (exact in retired or by_node_port in retired)
        if (flow.reply_source, flow.reply_port) in allowed:
            return False
        # A virtual switch tracks flows in zones of its own before our rules see them; untranslated is correct there.
        return flow.translated or not flow.zone

    def _set(self, frontend: Frontend, key: PortKey, allowed: Backends | None) -> None:
        owners = self._owners.setdefault(frontend, {})
        if allowed is None:
            owners.pop(key, None)
        else:
            owners[key] = allowed
        if owners:
            self._live[frontend] = frozenset().union(*owners.values())
        else:
            del self._owners[frontend]
            self._live.pop(frontend, None)
