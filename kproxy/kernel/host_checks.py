"""What this process may do to the host, before it tries. Sources: capabilities(7), proc_pid_status(5).

Whether parts of the kernel are there already, without loading them: asking them anything would.

Sources: proc(5), sysfs(5), net/netfilter/ipvs/ip_vs_ctl.c (ip_vs_control_net_init).

Whether the kernel's process ids are those that this process knows. In a container they are not.

Sources: pid_namespaces(7), include/linux/proc_ns.h.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

NEEDED = "it takes root, or at least the capability NET_ADMIN"
"""What the one who may not is told."""

_NET_ADMIN = 12  # include/uapi/linux/capability.h
_EFFECTIVE = re.compile(r"^CapEff:\s*([0-9a-f]+)$", re.MULTILINE)


def may_administer_network() -> bool:
    """The thread that asks has NET_ADMIN in its user namespace; whether the network namespace belongs to that one, only
    trying shows. True where the kernel does not say."""
    try:
        found = _EFFECTIVE.search(Path("/proc/thread-self/status").read_text())
    except OSError:
        return True
    return found is None or bool(int(found[1], 16) >> _NET_ADMIN & 1)


def has_ipvs() -> bool:
    """IPVS is loaded, in this network namespace."""
    return os.path.exists("/proc/thread-self/net/ip_vs")


def has_ipset() -> bool:
    """Ipsets are loaded, or built into the kernel."""
    return os.path.exists("/sys/module/ip_set")


INITIAL_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO


def are_the_kernels() -> bool:
    """Only in the first process id namespace; false also where that cannot be seen."""
    try:
        return os.readlink("/proc/self/ns/pid") == INITIAL_NAMESPACE
    except OSError:
        return False
