"""The kernel's IPVS, by generic netlink: what it holds, and changes to it in batches.

Decides: which requests answer a question, and which refusals are none. Leaves out: the bytes, and what they mean
(kproxy.kernel.ipvs_codec).
Sources: include/uapi/linux/ip_vs.h, net/netfilter/ipvs/ip_vs_ctl.c, ipvsadm(8).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from kproxy.errors import NetlinkError
from kproxy.kernel import ipvs_codec as codec
from kproxy.kernel import netlink
from kproxy.kernel.generic_netlink import NETLINK_GENERIC, family_id
from kproxy.kernel.ipvs_codec import Operation, RealState, Timeouts, Verb
from kproxy.kernel.netlink_sockets import REFUSALS_BUFFER, Part, Socket
from kproxy.kernel.virtual_servers import RealKey, ServerKey, VirtualServer
from kproxy.model.node_info import family_of
from kproxy.model.plans import Family

DELETES = frozenset({Verb.DELETE_SERVER, Verb.DELETE_REAL})
GONE = frozenset({errno.ESRCH, errno.ENOENT})  # no such virtual server; no such real server of it


class Held(NamedTuple):
    """A virtual server as the kernel has it; `server.flags` without HASHED. per_client: False when its persistence
    holds for whole networks of clients, which is never so with ours."""

    server: VirtualServer
    reals: Mapping[RealKey, RealState]
    per_client: bool = True


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


class KernelIpvs:
    """The real one, of the network namespace of the thread that makes it. Close it after use."""

    def __init__(self) -> None:
        """Raises NetlinkError where the kernel has no IPVS: module ip_vs is missing, or cannot be loaded from here."""
        self._socket = Socket(NETLINK_GENERIC, buffer=REFUSALS_BUFFER)
        try:
            self._type = family_id(self._socket, codec.FAMILY)
        except NetlinkError as error:
            self._socket.close()
            if error.errno != errno.ENOENT:
                raise
            raise NetlinkError("open IPVS", errno.ENOENT, "the kernel has no IPVS (module ip_vs)") from None

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> KernelIpvs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def servers(self, family: Family) -> dict[ServerKey, Held]:
        """As Ipvs.servers. One dump of all virtual servers, and one for the real servers of each of the family's."""
        found: dict[ServerKey, Held] = {}
        for payload in self._dump(codec.servers(), "list virtual servers"):
            state = codec.server_of(payload)
            if state is not None and family_of(state.server.key.address) is family:
                found[state.server.key] = Held(state.server, self.reals(state.server.key), state.per_client)
        return found

    def reals(self, server: ServerKey) -> dict[RealKey, RealState]:
        """As Ipvs.reals."""
        payloads = self._dump(codec.reals_of(server), f"list real servers of {server}")
        family = family_of(server.address)
        return dict(codec.real_of(payload, family) for payload in payloads)

    def apply(self, operations: Sequence[Operation]) -> dict[int, NetlinkError]:
        """As Ipvs.apply. An operation that cannot even be said, with an address that is none, is EINVAL."""
        refused: dict[int, NetlinkError] = {}
        parts: list[Part] = []
        sent: list[int] = []  # the operation of each part
        for index, operation in enumerate(operations):
            try:
                parts.append((self._type, 0, codec.change(operation)))
                sent.append(index)
            except ValueError as error:
                refused[index] = NetlinkError(str(operation), errno.EINVAL, str(error))
        for part, refusal in self._socket.change(parts, lambda part: str(operations[sent[part]])).items():
            if not (operations[sent[part]].verb in DELETES and refusal.errno in GONE):
                refused[sent[part]] = refusal
        return refused

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """As Ipvs.set_timeouts; what is no time is EINVAL."""
        request = f"set IPVS timeouts {tuple(timeouts)}"
        try:
            payload = codec.timeouts(timeouts)
        except ValueError as error:
            raise NetlinkError(request, errno.EINVAL, str(error)) from None
        self._socket.ask(self._type, payload, request)

    def has_scheduler(self, name: str) -> bool:
        """As Ipvs.has_scheduler. Makes nothing, not even for an instant, unless the kernel has no IPv6."""
        if name in ("", "none") or len(name.encode()) > codec.SCHEDULER_LIMIT:  # none: IPVS's way to serve nothing
            return False
        request = f"look for IPVS scheduler {name}"
        try:
            self._socket.ask(self._type, codec.probe(name), request)
        except NetlinkError as error:
            if error.errno == errno.EAFNOSUPPORT:
                return self._takes_a_mark_with(name, request)
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise
            return error.errno == errno.EINVAL
        raise NetlinkError(request, errno.EPROTO, "the kernel took a netmask of length 0")

    def _takes_a_mark_with(self, name: str, request: str) -> bool:
        parts: list[Part] = [(self._type, 0, payload) for payload in codec.mark_probe(name)]
        refused = self._socket.change(parts, lambda _: request)
        added = refused.get(0)
        if added and added.errno != errno.ENOENT:
            raise added
        return added is None

    def _dump(self, payload: bytes, request: str) -> list[bytes]:
        chunks = self._socket.dump(self._type, payload, request)
        return [answer.payload for data in chunks for answer in netlink.messages(data) if answer.type == self._type]
