"""The interface between a mode and the forwarder: listeners as values. Pure.

In userspace mode a Service port has one listener for each list of endpoints that some of its traffic may reach (policy
Cluster, policy Local). Each listens on a proxy port of its own, to which the portal rules redirect. In other modes a
node port may have a listener on loopback (kproxy.modes.userspace.localhost_ports).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol

import msgspec

from kproxy.errors import KernelError
from kproxy.model.plans import Endpoint, Family, PortKey, ServicePlan
from kproxy.model.plans import Protocol as Transport


class Reach(StrEnum):
    """Which of a plan's endpoint lists a listener forwards to."""

    CLUSTER = "cluster"
    LOCAL = "local"


class ListenerKey(NamedTuple):
    """Identifies a listener within one IP family.

    node_port: the port on loopback that it listens on; 0 for a proxy port, which the forwarder allocates.
    """

    key: PortKey
    reach: Reach
    node_port: int = 0


class Listener(msgspec.Struct, frozen=True, gc=False):
    """What a listener forwards to. endpoints: in the plan's order, never empty. affinity_seconds: 0 for none."""

    family: Family
    endpoints: tuple[Endpoint, ...]
    affinity_seconds: int = 0


LOOPBACK: Mapping[Family, str] = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
"""The address that node ports on loopback listen on."""


def localhost_listener(plan: ServicePlan) -> tuple[ListenerKey, Listener] | None:
    """The listener that the node port of PLAN needs on loopback; None without a TCP node port or an endpoint for it.

    A client on the node gets the endpoints of the external traffic policy, as in KEP-6032: with policy Local only those
    on this node.
    """
    if plan.protocol is not Transport.TCP or not plan.node_port or not plan.has_endpoints:
        return None
    if not (endpoints := plan.external_endpoints):
        return None
    reach = Reach.LOCAL if plan.external_local else Reach.CLUSTER
    return ListenerKey(plan.key, reach, plan.node_port), Listener(plan.family, endpoints, plan.affinity_seconds)


class Statistics(msgspec.Struct, frozen=True):
    """The forwarder's counters, since it started.

    connections, sessions: TCP connections and UDP sessions that are open now. accepted: TCP connections accepted.
    bytes_in, bytes_out: towards endpoints, towards clients. retries: endpoints skipped because they refused or did not
    answer in time. refused: connections given up, by reason ("no-endpoint": no endpoint accepted, "descriptors": the
    process has no file descriptor left, "not-translated": the client connected to the proxy port itself,
    "internal-error": an unexpected exception). reset: connections cut off at the end of the drain time.
    """

    connections: int = 0
    sessions: int = 0
    accepted: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    retries: int = 0
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    reset: int = 0


class ForwarderBusy(KernelError):
    """The forwarder does not answer at present. Nothing was changed and nothing was lost; try again later."""


class Forwarder(Protocol):
    """Listens and forwards, in processes of its own. Used by several threads at any time."""

    def update(self, family: Family, changes: Mapping[ListenerKey, Listener | None]) -> Mapping[ListenerKey, int | str]:
        """Open or change these listeners; None closes one. All others stay as they are.

        One request to every worker, which forwards nothing meanwhile: at most some 64 changes.
        Returns for each that was not closed its proxy port, which stays the same for as long as it listens, or the
        reason why it does not listen (one line). Open connections stay open, those to endpoints that were removed until
        the drain time is over. The first call starts the forwarder.

        Raises ForwarderBusy. Raises any other KernelError when the forwarder has ended or cannot be started: then it
        has no listeners any more. Each family that had some gets this error once; its next call is served by new
        processes, and it has to open all of its listeners again.
        """

    def alive(self, family: Family) -> bool:
        """Whether all listeners that a family opened still listen; true if it has none. Cheap.

        False from their loss until `update` has raised its error for this family.
        """

    def statistics(self) -> Statistics:
        """The counters; all zero before the first `update`. Raises KernelError when the forwarder does not answer."""

    def close(self) -> None:
        """End the forwarder, and with it every connection."""
