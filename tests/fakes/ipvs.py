"""IPVS in memory: strict where the kernel is, so that wrong operations fail in tests too.

Leaves out: packets. Connections are counts that a test sets. Source: net/netfilter/ipvs/ip_vs_ctl.c.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from kproxy.errors import NetlinkError
from kproxy.kernel.ipvs import Held
from kproxy.kernel.ipvs_codec import Operation, RealState, Timeouts, Verb
from kproxy.kernel.virtual_servers import HASHED, RealKey, ServerKey, VirtualServer
from kproxy.model.node_info import family_of
from kproxy.model.plans import Family

SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh")
GONE = (errno.ESRCH, errno.ENOENT)


def accept(operation: Operation) -> int:
    """Refuses nothing; for `FakeIpvs.refuse`."""
    return 0


@dataclass(slots=True)
class _Server:
    server: VirtualServer
    reals: dict[RealKey, RealState] = field(default_factory=dict)


class FakeIpvs:
    """An Ipvs of both families, in memory; dataplanes of both may share one.

    Faults to inject: `schedulers` that the kernel has; `refuse`, which gives the errno for an operation or 0 (a kernel
    short of memory, a real server's address that is a broadcast address on this host); `fail_at`, the numbers of the
    applies (from 1) of which only the first half is done before the kernel cannot be talked to; `unreadable`, whether
    reading fails; `absent`, whether the kernel has no IPVS.

    applied: every operation that was asked for, in order. reads, lists: how often `reals` and `servers` were asked.
    """

    def __init__(self, schedulers: Collection[str] = SCHEDULERS) -> None:
        self.schedulers = set(schedulers)
        self.refuse: Callable[[Operation], int] = accept
        self.fail_at: set[int] = set()
        self.unreadable = False
        self.absent = False
        self.applied: list[Operation] = []
        self.applies = 0
        self.reads = 0
        self.lists = 0
        self.timeouts = Timeouts(900, 120, 300)  # the kernel's own
        self._servers: dict[ServerKey, _Server] = {}

    # ---- what a test does to it

    def connect(self, server: ServerKey, real: RealKey, active: int = 0, inactive: int = 0) -> None:
        """From now on so many connections lead to a real server. Raises KeyError when there is no such one."""
        held = self._servers[server].reals
        held[real] = held[real]._replace(active=active, inactive=inactive)

    def edit(self, operation: Operation) -> None:
        """What other programs do: an operation that is counted nowhere. Raises NetlinkError when it is refused."""
        if number := self._do(operation):
            raise NetlinkError(str(operation), number)

    def clear(self, family: Family | None = None) -> None:
        """Do what `ipvsadm -C` does."""
        for key in [key for key in self._servers if family in (None, family_of(key.address))]:
            del self._servers[key]

    # ---- Ipvs

    def servers(self, family: Family) -> dict[ServerKey, Held]:
        self._readable("list virtual servers")
        self.lists += 1
        found = (item for item in self._servers.items() if family_of(item[0].address) is family)
        return {key: Held(held.server, dict(held.reals)) for key, held in found}

    def reals(self, server: ServerKey) -> dict[RealKey, RealState]:
        self._readable(f"list real servers of {server}")
        self.reads += 1
        return dict(self._servers[server].reals) if server in self._servers else {}

    def apply(self, operations: Sequence[Operation]) -> dict[int, NetlinkError]:
        self._present("change virtual servers")
        self.applies += 1
        self.applied += operations
        failing = self.applies in self.fail_at
        errors: dict[int, NetlinkError] = {}
        for index, operation in enumerate(operations[: len(operations) // 2] if failing else operations):
            if number := self.refuse(operation) or self._do(operation):
                errors[index] = NetlinkError(str(operation), number)
        if failing:
            raise NetlinkError("change virtual servers", errno.ENOBUFS)
        return errors

    def set_timeouts(self, timeouts: Timeouts) -> None:
        self._present("set timeouts")
        if min(timeouts) < 0:
            raise NetlinkError("set timeouts", errno.EINVAL)
        self.timeouts = Timeouts(*(new or old for new, old in zip(timeouts, self.timeouts, strict=True)))

    def has_scheduler(self, name: str) -> bool:
        self._present(f"scheduler {name}")
        return name in self.schedulers

    # ---- inside

    def _present(self, request: str) -> None:
        if self.absent:
            raise NetlinkError(request, errno.ENOENT, "the kernel has no IPVS")

    def _readable(self, request: str) -> None:
        self._present(request)
        if self.unreadable:
            raise NetlinkError(request, errno.ENOBUFS)

    def _do(self, operation: Operation) -> int:
        """The errno, 0 when it is done."""
        match operation.verb:
            case Verb.ADD_SERVER:
                return self._add_server(operation.server)
            case Verb.EDIT_SERVER:
                return self._edit_server(operation.server)
            case Verb.DELETE_SERVER:
                self._servers.pop(operation.server.key, None)
                return 0
        number = self._real(operation)
        return 0 if operation.verb is Verb.DELETE_REAL and number in GONE else number

    def _add_server(self, server: VirtualServer) -> int:
        if number := self._check(server):
            return number
        if server.key in self._servers:
            return errno.EEXIST
        self._servers[server.key] = _Server(_as_held(server))
        return 0

    def _edit_server(self, server: VirtualServer) -> int:
        if server.key not in self._servers:
            return errno.ESRCH
        if number := self._check(server):
            return number
        self._servers[server.key].server = _as_held(server)
        return 0

    def _check(self, server: VirtualServer) -> int:
        key = server.key
        # Port 0 stands for all ports, and only of a persistent server.
        if not _is_address(key.address) or not 0 < key.port < 65536 or server.timeout < 0:
            return errno.EINVAL
        return 0 if server.scheduler in self.schedulers else errno.ENOENT

    def _real(self, operation: Operation) -> int:
        held, real = self._servers.get(operation.server.key), operation.real
        if held is None:
            return errno.ESRCH
        if real is None:
            return errno.EINVAL
        there = held.reals.get(real.key)
        if operation.verb is Verb.DELETE_REAL:
            return errno.ENOENT if held.reals.pop(real.key, None) is None else 0
        if real.weight < 0:
            return errno.ERANGE
        if not _is_unicast(real.key.address) or family_of(real.key.address) is not family_of(held.server.key.address):
            return errno.EINVAL
        if (there is None) != (operation.verb is Verb.ADD_REAL):
            return errno.ENOENT if there is None else errno.EEXIST
        held.reals[real.key] = (there or RealState(0))._replace(weight=real.weight, masqueraded=True)
        return 0


def _as_held(server: VirtualServer) -> VirtualServer:
    return server._replace(flags=server.flags & ~HASHED)


def _is_address(text: str) -> bool:
    try:
        return str(ipaddress.ip_address(text)) == text
    except ValueError:
        return False


def _is_unicast(text: str) -> bool:
    """The kernel takes no real server at a multicast, broadcast or (IPv6) link-local address."""
    if not _is_address(text):
        return False
    address = ipaddress.ip_address(text)
    if address.is_multicast or address.is_unspecified or text == "255.255.255.255":
        return False
    return address.version == 4 or not address.is_link_local
