"""One table of nf_tables that only this program writes: reading it, committing to it, and what others did to it.

Decides: which generation of nf_tables a transaction expects, how often others' transactions on other tables are retried
past, when to listen to notifications, and which errors are a refusal. Leaves out: what to write, and which Service port
a refusal is about (both in kproxy.modes.nftables).

This is one optimistic lock. The kernel numbers the transactions of everybody on all tables in one sequence, and takes
ours only at the number at which the table was last known. When others came in between, the notifications tell whether
they touched this table. So nothing is overwritten unseen.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product

from kproxy import logs
from kproxy.errors import KernelError, NetlinkError
from kproxy.model.plans import Family
from kproxy.netfilter.changes import OwnTransactions, Transaction, following
from kproxy.netfilter.kernel import OUTDATED, Listener, Listing, Nftables
from kproxy.netfilter.notifications import DETAILED, Event
from kproxy.netfilter.operations import AddElements, DeleteElements, DeleteTable, FillSet, Operation

_log = logs.get("nftables")

TRIES = 8
"""How often in a row others may write to other tables between our look at the generation and our transaction, which are
microseconds apart. The families of this program take turns."""
PAUSE = 0.001  # seconds after the first try, twice as long after each
LARGE = 5_000
"""Elements of a transaction of ours. The kernel spends more on a notification for each of them than on the transaction,
and more notifications than the buffer holds would look like changes of others that were lost. So it does not listen
meanwhile. Nothing escapes: the kernel takes the transaction at one generation only, and a later one is noticed."""
# What the kernel may find wrong with a transaction as a whole, or too much of it.
REFUSALS = frozenset(
    {
        errno.E2BIG,
        errno.EINVAL,
        errno.ELOOP,
        errno.EMLINK,
        errno.EMSGSIZE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EOPNOTSUPP,
        errno.ERANGE,
    }
)


class Outdated(Exception):
    """Somebody else changed the table, or may have; nothing was written."""


class Unattributed(Exception):
    """The kernel refused a transaction and did not say which operation is at fault. Nothing was written."""

    def __init__(self, error: NetlinkError) -> None:
        super().__init__(str(error))
        self.error = error


class Table:
    """The table of one family. Used by one thread at a time; close it after use.

    transactions: how many were committed.
    """

    def __init__(
        self,
        family: Family,
        name: str,
        kernel: Nftables,
        own: OwnTransactions,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """own: shared by all tables of this program in this network namespace. pause: waits so many seconds."""
        self.family, self.name, self._kernel, self._own, self._pause = family, name, kernel, own, pause
        self.transactions = 0
        self._generation: int | None = None  # at which the table was last known
        self._listener: Listener | None = None
        self._events: list[Event] = []
        self._unknown = False  # something was changed, and not all of that is in _events

    @property
    def bytes_written(self) -> int:
        return self._kernel.bytes_written

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # ---- reading

    def read(self, sizes: Mapping[str, int]) -> Listing | None:
        """What the table holds, see Nftables.listing. Raises NetlinkError."""
        self._events, self._unknown = [], False
        if self._listener is not None:
            self._listener.forget()
        else:
            self._own.begin(self._kernel.generation)
        before = self._kernel.generation()
        listing = self._kernel.listing(self.family, self.name, sizes)
        self._generation = before if listing is None else listing.generation
        return listing

    def can_delete(self, table: str) -> bool:
        """Whether this family has a table of that name, and the kernel would delete it. Raises NetlinkError."""
        return not self._kernel.check(self.family, [DeleteTable(table)])

    # ---- changes

    def listen(self) -> None:
        """Starts to listen to notifications; until then transactions are only counted. Raises NetlinkError.

        Does nothing while the other family is writing and it cannot be told yet whether others wrote before.
        """
        if self._listener is None and self._others_wrote() is not None:
            self._listener = self._kernel.listen(self.family, self.name)
            self._unknown |= self._own.await_whether_others_wrote(self._kernel.generation)

    def changed(self) -> bool:
        """Whether anyone else changed the table since `read` or `changes`; true when that is unknown. Raises
        NetlinkError.

        False, too, before it listens and while the other family is writing: the next call answers for all the time.
        """
        if self._listener is None:
            if not self._others_wrote():
                return False
            self._listener, self._unknown = self._kernel.listen(self.family, self.name), True
        events = [change.event for change in self._listener.poll()]
        self._events += [event for event in events if event is not None]
        if None in events or len(self._events) > DETAILED:
            self._unknown, self._events = True, []
        return self._unknown or bool(self._events)

    def changes(self) -> list[Event] | None:
        """What others did since `read` or the last call, in order; None when that is not known, and the table has to be
        read. Raises NetlinkError."""
        self.changed()
        events, self._events = self._events, []
        return None if self._unknown else events

    def _others_wrote(self) -> bool | None:
        return self._own.others_wrote(self._kernel.generation)

    # ---- writing

    def commit(self, operations: Sequence[Operation]) -> Mapping[int, NetlinkError]:
        """Makes one transaction. Returns what was refused, by index of the operation; then nothing is done.

        Raises Outdated, Unattributed, KernelError.
        """
        if not operations:
            return {}
        for turn in range(TRIES):
            try:
                errors = self._try(operations)
            except NetlinkError as error:
                if error.errno in REFUSALS:
                    raise Unattributed(error) from None
                if error.errno != OUTDATED:
                    raise
                self._pause(PAUSE * 2**turn)
                continue
            self.transactions += not errors
            return errors
        raise KernelError("other programs keep changing nf_tables")

    def _try(self, operations: Sequence[Operation]) -> dict[int, NetlinkError]:
        with ExitStack() as stack:
            transaction: list[Transaction] = []

            def expected() -> int | None:
                """The generation to expect; called just before the transaction is sent."""
                stack.enter_context(self._own.turn())
                number = self._expected()
                if _size(operations) > LARGE:
                    stack.enter_context(self._without_listening(number))
                transaction.append(stack.enter_context(self._own.under_way()))
                return number

            try:
                errors = self._kernel.apply(self.family, operations, expected)
            except NetlinkError as error:
                if transaction and error.errno == OUTDATED:
                    transaction[0].ended(0)
                raise
            if transaction:
                transaction[0].ended(int(not errors))
            if not errors and self._generation is not None:
                self._generation = following(self._generation, 1)
        if self._listener is not None:
            self.changed()  # the notifications of the transaction wait in a bounded buffer
        return errors

    def _expected(self) -> int | None:
        """The present generation, if the table is still the one that was read. Raises Outdated."""
        now = self._kernel.generation()
        if now != self._generation:
            if self._listener is None and self._own.await_whether_others_wrote(self._kernel.generation):
                self._listener, self._unknown = self._kernel.listen(self.family, self.name), True
            if self._listener is not None and self.changed():
                raise Outdated
            self._generation = now
        return now

    @contextmanager
    def _without_listening(self, number: int | None) -> Iterator[None]:
        """Stops listening during a large transaction of ours, which would flood the buffer. NUMBER: its generation."""
        if self._listener is None:
            yield
            return
        mark = None if number is None else self._own.mark(number)
        self.changed()
        self.close()
        try:
            yield
        finally:
            self._listener = self._kernel.listen(self.family, self.name)
            self._unknown |= mark is None or self._own.await_whether_others_wrote(self._kernel.generation, mark)


def _size(operations: Sequence[Operation]) -> int:
    filled = sum(op.number for op in operations if isinstance(op, FillSet))
    return filled + sum(len(op.elements) for op in operations if isinstance(op, AddElements | DeleteElements))


def delete_tables(kernel: Nftables, tables: Iterable[str], families: Iterable[Family] = tuple(Family)) -> list[str]:
    """Deletes whole tables, whoever wrote them. Returns one line for each that is there and could not be deleted.

    Raises NetlinkError.
    """
    problems: list[str] = []
    for family, table in product(families, tables):
        errors = kernel.apply(family, [DeleteTable(table)])
        if not errors:
            _log.info("Deleted an nf_tables table with everything in it", family=family.value, table=table)
        elif errors[0].errno != errno.ENOENT:
            problems.append(f"{family.value} {errors[0]}")
    return problems
