"""What the kernel holds of one family's Services in IPVS mode: the value, reading it, and which of it is ours.

Whatever else the kernel has belongs to others, and is neither kept here nor touched. Also creates the sets, which
everything else needs.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kproxy import logs
from kproxy.errors import KernelError, NetlinkError
from kproxy.kernel.ipset import HeldSet, IpSets
from kproxy.kernel.ipset_codec import SetSpec, SetType
from kproxy.kernel.ipvs import Held, Ipvs
from kproxy.kernel.ipvs_codec import RealState
from kproxy.kernel.service_device import ServiceAddresses
from kproxy.kernel.virtual_servers import RealKey, ServerKey, VirtualServer
from kproxy.model.plans import Family, Protocol
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.fragments import Settings

_log = logs.get("ipvs")

OTHER_FORWARDING = -1
"""The weight recorded for a real server with another forwarding method than NAT: it differs from every real weight."""
OTHER_TIMEOUT = -1
"""The timeout recorded for a virtual server with persistence for whole networks: it differs from every real timeout."""

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
    """What the kernel was last read or written to hold. entries: of each set that exists. addresses: on kube-ipvs0.
    servers: those that are ours."""

    entries: dict[str, set[str]] = field(default_factory=dict)
    addresses: set[str] = field(default_factory=set)
    servers: dict[ServerKey, Present] = field(default_factory=dict)


class Ours:
    """The keys of our virtual servers, distinguished from others' by what else the kernel holds.

    A virtual server is ours when its address is on kube-ipvs0, or in the set of the addresses that should be; when our
    sets have its address, protocol and port; or when its address is the node's and our sets have its protocol and port
    as a node port.
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


# ---------------------------------------------------------------- reading


def specs(family: Family) -> tuple[SetSpec, ...]:
    """Every set of a family."""
    return tuple(SetSpec(each.name, SetType(each.type), family) for each in names.sets(family))


def ensure_sets(sets: IpSets, family: Family, drop_rules: Callable[[], None]) -> None:
    """Create the sets that are missing.

    A set with one of our names but another type, or with entries that cannot be read, is of no use to anybody: it is
    destroyed. If rules use it, they are deleted first (by drop_rules) and have to be written again. Raises KernelError.
    """
    wanted = specs(family)
    held = _held(sets, [spec.name for spec in wanted])
    wrong = [spec.name for spec in wanted if spec.name in held and not is_of(held[spec.name], spec)]
    if wrong:
        _log.warning(
            "Ipsets with our names have the wrong type or entries that cannot be read; recreating them and the rules "
            "that use them",
            sets=wrong,
        )
        if sets.destroy(wrong):
            drop_rules()
            for error in sets.destroy(wrong).values():
                raise KernelError(f"an ipset with one of our names has the wrong type, and is in use: {error}")
    missing = [spec for spec in wanted if spec.name not in held or spec.name in wrong]
    if missing:
        sets.create(missing)


def _held(sets: IpSets, wanted: Collection[str]) -> dict[str, HeldSet]:
    """As IpSets.held; a set that cannot be decoded is one of an unknown type."""
    try:
        return sets.held(wanted)
    except NetlinkError as error:
        if error.errno != errno.EBADMSG:
            raise
        if len(wanted) == 1:
            return dict.fromkeys(wanted, HeldSet("", None, 0, frozenset()))
    return {name: held for each in wanted for name, held in _held(sets, [each]).items()}


def is_of(held: HeldSet, spec: SetSpec) -> bool:
    """Whether a set has the type and family that it should have."""
    return held.type == spec.type and (held.family is None or held.family is spec.family)


def read(
    settings: Settings,
    ipvs: Ipvs | None,
    sets: IpSets | None,
    addresses: ServiceAddresses,
    known: Collection[ServerKey],
    wanted: Collection[str],
) -> KernelState:
    """Read what the kernel holds of one family's Services.

    known: virtual servers that are ours in any case. wanted: addresses that will be on kube-ipvs0, whose virtual
    servers are ours too. ipvs, sets: None where they are not loaded in the kernel. Raises KernelError.
    """
    family = settings.family
    bound = set(addresses.held(family))
    held = sets.held([spec.name for spec in specs(family)]) if sets else {}
    entries = {name: set(each.entries) for name, each in held.items()}
    ours = Ours(family, bound.union(wanted), entries, settings.node_addresses)
    found = ipvs.servers(family) if ipvs else {}
    servers = {key: present(server) for key, server in found.items() if key in known or key in ours}
    return KernelState(entries, bound, servers)


def present(held: Held) -> Present:
    """HELD in KernelState's form; persistence for networks of clients counts as another timeout, to be repaired."""
    server = held.server if held.per_client else held.server._replace(timeout=OTHER_TIMEOUT)
    return Present(server, weights(held.reals))


def weights(states: Mapping[RealKey, RealState]) -> dict[RealKey, int]:
    """The weights of real servers as Present has them."""
    return {key: state.weight if state.masqueraded else OTHER_FORWARDING for key, state in states.items()}
