"""What this process may do to the host, before it tries. Sources: capabilities(7), proc_pid_status(5)."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["NEEDED", "may_administer_network"]

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
