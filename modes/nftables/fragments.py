"""The values between rendering and programming: what one Service port needs, what the node needs, and the settings that
rules depend on besides the plans. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from kproxy.model.node_info import DetectLocal, NodePortAddresses
from kproxy.model.plans import Endpoint, Family, Frontend
from kproxy.modes.nftables.names import CLUSTER_IPS, HAIRPINS, Balancer
from kproxy.netfilter.objects import Chain, Element, Key, Set


class Targets(NamedTuple):
    """The endpoints of one frontend, by slot: elements KEY . 0, KEY . 1 and so on of the map SET.

    They are most of a table, so they are kept as the values that the elements are made from.
    """

    set: str
    key: Key
    ends: tuple[Endpoint, ...]

    @property
    def elements(self) -> tuple[Element, ...]:
        return tuple(Element(self.set, (*self.key, slot), (e.ip, e.port)) for slot, e in enumerate(self.ends))


class Claim(NamedTuple):
    """A frontend of the port, and the elements that it needs.

    When two ports claim one frontend, all elements are those of the first of them by PortKey, as a mixture of both
    would not work. The keys of all elements contain the frontend, so those of different frontends never collide.
    targets: None when traffic is refused or dropped, or translated by chains of the fragment. sources: the only ones
    that may use it; empty for all. balancer: how traffic is treated; None when it is refused or dropped. own: a chain
    of the fragment does that, not the one that all ports share. loopback: what packets to the node port on loopback
    need.
    """

    frontend: Frontend
    verdict: Element
    targets: Targets | None = None
    sources: tuple[Element, ...] = ()
    balancer: Balancer | None = None
    own: bool = False
    loopback: tuple[Element, ...] = ()

    @property
    def elements(self) -> tuple[Element, ...]:
        return (self.verdict, *(self.targets.elements if self.targets else ()), *self.sources, *self.loopback)

    @property
    def size(self) -> int:
        """How many elements there are."""
        return 1 + (len(self.targets.ends) if self.targets else 0) + len(self.sources) + len(self.loopback)

    @property
    def needs(self) -> Balancer | None:
        """The shared chain that traffic to the frontend goes to, None when there is none."""
        return None if self.own else self.balancer


class Fragment(msgspec.Struct, frozen=True, gc=False):
    """Everything that one Service port needs.

    cluster_ip: "" for a port that needs nothing. hairpins: the addresses of its endpoints, each once. sets: the set of
    clients, with affinity only; ports with the same timeout share it. chains: this port's own, with affinity only.
    """

    claims: tuple[Claim, ...] = ()
    cluster_ip: str = ""
    hairpins: tuple[str, ...] = ()
    sets: tuple[Set, ...] = ()
    chains: tuple[Chain, ...] = ()

    @property
    def shared(self) -> tuple[Element, ...]:
        """Elements that other ports may need too: each stays as long as any port needs it."""
        cluster_ip = (Element(CLUSTER_IPS, (self.cluster_ip,)),) if self.cluster_ip else ()
        return (*cluster_ip, *(Element(HAIRPINS, (ip, ip)) for ip in self.hairpins))

    @property
    def size(self) -> int:
        """How many elements there are."""
        return 1 + len(self.hairpins) + sum(claim.size for claim in self.claims)


@dataclass(frozen=True, slots=True)
class Base:
    """What a node needs whatever its Services are. sets: including those that hold elements of ports."""

    settings: Settings
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]
    elements: tuple[Element, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """All that rules depend on besides the plans.

    masquerade_mark: the bit of the packet mark that asks for masquerading, as a mask (1 << masqueradeBit).
    node_port_addresses: where node ports answer by translation; loopback never does, in either family.
    refuses_localhost: packets to node ports on loopback are refused and counted, unless localhost_networks serves them.
    localhost_networks: the networks on loopback where TCP node ports are served by a process.
    service_cidrs: the ranges of cluster IPs in this family; traffic to an address in them that no Service has is
    dropped. Empty when they are not known.
    """

    family: Family
    masquerade_mark: int = 1 << 14
    masquerade_all: bool = False
    detect_local: DetectLocal = field(default_factory=DetectLocal)
    node_port_addresses: NodePortAddresses = field(default_factory=NodePortAddresses)
    service_cidrs: tuple[str, ...] = ()
    tcp_be_liberal: bool = False
    random_fully: bool = True
    refuses_localhost: bool = False
    localhost_networks: tuple[str, ...] = ()
