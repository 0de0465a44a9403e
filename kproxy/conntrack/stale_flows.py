"""Which connection-tracking entries lead to the wrong place.

The kernel translates the first packet of a flow by the rules and every later one by its conntrack entry. TCP ends with
its endpoint, but UDP and SCTP clients go on sending, so an entry that outlives its endpoint swallows their packets.
Decides which entries those are. Leaves out: reading and deleting them (kproxy.conntrack.table), and TCP.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from kproxy.model.plans import Frontend, PortKey, Protocol, ServicePlan, frontends

TRACKED = frozenset({Protocol.UDP, Protocol.SCTP})

Carriers = frozenset[tuple[str, int]]


class Flow(msgspec.Struct, frozen=True, gc=False):
    """One conntrack entry. Addresses are canonical text.

    The client sends from source to destination; what answers is the reply source, which differs from the destination
    when the packets are translated. zone, zone_of_original (the zone counts for the client's direction only) and id are
    the kernel's, to name exactly this entry.
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
        """Something other than the address the client asked for answers."""
        return self.reply_source != self.destination or self.reply_port != self.destination_port


def carriers(plan: ServicePlan) -> Carriers:
    """The endpoints that may carry a flow to PLAN.

    Of any policy: a flow that began under another policy is served until it ends.
    """
    return frozenset((e.ip, e.port) for e in (*plan.reachable, *plan.still_serving))


class Frontends:
    """The live frontends of one IP family, kept up to date one port at a time; only UDP and SCTP are in it."""

    def __init__(self) -> None:
        self._ports: dict[PortKey, tuple[tuple[Frontend, ...], Carriers]] = {}
        # Two Services may share an external IP and port: then the endpoints of both may carry a flow.
        self._owners: dict[Frontend, dict[PortKey, Carriers]] = {}
        self._live: dict[Frontend, Carriers] = {}

    def __bool__(self) -> bool:
        return bool(self._ports)

    def __contains__(self, frontend: Frontend) -> bool:
        return frontend in self._live

    def keys(self) -> Collection[PortKey]:
        return self._ports.keys()

    def protocols(self) -> frozenset[Protocol]:
        return frozenset(key.protocol for key in self._ports)

    def put(self, key: PortKey, plan: ServicePlan | None) -> tuple[bool, frozenset[Frontend]]:
        """Note what KEY is now, None when it is gone: whether that changed anything, and what leads nowhere by it."""
        new = (frontends(plan), carriers(plan)) if plan is not None and key.protocol in TRACKED else None
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

    def update(
        self, wanted: Mapping[PortKey, ServicePlan], touched: Iterable[PortKey] | None
    ) -> tuple[bool, set[Frontend]]:
        """Put every port of TOUCHED (None: all) as WANTED has it. Returns what `put` does, for all of them together."""
        keys = {*self._ports, *wanted} if touched is None else touched
        changed, retired = False, set[Frontend]()
        for key in keys:
            one, lost = self.put(key, wanted.get(key))
            changed |= one
            retired |= lost
        return changed, {f for f in retired if f not in self._live}

    def stale(self, flows: Iterable[Flow], retired: Collection[Frontend], node_ips: Collection[str]) -> list[Flow]:
        """Those of FLOWS that must go.

        retired: frontends that lead to no Service any more; what was translated for them goes, whoever answers.
        node_ips: the node's own addresses that take node ports. Another machine's port of that number is none.
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
        # A virtual switch tracks flows in zones of its own, before our rules see them: untranslated is right there.
        return flow.translated or not flow.zone

    def _set(self, frontend: Frontend, key: PortKey, allowed: Carriers | None) -> None:
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
