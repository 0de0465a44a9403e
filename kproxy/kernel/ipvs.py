"""The kernel's IPVS, by generic netlink: what it holds, and changes to it in batches.

Sources: include/uapi/linux/ip_vs.h, net/netfilter/ipvs/ip_vs_ctl.c, ipvsadm(8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from kproxy.errors import NetlinkError
from kproxy.model.plans import Family
from kproxy.model.virtual_servers import RealKey, RealServer, ServerKey, VirtualServer

__all__ = ["Held", "Ipvs", "Operation", "RealState", "Timeouts", "Verb"]


class Verb(Enum):
    """What an operation does."""

    ADD_SERVER = "add virtual server"
    EDIT_SERVER = "edit virtual server"
    DELETE_SERVER = "delete virtual server"
    ADD_REAL = "add real server"
    EDIT_REAL = "edit real server"
    DELETE_REAL = "delete real server"


class Operation(NamedTuple):
    """One change. For a DELETE_SERVER only the key of `server` counts, for a DELETE_REAL only that of `real`; a
    DELETE_SERVER takes its real servers along. real: None unless the verb is about one."""

    verb: Verb
    server: VirtualServer
    real: RealServer | None = None


class RealState(NamedTuple):
    """What the kernel says of a real server. masqueraded: False when it is reached in a way that is not ours.
    active, inactive, persistent: connections and templates that lead to it."""

    weight: int
    active: int = 0
    inactive: int = 0
    persistent: int = 0
    masqueraded: bool = True

    @property
    def idle(self) -> bool:
        """Nothing leads to it any more."""
        return self.active + self.inactive == 0


class Held(NamedTuple):
    """A virtual server as the kernel has it; `server.flags` without HASHED, netmask says whether it is a host's."""

    server: VirtualServer
    reals: Mapping[RealKey, RealState]


class Timeouts(NamedTuple):
    """IPVS's timeouts of connections in seconds; in a change 0 leaves one as it is."""

    tcp: int = 0
    tcp_fin: int = 0
    udp: int = 0


class Ipvs(Protocol):
    """The IPVS of one network namespace. Not for two threads at a time: make one for each."""

    def servers(self, family: Family) -> dict[ServerKey, Held]:
        """All virtual servers of a family that are named by address and port, whoever made them. Raises KernelError."""

    def reals(self, server: ServerKey) -> dict[RealKey, RealState]:
        """The real servers of one virtual server; empty when there is no such one. Raises NetlinkError."""

    def apply(self, operations: Sequence[Operation]) -> dict[int, NetlinkError]:
        """Do them all, in order. Returns what the kernel refused, by index; the others are done.

        A DELETE of what is gone already is no error. Raises NetlinkError when the kernel cannot be talked to: then it
        is unknown how many are done.
        """

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Raises NetlinkError."""

    def has_scheduler(self, name: str) -> bool:
        """Whether the kernel has that scheduler, or can load it. Raises NetlinkError when it has no IPVS."""
