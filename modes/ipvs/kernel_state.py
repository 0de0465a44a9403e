"""What the kernel holds of one family's Services in IPVS mode, as far as it was read or written. Pure.

Also decides what of the kernel is ours: whatever else there is belongs to others and is neither kept here nor touched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kproxy.kernel.virtual_servers import RealKey, ServerKey, VirtualServer
from kproxy.model.plans import Family, Protocol
from kproxy.modes.ipvs import names

UNLIKE_OURS = -1
"""The weight noted for a real server that is not reached by masquerading: it differs from every weight."""

NODE_PORTS = {
    Protocol.TCP: (names.NODE_PORT_TCP, names.NODE_PORT_LOCAL_TCP),
    Protocol.UDP: (names.NODE_PORT_UDP, names.NODE_PORT_LOCAL_UDP),
}
FRONTENDS = (names.CLUSTER_IP, names.EXTERNAL_IP, names.EXTERNAL_IP_LOCAL, names.LB, names.NODE_PORT_SCTP)


class Present(NamedTuple):
    """A virtual server that the kernel has, and the weights of its real servers."""

    server: VirtualServer
    weights: dict[RealKey, int]


@dataclass(slots=True)
class KernelState:
    """entries: of each set that exists. addresses: on kube-ipvs0. servers: those that are ours."""

    entries: dict[str, set[str]] = field(default_factory=dict)
    addresses: set[str] = field(default_factory=set)
    servers: dict[ServerKey, Present] = field(default_factory=dict)


class Ours:
    """Tells our virtual servers from others' by what else the kernel holds.

    One is ours when its address is on kube-ipvs0, or in the set of the addresses that should be; when our sets have its
    address, protocol and port; or when its address is the node's and our sets have its protocol and port as a node
    port.
    """

    def __init__(
        self,
        family: Family,
        addresses: Collection[str],
        entries: Mapping[str, Collection[str]],
        node_addresses: Collection[str],
    ) -> None:
        """addresses: on kube-ipvs0, or to be. entries: of the sets, by their full names."""
        self._addresses = frozenset(addresses).union(*_some(entries, (names.IPVS_IPS,), family))
        self._node = node_addresses
        self._frontends = [held for held in _some(entries, FRONTENDS, family) if held]
        self._node_ports = {
            protocol: frozenset().union(*_some(entries, shorts, family)) for protocol, shorts in NODE_PORTS.items()
        }

    def __contains__(self, key: ServerKey) -> bool:
        if key.address in self._addresses:
            return True
        entry = f"{key.address},{key.protocol.lower()}:{key.port}"
        if any(entry in held for held in self._frontends):
            return True
        return key.address in self._node and str(key.port) in self._node_ports.get(key.protocol, ())


def _some(entries: Mapping[str, Collection[str]], shorts: Iterable[str], family: Family) -> Iterable[Collection[str]]:
    return (entries.get(names.set_name(short, family), ()) for short in shorts)
