"""The values between rendering and programming in IPVS mode: what a Service port needs, and what a node needs once.

What IPVS mode's fragments and rules depend on besides the plans. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from kproxy.kernel.virtual_servers import RealServer, VirtualServer
from kproxy.model.node_info import DetectLocal
from kproxy.model.plans import Family
from kproxy.modes.xtables.rules import SharedRule


class Entry(NamedTuple):
    """One entry of an ipset, in the text that ipset(8) prints. set: its full name, as in KUBE-6-CLUSTER-IP."""

    set: str
    entry: str


class Served(NamedTuple):
    """A virtual server and the real servers behind it, in the plan's order."""

    server: VirtualServer
    reals: tuple[RealServer, ...]


class Fragment(msgspec.Struct, frozen=True, gc=False):
    """Everything that one Service port needs.

    addresses: to be on kube-ipvs0. Several ports may need the same address or set entry (the ports of one Service share
    their cluster IP): it stays as long as any of them needs it.
    rules: this port's own in chains that all ports share (the base's `shared` ones); very few ports have any.
    """

    served: tuple[Served, ...] = ()
    entries: tuple[Entry, ...] = ()
    addresses: tuple[str, ...] = ()
    rules: tuple[SharedRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """One family's.

    scheduler: of every virtual server, by the kernel's name.
    masquerade_mark: the bit of the packet mark that asks for masquerading, as a mask (1 << masqueradeBit).
    node_addresses: the node's own, those of kube-ipvs0 left out: they are never put on that device as well.
    node_port_ips: those of them that take node ports; each gets a virtual server for each node port.
    exclude_cidrs: virtual servers whose address lies in one of these are never removed, even if they look like ours.
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
