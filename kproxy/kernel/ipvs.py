"""The kernel's IPVS over generic netlink: reading it, and changing it in batches.

Decides: which requests answer a question, and which refusals are harmless. Leaves out: the bytes and what they mean
(`kproxy.kernel.ipvs_codec`).
Sources: include/uapi/linux/ip_vs.h, net/netfilter/ipvs/ip_vs_ctl.c, ipvsadm(8).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from kproxy.errors import NetlinkError
from kproxy.kernel import ipvs_codec as codec
from kproxy.kernel import netlink
from kproxy.kernel.constants import NETLINK_GENERIC
from kproxy.kernel.ipvs_codec import Operation, RealState, Timeouts, Verb
from kproxy.kernel.netlink_sockets import REFUSALS_BUFFER, Part, Socket, generic_family
from kproxy.kernel.virtual_servers import RealKey, ServerKey, VirtualServer
from kproxy.model.node_info import family_of
from kproxy.model.plans import Family

DELETES = frozenset({Verb.DELETE_SERVER, Verb.DELETE_REAL})
GONE = frozenset({errno.ESRCH, errno.ENOENT})  # no such virtual server; no such real server of it


class Held(NamedTuple):
    """A virtual server as the kernel has it; `server.flags` without HASHED. per_client: False when its persistence
    covers whole networks of clients, which kproxy never asks for."""

    server: VirtualServer
    reals: Mapping[RealKey, RealState]
    per_client: bool = True


class Ipvs(Protocol):
    """The IPVS of one network namespace, which serves both families from one table. Not safe for two threads at once:
    each family has an object of its own."""

    def servers(self, family: Family) -> dict[ServerKey, Held]:
        """All virtual servers of `family` that have an address and a port, whoever made them. Raises KernelError."""

    def reals(self, server: ServerKey) -> dict[RealKey, RealState]:
        """The real servers of one virtual server; empty when it does not exist. Raises NetlinkError."""

    def apply(self, operations: Sequence[Operation]) -> dict[int, NetlinkError]:
        """Apply all operations in order. Returns what the kernel refused, by index; the others are done.

        Deleting what is gone already is not an error. Raises NetlinkError when the kernel cannot be reached: then it is
        unknown how many are done.
        """

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Set IPVS's connection timeouts, for both families. Raises NetlinkError."""

    def has_scheduler(self, name: str) -> bool:
        """Whether the kernel has that scheduler, or can load it. Raises NetlinkError when it has no IPVS."""


class KernelIpvs:
    """The real IPVS, of the network namespace of the thread that makes this object. Close it after use."""

    def __init__(self) -> None:
        """Raises NetlinkError where the kernel has no IPVS: module ip_vs is missing, or cannot be loaded from here."""
        self._socket = Socket(NETLINK_GENERIC, buffer=REFUSALS_BUFFER)
        try:
            self._type = generic_family(self._socket, codec.FAMILY)
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
        """See Ipvs.servers: one dump of the virtual servers, then one of the real servers of each."""
        request = "list virtual servers"
        chunks = self._socket.dump(self._type, codec.servers(), request)
        with self._socket.decoding(request):
            states = [state for payload in self._payloads(chunks) if (state := codec.server_of(payload)) is not None]
        return {
            server.key: Held(server, self.reals(server.key), per_client)
            for server, per_client in states
            if family_of(server.key.address) is family
        }

    def virtual_servers(self) -> dict[ServerKey, VirtualServer]:
        """Those of both families that have an address and a port, without their real servers. Raises KernelError."""
        request = "list virtual servers"
        chunks = self._socket.dump(self._type, codec.servers(), request)
        with self._socket.decoding(request):
            states = [codec.server_of(payload) for payload in self._payloads(chunks)]
        return {state.server.key: state.server for state in states if state is not None}

    def reals(self, server: ServerKey) -> dict[RealKey, RealState]:
        request, family = f"list real servers of {server}", family_of(server.address)
        chunks = self._socket.dump(self._type, codec.reals_of(server), request)
        with self._socket.decoding(request):
            return dict(codec.real_of(payload, family) for payload in self._payloads(chunks))

    def apply(self, operations: Sequence[Operation]) -> dict[int, NetlinkError]:
        """See Ipvs.apply. An operation that cannot be encoded (an invalid address) is refused with EINVAL."""
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
        """See Ipvs.set_timeouts. A time that cannot be encoded is refused with EINVAL."""
        request = f"set IPVS timeouts {tuple(timeouts)}"
        try:
            payload = codec.timeouts(timeouts)
        except ValueError as error:
            raise NetlinkError(request, errno.EINVAL, str(error)) from None
        self._socket.ask(self._type, payload, request)

    def has_scheduler(self, name: str) -> bool:
        """See Ipvs.has_scheduler. Creates nothing, not even for an instant, unless the kernel has no IPv6."""
        if name in ("", "none") or len(name.encode()) > codec.SCHEDULER_LIMIT:  # none: a server without a scheduler
            return False
        request = f"look for IPVS scheduler {name}"
        try:
            self._socket.ask(self._type, codec.probe(name), request)
        except NetlinkError as error:
            if error.errno == errno.EAFNOSUPPORT:
                return self._accepts_marked_server(name, request)
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise
            return error.errno == errno.EINVAL
        raise NetlinkError(request, errno.EPROTO, "the kernel took a netmask of length 0")

    def _accepts_marked_server(self, name: str, request: str) -> bool:
        parts: list[Part] = [(self._type, 0, payload) for payload in codec.mark_probe(name)]
        refused = self._socket.change(parts, lambda _: request)
        added = refused.get(0)
        if added and added.errno != errno.ENOENT:
            raise added
        return added is None

    def _payloads(self, chunks: list[bytes]) -> Iterator[bytes]:
        return (answer.payload for data in chunks for answer in netlink.messages(data) if answer.type == self._type)
