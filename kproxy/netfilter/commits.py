"""Transactions on one family's table that overwrite nothing unseen.

Decides: which generation of nf_tables is expected, how often others on other tables are got past, and which failures
are a refusal. Leaves out: what to write (delta), and whose fault a refusal is (blame).

The kernel numbers the transactions of everybody on all tables in one row. Each of ours expects the number at which the
table was last known; when others' came in between, it is looked whether they touched our table.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from kproxy.errors import KernelError, NetlinkError
from kproxy.model.plans import Family
from kproxy.netfilter.notifications import Event
from kproxy.netfilter.operations import Operation
from kproxy.netfilter.table import OUTDATED, Listing, Nftables

TRIES = 8
"""How often in a row others may write to other tables between our look at the number and our transaction, which are
microseconds apart. This program's own transactions never do: they exclude each other."""
PAUSE = 0.001  # seconds after the first try, twice as long after each
GENERATIONS = 1 << 32  # the kernel counts in 32 bits, and leaves out 0
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


class Drift(Protocol):
    """Tells whether anyone else changed this family's table, and what."""

    def reading(self) -> None:
        """The table is about to be read: what others changed before this moment will be seen."""

    def listen(self) -> None:
        """From now on it is asked again and again; until then little should be spent on it."""

    def changed(self) -> bool:
        """Whether anyone else changed the table since `reading` or `take`; also true when that is unknown."""

    def take(self) -> list[Event] | None:
        """What others did since `reading` or the last call, in order; None when that is not known: the table has to be
        read."""


class Disturbed(Exception):
    """Somebody else may have changed the table; nothing was written."""


class Unattributed(Exception):
    """The kernel refused a transaction and did not say because of what. Nothing was written."""

    def __init__(self, error: NetlinkError) -> None:
        super().__init__(str(error))
        self.error = error


class Committer:
    """Reads and writes the table of one family."""

    def __init__(
        self,
        family: Family,
        table: str,
        kernel: Nftables,
        drift: Drift | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """drift: None: the table has to be read again after every transaction of anyone else. pause: waits so many
        seconds."""
        self.family, self._table, self._kernel, self._drift, self._pause = family, table, kernel, drift, pause
        self._generation: int | None = None
        self.transactions = 0

    @property
    def watches(self) -> bool:
        """Whether silence proves that nobody changed the table."""
        return self._drift is not None

    def read(self, sizes: Mapping[str, int]) -> Listing | None:
        """What the table holds, see Nftables.listing. Raises NetlinkError."""
        if self._drift is not None:
            self._drift.reading()
        before = self._kernel.generation()
        listing = self._kernel.listing(self.family, self._table, sizes)
        self._generation = before if listing is None else listing.generation
        return listing

    def take(self) -> list[Event] | None:
        """As Drift.take."""
        return self._drift.take() if self._drift is not None else []

    def commit(self, operations: Sequence[Operation]) -> Mapping[int, NetlinkError]:
        """One transaction. Returns what was refused, by index of the operation; then nothing is done.

        Raises Disturbed, Unattributed, KernelError.
        """
        if not operations:
            return {}
        for turn in range(TRIES):
            try:
                errors = self._kernel.apply(self.family, operations, self._expected)
            except NetlinkError as error:
                if error.errno in REFUSALS:
                    raise Unattributed(error) from None
                if error.errno != OUTDATED:
                    raise
                self._pause(PAUSE * 2**turn)
                continue
            if not errors:
                self.transactions += 1
                if self._generation is not None:
                    self._generation = (self._generation + 1) % GENERATIONS or 1
            return errors
        raise KernelError("others keep changing nf_tables")

    def _expected(self) -> int | None:
        """The present generation, if the table is still the one that was read. Raises Disturbed."""
        now = self._kernel.generation()
        if now == self._generation:
            return now
        if self._drift is None:
            if self._generation is not None:
                raise Disturbed
        elif self._drift.changed():
            raise Disturbed
        else:
            self._generation = now
        return self._generation
