"""Named packet counters in the kernel (nfacct objects), which iptables rules increment by `-m nfacct`.

kube-proxy keeps two of them where the kernel has nfacct; their names are in `kproxy.kernel.constants`.
Source: include/uapi/linux/netfilter/nfnetlink_acct.h.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple

from kproxy.errors import NetlinkError
from kproxy.kernel import netlink
from kproxy.kernel.constants import NETLINK_NETFILTER, NFNL_SUBSYS_ACCT
from kproxy.kernel.netlink_sockets import Socket

NEW, GET, DELETE = (NFNL_SUBSYS_ACCT << 8 | number for number in (0, 1, 3))  # NFNL_MSG_ACCT_*
NFACCT_NAME, NFACCT_PKTS, NFACCT_BYTES = 1, 2, 3
NAME_LIMIT = 31


class Counter(NamedTuple):
    """What one counter has counted since it was created."""

    packets: int
    bytes: int


def available() -> bool:
    """Whether this kernel has such counters, and lets this process use them."""
    try:
        counters()
    except NetlinkError:
        return False
    return True


def ensure(name: str) -> None:
    """Create counter `name` unless it exists; an existing one keeps its count.

    Raises NetlinkError, ValueError for a name too long.
    """
    if not 0 < len(name.encode()) <= NAME_LIMIT:
        raise ValueError(f"counter name of more than {NAME_LIMIT} bytes: {name}")
    try:
        with Socket(NETLINK_NETFILTER) as kernel:
            kernel.ask(NEW, _named(name), f"create counter {name}", netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise


def remove(name: str) -> bool:
    """Delete counter `name`; False when there is none, or a rule still counts into it. Raises NetlinkError."""
    try:
        with Socket(NETLINK_NETFILTER) as kernel:
            kernel.ask(DELETE, _named(name), f"delete counter {name}")
    except NetlinkError as error:
        if error.errno in (errno.ENOENT, errno.EBUSY):
            return False
        raise
    return True


def counters() -> dict[str, Counter]:
    """Every counter of this network namespace by name. Raises NetlinkError where the kernel has no nfacct."""
    request = "list counters"
    with Socket(NETLINK_NETFILTER) as kernel:
        chunks = kernel.dump(GET, netlink.netfilter(0), request)
        with kernel.decoding(request):
            return dict(_decode(chunks))


def _named(name: str) -> bytes:
    return netlink.netfilter(0) + netlink.text(NFACCT_NAME, name)


def _decode(chunks: list[bytes]) -> Iterator[tuple[str, Counter]]:
    for data in chunks:
        for answer in netlink.messages(data):
            if answer.type == NEW:
                parts = netlink.attributes(answer.payload, start=4)
                packets, size = (netlink.to_int(parts[kind]) for kind in (NFACCT_PKTS, NFACCT_BYTES))
                yield netlink.to_text(parts[NFACCT_NAME]), Counter(packets, size)
