"""What a Service port needs in IPVS mode, and the settings that it depends on besides the plan, as values. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from kproxy.kernel.virtual_servers import RealServer, VirtualServer
from kproxy.model.node_info import DetectLocal
from kproxy.model.plans import Family
from kproxy.modes.xtables.rules import SharedRule


class Entry(NamedTuple):
    """One entry of an ipset, as ipset(8) prints it. set: the set's full name, as in KUBE-6-CLUSTER-IP."""

    set: str
    entry: str


class Served(NamedTuple):
    """A virtual server and the real servers behind it, in the plan's order."""

    server: VirtualServer
    reals: tuple[RealServer, ...]


class Fragment(msgspec.Struct, frozen=True, gc=False):
    """Everything that one Service port needs.

    addresses: to be on kube-ipvs0. rules: this port's own in chains that all ports share (the base's `shared` ones);
    very few ports have any.
    """

    served: tuple[Served, ...] = ()
    entries: tuple[Entry, ...] = ()
    addresses: tuple[str, ...] = ()
    rules: tuple[SharedRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one family.

    scheduler: of every virtual server, by the kernel's name.
    masquerade_mark: the bit of the packet mark that requests masquerading, as a mask (1 << masqueradeBit).
    node_addresses: the node's own without those of kube-ipvs0; they are never added to that device.
    node_port_ips: those of them that accept node ports; each gets a virtual server for each node port.
    exclude_cidrs: virtual servers whose address is in one of these are never removed, even if they look like ours.
    """

    family: Family
    scheduler: str = "rr"
    masquerade_mark: int = 1 << 14
    masquerade_all: bool = False
    detect_local: DetectLocal = field(default_factory=DetectLocal)
    node_addresses: frozenset[str] = frozenset()
    node_port_ips: tuple[str, ...] = ()
    random_fully: bool = True
    exclude_cidrs: tuple[str, ...] = ()
