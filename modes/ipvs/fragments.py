"""The values between rendering and programming in IPVS mode: what a Service port needs, and what a node needs once."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from kproxy.model.virtual_servers import RealServer, VirtualServer
from kproxy.modes.iptables.fragments import SharedRule

__all__ = ["Entry", "Fragment", "Served"]


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
