"""Named packet counters in the kernel, which iptables rules (-m nfacct) count into.

kube-proxy keeps two of them, `ct_state_invalid_dropped_pkts` and `localhost_nps_accepted_pkts`, where the kernel can.
Source: include/uapi/linux/netfilter/nfnetlink_acct.h.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from kproxy.errors import NetlinkError
from kproxy.kernel import netlink
from kproxy.kernel.netlink_sockets import Socket

NETLINK_NETFILTER = 12
NEW, GET, DELETE = 7 << 8, 7 << 8 | 1, 7 << 8 | 3  # NFNL_SUBSYS_ACCT
NFACCT_NAME, NFACCT_PKTS, NFACCT_BYTES = 1, 2, 3
NAME_LIMIT = 31

INVALID_DROPPED = "ct_state_invalid_dropped_pkts"
LOCALHOST_ACCEPTED = "localhost_nps_accepted_pkts"


class Counter(NamedTuple):
    """What one counter has seen since it was made."""

    packets: int
    bytes: int


def available() -> bool:
    """Whether this kernel has such counters and lets us have them."""
    try:
        counters()
    except NetlinkError:
        return False
    return True


def ensure(name: str) -> None:
    """Make counter NAME unless it is there; its count stays. Raises NetlinkError, ValueError for a name too long."""
    if not 0 < len(name.encode()) <= NAME_LIMIT:
        raise ValueError(f"counter name of more than {NAME_LIMIT} bytes: {name}")
    request = netlink.netfilter(0) + netlink.text(NFACCT_NAME, name)
    try:
        with Socket(NETLINK_NETFILTER) as kernel:
            kernel.ask(NEW, request, f"make counter {name}", netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise


def remove(name: str) -> bool:
    """Delete counter NAME; False when there is none or a rule still counts in it. Raises NetlinkError."""
    try:
        with Socket(NETLINK_NETFILTER) as kernel:
            kernel.ask(DELETE, netlink.netfilter(0) + netlink.text(NFACCT_NAME, name), f"delete counter {name}")
    except NetlinkError as error:
        if error.errno in (errno.ENOENT, errno.EBUSY):
            return False
        raise
    return True


def counters() -> dict[str, Counter]:
    """Every counter of this network namespace by name. Raises NetlinkError where the kernel has none at all."""
    with Socket(NETLINK_NETFILTER) as kernel:
        chunks = kernel.dump(GET, netlink.netfilter(0), "list counters")
    found: dict[str, Counter] = {}
    for data in chunks:
        for answer in netlink.messages(data):
            if answer.type == NEW:
                parts = netlink.attributes(answer.payload, start=4)
                numbers = (netlink.to_int(parts.get(kind, b"")) for kind in (NFACCT_PKTS, NFACCT_BYTES))
                found[netlink.to_text(parts.get(NFACCT_NAME, b""))] = Counter(*numbers)
    return found
