"""Detects whether another program has written to nf_tables: by counting transactions, and by notifications.

Decides: which transactions in this network namespace were this program's own, and when it pays to listen. Leaves out:
what others changed in nftables mode's own table (kproxy.netfilter.table), and the legacy tables
(kproxy.kernel.legacy_tables).

The kernel numbers the transactions of everybody on all tables in one sequence, and iptables-restore makes one of each
table (iptables 1.8.9). As long as the number grows by our own transactions only, nobody else wrote. That costs nothing,
so it serves until the first sync is done; a listener costs the kernel a message for each rule, a quarter of the time of
a cold start.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from kproxy.kernel.iptables import Backend, Tables
from kproxy.model.plans import Family
from kproxy.netfilter.kernel import NFT_FAMILY, generation
from kproxy.netfilter.notifications import Monitor

TABLES = ("nat", "filter")
WAIT = 0.5
"""Seconds for which one family's transaction lets the other's go first. Then it is made regardless: the expected
generation protects it too, at the price of a repetition."""
STUCK = 10.0
"""Seconds after which a transaction or restore is no longer waited for before the question of who wrote is answered."""
PATIENCE = 0.2  # seconds; a transaction that the kernel has numbered is answered within moments
GENERATIONS = (1 << 32) - 1  # the kernel counts in 32 bits and leaves out 0


def following(number: int, count: int) -> int:
    """The generation that is COUNT transactions after NUMBER."""
    return (number + count - 1) % GENERATIONS + 1


class Mark(NamedTuple):
    """A moment to count from: the kernel's generation, this program's transactions, and how many are uncertain."""

    generation: int
    own: int
    uncertain: int


class Transaction:
    """Transactions of ours that are under way. tables: how many the kernel accepted. certain: whether that is known."""

    def __init__(self, began: float) -> None:
        self.began, self.tables, self.certain = began, 0, False

    def ended(self, tables: int, certain: bool = True) -> None:
        self.tables, self.certain = tables, certain


class OwnTransactions:
    """This program's nf_tables transactions in one network namespace, of both families.

    Each family has a thread of its own, and a transaction of one may hang in the kernel. So no lock is held across a
    call of the kernel; only a *turn* is, which the other family waits for no longer than WAIT.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """clock: seconds, monotonic. pause: waits so many seconds."""
        self._clock, self._pause = clock, pause
        self._changed = threading.Condition()
        self._under_way: set[Transaction] = set()
        self._own = self._uncertain = self._started = 0
        self._start: Mark | None = None
        self._turns: deque[object] = deque()  # the first one writes, the others wait in order
        self._turn_began = 0.0

    # ---- one after the other

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits while another family has its turn, at most until that turn has lasted WAIT seconds."""
        ticket = object()
        with self._changed:
            self._turns.append(ticket)
            if self._turns[0] is ticket:
                self._turn_began = self._clock()
            self._changed.wait_for(lambda: self._turns[0] is ticket, self._turn_began + WAIT - self._clock())
            has_turn = self._turns[0] is ticket
            if not has_turn:
                self._turns.remove(ticket)
        try:
            yield
        finally:
            if has_turn:
                with self._changed:
                    self._turns.popleft()
                    self._turn_began = self._clock()
                    self._changed.notify_all()

    # ---- counting

    @contextmanager
    def under_way(self) -> Iterator[Transaction]:
        """Marks transactions of ours as under way, from before they are made until `ended` records their outcome.

        Without a call of `ended` it is uncertain how many there were.
        """
        transaction = Transaction(self._clock())
        with self._changed:
            self._started += 1
            self._under_way.add(transaction)
        try:
            yield transaction
        finally:
            with self._changed:
                self._under_way.remove(transaction)
                self._own += transaction.tables
                self._uncertain += not transaction.certain

    def begin(self, number: Callable[[], int]) -> None:
        """Count from here on, before the first transaction; later calls change nothing.

        number: reads the kernel's generation. Raises NetlinkError.
        """
        if self._start is None:
            mark = Mark(number(), self._own, self._uncertain)
            with self._changed:
                self._start = self._start or mark

    def others_wrote(self, number: Callable[[], int], since: Mark | None = None) -> bool | None:
        """Whether anyone else made a transaction since `begin` (or SINCE); also true when that can never be known.

        None when it is not known yet, as one of ours is under way: ask again. Raises NetlinkError.
        """
        since = since or self._start
        if since is None:
            return True
        mark = self._mark(number)
        if mark is None:
            with self._changed:
                return True if any(self._clock() - one.began > STUCK for one in self._under_way) else None
        if mark.uncertain != since.uncertain:
            return True
        return mark.generation != following(since.generation, mark.own - since.own)

    def await_whether_others_wrote(self, number: Callable[[], int], since: Mark | None = None) -> bool:
        """As `others_wrote`, but while the answer is None it asks again, for PATIENCE seconds at most; then True."""
        until = self._clock() + PATIENCE
        while (answer := self.others_wrote(number, since)) is None and self._clock() < until:
            self._pause(PATIENCE / 100)
        return answer is not False

    def _mark(self, number: Callable[[], int]) -> Mark | None:
        """A Mark of this moment; None while a transaction of ours is under way, or when one began meanwhile."""
        with self._changed:
            if self._under_way:
                return None
            started = self._started
        found = number()
        with self._changed:
            return Mark(found, self._own, self._uncertain) if self._started == started else None

    def mark(self, number: int) -> Mark | None:
        """The present, at generation NUMBER that was just read during a `turn`; None as `_mark`."""
        return self._mark(lambda: number)


class NftDrift:
    """Detects changes that others make to one family's iptables tables on nf_tables. Close it after use.

    It starts to listen when first asked after the cold start. Used by one thread, that of the family.
    """

    proves = True

    def __init__(self, family: Family, is_ours: Callable[[int], bool], own: OwnTransactions) -> None:
        """is_ours: whether a process id belongs to this program. own: shared by both families."""
        self._family, self._is_ours, self._own = family, is_ours, own
        self._monitor: Monitor | None = None
        self._changed = False

    def reading(self) -> None:
        """Note that the tables are about to be read: that covers all that others did until now. Raises NetlinkError."""
        self._changed = False
        if self._monitor is not None:
            self._monitor.forget()
        else:
            self._own.begin(generation)

    def wrote(self) -> None:
        """Do nothing: the notifications name their author."""

    def changed(self) -> bool:
        """Whether anyone else changed the tables since `reading`; true when that is unknown. Raises NetlinkError.

        False, too, before it listens and while the other family is writing: the next call answers for all the time.
        """
        if self._monitor is None and not self._listen():
            return False
        assert self._monitor is not None
        if self._monitor.poll():
            self._changed = True
        return self._changed

    def close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()

    @contextmanager
    def restoring(self) -> Iterator[Transaction]:
        """Covers a restore of ours; `ended` takes how many tables it had. Raises NetlinkError."""
        with self._own.under_way() as transaction:
            yield transaction
        if self._monitor is not None:
            self.changed()  # the notifications of the restore wait in a bounded buffer

    def _listen(self) -> bool:
        """Starts to listen, unless it cannot be told yet whether others wrote before."""
        if self._own.others_wrote(generation) is None:
            return False
        monitor = Monitor(self._is_ours, [(NFT_FAMILY[self._family], table) for table in TABLES])
        others_wrote = self._own.others_wrote(generation)
        if others_wrote is None:
            monitor.close()
            return False
        self._monitor, self._changed = monitor, others_wrote
        return True


class WatchedTables:
    """iptables tables whose restores are recorded in an NftDrift."""

    def __init__(self, tables: Tables, drift: NftDrift) -> None:
        self._tables, self._drift = tables, drift

    @property
    def family(self) -> Family:
        return self._tables.family

    @property
    def backend(self) -> Backend:
        return self._tables.backend

    def save(self) -> str:
        return self._tables.save()

    def chains(self, table: str) -> Collection[str]:
        return self._tables.chains(table)

    def list_chain(self, table: str, chain: str) -> str:
        return self._tables.list_chain(table, chain)

    def holds(self, table: str, chain: str, rule: str) -> bool:
        return self._tables.holds(table, chain, rule)

    def restore(self, text: bytes | str) -> None:
        tables = text.count(b"\nCOMMIT\n") if isinstance(text, bytes) else text.count("\nCOMMIT\n")
        with self._drift.restoring() as transaction:
            self._tables.restore(text)
            transaction.ended(tables)
