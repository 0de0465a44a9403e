"""What this process may do on the host, and what the kernel has, found out without changing anything.

Asking the kernel for IPVS or ipsets over netlink would load their modules, so /proc and /sys are read instead.
Sources: capabilities(7), proc_pid_status(5), sysfs(5), pid_namespaces(7), include/linux/proc_ns.h,
net/netfilter/ipvs/ip_vs_ctl.c (ip_vs_control_net_init).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

NEEDED = "it takes root, or at least the capability NET_ADMIN"
"""The reason to report when `may_administer_network` is false."""
INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO

_NET_ADMIN = 12  # include/uapi/linux/capability.h
_EFFECTIVE = re.compile(r"^CapEff:\s*([0-9a-f]{1,16})$", re.MULTILINE)


def may_administer_network() -> bool:
    """Whether the calling thread has NET_ADMIN in its user namespace; true where the kernel does not say.

    That the network namespace belongs to this user namespace shows only when something is changed.
    """
    try:
        found = _EFFECTIVE.search(Path("/proc/thread-self/status").read_text(errors="replace"))
    except OSError:
        return True
    return found is None or bool(int(found[1], 16) >> _NET_ADMIN & 1)


def has_ipvs() -> bool:
    """Whether IPVS is loaded in this network namespace."""
    return os.path.exists("/proc/thread-self/net/ip_vs")


def has_conntrack() -> bool:
    """Whether connection tracking is loaded, or built into the kernel."""
    return os.path.exists("/proc/sys/net/netfilter/nf_conntrack_max")


def has_ipset() -> bool:
    """Whether ipsets are loaded, or built into the kernel."""
    return os.path.exists("/sys/module/ip_set")


def in_initial_pid_namespace() -> bool:
    """Whether the process ids that the kernel reports are those that this process knows, which is not so in a
    container. False where that cannot be read."""
    try:
        return os.readlink("/proc/self/ns/pid") == INITIAL_PID_NAMESPACE
    except OSError:
        return False
