"""Whether parts of the kernel are there already, without loading them: asking them anything would.

Sources: proc(5), sysfs(5), net/netfilter/ipvs/ip_vs_ctl.c (ip_vs_control_net_init).
"""

from __future__ import annotations

import os

__all__ = ["has_ipset", "has_ipvs"]


def has_ipvs() -> bool:
    """IPVS is loaded, in this network namespace."""
    return os.path.exists("/proc/thread-self/net/ip_vs")


def has_ipset() -> bool:
    """Ipsets are loaded, or built into the kernel."""
    return os.path.exists("/sys/module/ip_set")
