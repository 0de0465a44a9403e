"""The kernel's connection tracking table: lists entries and deletes some of them, over netlink.

The bytes are kproxy.conntrack.codec's.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Collection, Iterable, Iterator
from typing import Protocol as Interface

from kproxy.conntrack.codec import DELETE, GET, clients_request, decode, deletion, dump_request
from kproxy.conntrack.stale_flows import TRACKED, Flow
from kproxy.errors import KernelError
from kproxy.kernel.constants import NETLINK_NETFILTER
from kproxy.kernel.netlink_sockets import Socket
from kproxy.model.node_info import family_of
from kproxy.model.plans import Family, Protocol

DELETED_AT_ONCE = 64  # so that the acknowledgements fit the receive buffer


class Conntrack(Interface):
    """The connection tracking table of this network namespace. Both calls may be made from any thread."""

    def flows(self, family: Family, protocols: Collection[Protocol] = TRACKED) -> list[Flow]:
        """The entries of one family with one of `protocols` (of UDP and SCTP).

        Raises KernelError when any part of the table could not be read; a part of it is never returned.
        """

    def delete(self, flows: Iterable[Flow]) -> int:
        """Delete exactly these entries. Returns how many still existed; one that has gone is not an error.

        Raises KernelError when one could not be deleted; some of the others may have been.
        """


class KernelConntrack:
    """The real table. Each call opens a socket, in the network namespace of the calling thread."""

    def flows(self, family: Family, protocols: Collection[Protocol] = TRACKED) -> list[Flow]:
        found: list[Flow] = []
        for protocol in sorted(protocols):
            request = f"list {family} {protocol} conntrack entries"
            with _readable(request), Socket(NETLINK_NETFILTER) as kernel:
                chunks = kernel.dump(GET, dump_request(family, protocol), request)
                found.extend(decode(chunks, family, {protocol}))
        return found

    def of_client(self, protocol: Protocol, source: str, destination: str, port: int) -> list[Flow]:
        """The entries of one client to one address and port, by any protocol, also TCP. Raises KernelError."""
        request = f"list the conntrack entries of {source}"
        with _readable(request), Socket(NETLINK_NETFILTER) as kernel:
            chunks = kernel.dump(GET, clients_request(protocol, source, destination, port), request)
            found = decode(chunks, family_of(source), {protocol})
        wanted = source, destination, port
        return [flow for flow in found if (flow.source, flow.destination, flow.destination_port) == wanted]

    def delete(self, flows: Iterable[Flow]) -> int:
        requests = [(DELETE, 0, deletion(flow)) for flow in flows]
        if not requests:
            return 0
        request, deleted = "delete conntrack entries", 0
        with _readable(request), Socket(NETLINK_NETFILTER) as kernel:
            for start in range(0, len(requests), DELETED_AT_ONCE):
                part = requests[start : start + DELETED_AT_ONCE]
                gone = kernel.ask_many(part, request, ignore=(errno.ENOENT,))
                deleted += len(part) - len(gone)
        return deleted


@contextlib.contextmanager
def _readable(request: str) -> Iterator[None]:
    """Turn the errors of decoding into KernelError: what arrives on the socket is not ours to trust."""
    try:
        yield
    except (ValueError, struct.error) as error:
        raise KernelError(f"{request}: the kernel's answer cannot be decoded: {error}") from error
