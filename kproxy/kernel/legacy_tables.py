"""The size of a legacy iptables table: a fingerprint that costs two system calls and no process.

The legacy tables send no notifications, so a change by another program is found by looking. A program that flushes or
restores our rules changes the number of entries; an edit that keeps it is left to the periodic full check.
Sources: include/uapi/linux/netfilter_ipv4/ip_tables.h, include/uapi/linux/netfilter_ipv6/ip6_tables.h.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from kproxy.errors import NetlinkError
from kproxy.model.plans import Family

GET_INFO = 64  # IPT_SO_GET_INFO and IP6T_SO_GET_INFO
INFO = struct.Struct("=32sI5I5III")  # struct ipt_getinfo
NAMES = {Family.IPV4: "ip_tables_names", Family.IPV6: "ip6_tables_names"}
LEVELS = {
    Family.IPV4: (socket.AF_INET, socket.IPPROTO_IP),
    Family.IPV6: (socket.AF_INET6, socket.IPPROTO_IPV6),
}


class TableInfo(NamedTuple):
    """How many entries a table has (rules, and a head and a policy for each chain), their size in bytes, and where the
    built-in chains begin and end in it."""

    entries: int
    size: int
    chains: tuple[int, ...]


def loaded(family: Family) -> frozenset[str]:
    """The legacy tables that this network namespace has; looking makes none."""
    try:
        # Of this thread: threads may be in different network namespaces.
        return frozenset(Path("/proc/thread-self/net", NAMES[family]).read_text().split())
    except OSError:  # the kernel has no legacy iptables, or has not loaded them
        return frozenset()


def table_info(family: Family, table: str) -> TableInfo | None:
    """What the kernel says of TABLE in this network namespace, None when it is not loaded. Raises NetlinkError.

    A table is never loaded by asking: the kernel would make it, and a mere question would mix the two backends.
    """
    if table not in loaded(family):
        return None
    domain, level = LEVELS[family]
    buffer = ctypes.create_string_buffer(INFO.size)
    buffer.value = table.encode()
    size = ctypes.c_uint(INFO.size)
    with socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as asking:
        # socket.getsockopt of Python cannot pass a name in.
        failed = _LIBC.getsockopt(asking.fileno(), level, GET_INFO, buffer, ctypes.byref(size))
    if failed:
        number = ctypes.get_errno()
        if number == errno.ENOENT:
            return None
        raise NetlinkError(f"read the size of the {family} table {table}", number)
    _, _, *chains, entries, length = INFO.unpack(buffer.raw)
    return TableInfo(entries, length, tuple(chains))


_LIBC = ctypes.CDLL(None, use_errno=True)


class LegacyDrift:
    """Compares the tables' sizes with those after the last write."""

    proves = False

    def __init__(self, family: Family) -> None:
        self._family = family
        self._seen: tuple[TableInfo | None, ...] | None = None

    def reading(self) -> None:
        """Take the sizes now, before the tables are read."""
        self._seen = self._sizes()

    def wrote(self) -> None:
        """What was just written is no drift."""
        self._seen = self._sizes()

    def changed(self) -> bool:
        """Whether the sizes differ from those last taken; false when they cannot be had."""
        return self._seen is not None and self._sizes() != self._seen

    def _sizes(self) -> tuple[TableInfo | None, ...] | None:
        try:
            return tuple(table_info(self._family, table) for table in ("nat", "filter"))
        except NetlinkError:
            return None
