"""Whether the kernel's process ids are those that this process knows. In a container they are not.

Sources: pid_namespaces(7), include/linux/proc_ns.h.
"""

from __future__ import annotations

import os

__all__ = ["are_the_kernels"]

INITIAL_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO


def are_the_kernels() -> bool:
    """Only in the first process id namespace; false also where that cannot be seen."""
    try:
        return os.readlink("/proc/self/ns/pid") == INITIAL_NAMESPACE
    except OSError:
        return False
