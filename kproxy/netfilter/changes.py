"""Has anyone else changed this family's tables, of xtables or our own of nf_tables? Cheap answers, one for each.

On nf_tables the kernel says who changed what, so silence is proof. On legacy xtables only a table's size and layout can
be asked for; equal sizes make it likely that nothing changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

from kproxy.errors import NetlinkError
from kproxy.kernel.iptables import Backend, Tables
from kproxy.model.plans import Family
from kproxy.netfilter.notifications import DETAILED, Event, Monitor, generation
from kproxy.netfilter.operations import AddElements, DeleteElements, FillSet, Operation
from kproxy.netfilter.table import OUTDATED, Expected, KernelNftables, Listing

TABLES = ("nat", "filter")
LARGE = 5_000
"""Elements of a transaction of ours. The kernel spends more on a message for each of them than on the transaction, and
more messages than the buffer holds would look like others' changes that were lost. So nobody listens meanwhile; nothing
escapes, as the kernel takes the transaction at one number only and another number afterwards is noticed."""
NFT_FAMILY = {Family.IPV4: "ip", Family.IPV6: "ip6"}


class Commits:
    """Counts this program's own nf_tables transactions, over both families, against the kernel's number of all.

    The kernel numbers transactions one by one, and iptables-restore makes one of each table (iptables 1.8.9).
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._start: int | None = None
        self._own = 0
        self._certain = True

    def begin(self) -> None:
        """Count from here on; later calls change nothing."""
        with self._lock:
            if self._start is None:
                self._start = generation()

    def add(self, tables: int, certain: bool) -> None:
        """A restore of so many tables ended; certain: and all of them were taken."""
        with self._lock:
            self._own += tables
            self._certain &= certain

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """While a transaction of ours is made, and added, nobody counts."""
        with self._lock:
            yield

    def alone(self) -> bool:
        """Whether all transactions since `begin` were our own. Ask only while none of ours is under way."""
        with self._lock:
            return self._certain and self._start is not None and generation() == self._start + self._own


class NftDrift:
    """Listens to the kernel's notifications. Use it where its dataplane is used; close it at the end.

    A listener costs the kernel a message for each rule, a quarter of the time of a cold start. So it begins to listen
    only when first asked, and the transactions up to then are only counted.
    """

    proves = True

    def __init__(self, family: Family, is_ours: Callable[[int], bool], commits: Commits) -> None:
        """is_ours: says of a process id whether its changes are this program's. commits: shared by both families."""
        self._family, self._is_ours = family, is_ours
        self._commits = commits
        self._monitor: Monitor | None = None
        self._changed = False

    def reading(self) -> None:
        """What others changed before this moment will be seen by who reads the tables now. Raises NetlinkError."""
        self._changed = False
        if self._monitor is not None:
            self._monitor.forget()
        else:
            self._commits.begin()

    def restored(self, tables: int, certain: bool) -> None:
        """A restore of ours ended. Read what the kernel said of it now: it waits in a bounded buffer."""
        self._commits.add(tables, certain)  # the other family may not listen yet
        if self._monitor is not None:
            self.changed()

    def wrote(self) -> None:
        """Nothing to note: the notifications name their author."""

    def changed(self) -> bool:
        """Whether anyone else changed the tables since `reading`; true when that is unknown. Raises NetlinkError."""
        if self._monitor is None:
            self._monitor = self._listen()
            self._changed = not self._commits.alone()
        if self._monitor.poll():
            self._changed = True
        return self._changed

    def close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()

    def _listen(self) -> Monitor:
        return Monitor(self._is_ours, [(NFT_FAMILY[self._family], table) for table in TABLES])


class WatchedTables:
    """Tables that tell a NftDrift of every restore."""

    def __init__(self, tables: Tables, drift: NftDrift) -> None:
        self._tables, self._drift = tables, drift

    @property
    def family(self) -> Family:
        return self._tables.family

    @property
    def backend(self) -> Backend:
        return self._tables.backend

    def save(self) -> str:
        """As Tables.save."""
        return self._tables.save()

    def restore(self, text: bytes | str) -> None:
        """As Tables.restore."""
        done = False
        try:
            self._tables.restore(text)
            done = True
        finally:
            tables = text.count(b"\nCOMMIT\n") if isinstance(text, bytes) else text.count("\nCOMMIT\n")
            self._drift.restored(tables, done)


class TableDrift(NftDrift):
    """The same for a table of our own, which is written by netlink. Begins to listen late, for the same reason: when
    told to, or when somebody else's transaction has to be looked at.

    It knows what others did, event by event, so that only this has to be mended.
    """

    def __init__(self, family: Family, table: str, portid: int, commits: Commits) -> None:
        """portid: of the netlink socket with which this program writes the table."""
        super().__init__(family, lambda writer: writer == portid, commits)
        self._table, self._paused = table, False
        self._events: list[Event] = []

    def reading(self) -> None:
        """As NftDrift.reading."""
        super().reading()
        self._events = []

    def listen(self) -> None:
        """Begin to listen; until then transactions are only counted. Raises NetlinkError."""
        if self._monitor is None:
            self._monitor = self._listen()
            self._changed = not self._commits.alone()

    def changed(self) -> bool:
        """As NftDrift.changed."""
        if self._monitor is None and self._commits.alone():
            return False
        self.listen()
        assert self._monitor is not None
        events = [change.event for change in self._monitor.poll()]
        self._events += [event for event in events if event is not None]
        if None in events or len(self._events) > DETAILED:
            self._changed, self._events = True, []
        return self._changed or bool(self._events)

    def pause(self) -> None:
        """Stop listening until `resume`, which has to follow soon. Raises NetlinkError."""
        if self._monitor is not None:
            self.changed()
            self._monitor.close()
            self._monitor, self._paused = None, True

    def resume(self, number: int | None) -> None:
        """Listen again, if `pause` stopped it. number: that of the last transaction, if nobody else made one meanwhile;
        None when that cannot be told. Raises NetlinkError."""
        if self._paused:
            self._monitor, self._paused = self._listen(), False
            self._changed |= number is None or generation() != number

    def take(self) -> list[Event] | None:
        """What others did since `reading` or the last call, in order; None when that is not known, and the table has to
        be read. Raises NetlinkError."""
        self.changed()
        events, self._events = self._events, []
        return None if self._changed else events

    def _listen(self) -> Monitor:
        place = NFT_FAMILY[self._family], self._table
        return Monitor(self._is_ours, [place], lambda event: True, by_portid=True, detailed=True)


class WatchedNftables:
    """nf_tables that tell a TableDrift of every transaction. As kproxy.netfilter.table.Nftables.

    Those that share their Commits exclude each other: the kernel numbers the transactions of all tables in one row, so
    one family's would come between the other's look at the number and its transaction.
    """

    def __init__(self, kernel: KernelNftables, drift: TableDrift, commits: Commits) -> None:
        """commits: those of DRIFT."""
        self._kernel, self._drift, self._commits = kernel, drift, commits

    @property
    def bytes_written(self) -> int:
        return self._kernel.bytes_written

    def generation(self) -> int:
        """As Nftables.generation."""
        return self._kernel.generation()

    def apply(
        self, family: Family, operations: Sequence[Operation], expected: Expected = None
    ) -> dict[int, NetlinkError]:
        """As Nftables.apply."""
        number: int | None = None

        def begin() -> int | None:
            nonlocal number
            number = expected() if callable(expected) else expected
            if _size(operations) > LARGE:
                self._drift.pause()
            return number

        with self._commits.under_way():
            done, certain = False, True
            try:
                errors = self._kernel.apply(family, operations, begin)
                done = bool(operations) and not errors
                return errors
            except NetlinkError as error:
                certain = error.errno == OUTDATED
                raise
            finally:
                self._drift.resume(number if number is None else number + done)
                self._drift.restored(int(done), certain)

    def check(
        self, family: Family, operations: Sequence[Operation], expected: Expected = None
    ) -> dict[int, NetlinkError]:
        """As Nftables.check."""
        return self._kernel.check(family, operations, expected)

    def listing(self, family: Family, table: str, sizes: Mapping[str, int] = MappingProxyType({})) -> Listing | None:
        """As Nftables.listing."""
        return self._kernel.listing(family, table, sizes)


def _size(operations: Sequence[Operation]) -> int:
    filled = sum(op.number for op in operations if isinstance(op, FillSet))
    return filled + sum(len(op.elements) for op in operations if isinstance(op, AddElements | DeleteElements))
