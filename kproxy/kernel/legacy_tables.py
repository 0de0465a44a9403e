"""Notices changes of legacy iptables tables by their size: a fingerprint that costs two system calls and no process.

The legacy tables send no notifications. A program that flushes or restores our rules changes the number of entries; an
edit that keeps it is left to the periodic full check.
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
from kproxy.kernel.constants import ADDRESS_FAMILY
from kproxy.model.plans import Family

GET_INFO = 64  # IPT_SO_GET_INFO and IP6T_SO_GET_INFO
INFO = struct.Struct("=32sI5I5III")  # struct ipt_getinfo
NAMES = {Family.IPV4: "ip_tables_names", Family.IPV6: "ip6_tables_names"}
LEVELS = {Family.IPV4: socket.IPPROTO_IP, Family.IPV6: socket.IPPROTO_IPV6}


class TableInfo(NamedTuple):
    """A table's size: the number of its entries (rules, and a head and a policy for each chain), their length in bytes,
    and the offsets at which the built-in chains begin and end."""

    entries: int
    size: int
    chains: tuple[int, ...]


def loaded(family: Family) -> frozenset[str]:
    """The legacy tables that this network namespace has; asking creates none."""
    try:
        # Of this thread: threads may be in different network namespaces.
        return frozenset(Path("/proc/thread-self/net", NAMES[family]).read_text(errors="replace").split())
    except OSError:  # the kernel has no legacy iptables, or has not loaded them
        return frozenset()


def table_info(family: Family, table: str) -> TableInfo | None:
    """The size of TABLE in this network namespace, None when it is not loaded. Raises NetlinkError.

    The kernel is not asked about a table that is not loaded: it would load it, and so mix the two backends.
    """
    if table not in loaded(family):
        return None
    buffer = ctypes.create_string_buffer(INFO.size)
    buffer.value = table.encode()
    size = ctypes.c_uint(INFO.size)
    request = f"read the size of the {family.value} table {table}"
    try:
        opened = socket.socket(ADDRESS_FAMILY[family], socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
    except OSError as error:
        raise NetlinkError(request, error.errno or errno.EIO) from None
    with opened:  # Python's getsockopt cannot pass a name in
        failed = _LIBC.getsockopt(opened.fileno(), LEVELS[family], GET_INFO, buffer, ctypes.byref(size))
    if failed:
        number = ctypes.get_errno()
        if number == errno.ENOENT:
            return None
        raise NetlinkError(request, number)
    _, _, *chains, entries, length = INFO.unpack(buffer.raw)
    return TableInfo(entries, length, tuple(chains))


_LIBC = ctypes.CDLL(None, use_errno=True)


class LegacyDrift:
    """Compares the sizes of one family's tables with those after the last write; a Drift of the chain writer."""

    proves = False

    def __init__(self, family: Family) -> None:
        self._family = family
        self._seen: tuple[TableInfo | None, ...] | None = None

    def reading(self) -> None:
        self._seen = self._sizes()

    def wrote(self) -> None:
        self._seen = self._sizes()

    def changed(self) -> bool:
        """Whether the sizes differ from those last noted; false when they cannot be read."""
        return self._seen is not None and (sizes := self._sizes()) is not None and sizes != self._seen

    def _sizes(self) -> tuple[TableInfo | None, ...] | None:
        try:
            return tuple(table_info(self._family, table) for table in ("nat", "filter"))
        except NetlinkError:
            return None
