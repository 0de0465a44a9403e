"""Has anyone else changed this family's xtables tables? Cheap answers, one for each backend.

On nf_tables the kernel says who changed what, so silence is proof. On legacy xtables only a table's size and layout can
be asked for; equal sizes make it likely that nothing changed.
"""

from __future__ import annotations

from collections.abc import Callable

from kproxy.errors import NetlinkError
from kproxy.kernel.legacy_tables import TableInfo, table_info
from kproxy.kernel.nftables_monitor import Monitor
from kproxy.model.plans import Family

__all__ = ["LegacyDrift", "NftDrift"]

TABLES = ("nat", "filter")
NFT_FAMILY = {Family.IPV4: "ip", Family.IPV6: "ip6"}


class NftDrift:
    """Listens to the kernel's notifications. Use it where its programmer is used; close it at the end."""

    proves = True

    def __init__(self, family: Family, is_ours: Callable[[int], bool]) -> None:
        """is_ours: says of a process id whether its changes are this program's. Raises NetlinkError."""
        self._monitor = Monitor(is_ours, [(NFT_FAMILY[family], table) for table in TABLES])
        self._changed = False

    def reading(self) -> None:
        """What others changed before this moment will be seen by who reads the tables now."""
        self._monitor.forget()
        self._changed = False

    def wrote(self) -> None:
        """Nothing to note: the notifications name their author."""

    def changed(self) -> bool:
        """Whether anyone else changed the tables since `reading`; also true when notifications were lost."""
        if self._monitor.poll():
            self._changed = True
        return self._changed

    def close(self) -> None:
        self._monitor.close()


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

    def close(self) -> None:
        """Nothing is open."""

    def _sizes(self) -> tuple[TableInfo | None, ...] | None:
        try:
            return tuple(table_info(self._family, table) for table in TABLES)
        except NetlinkError:
            return None
