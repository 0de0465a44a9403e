"""The wall clock and the monotonic clock behind one Protocol, so that tests can stop them, and Go's form of times."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

ZERO_TIME = "0001-01-01T00:00:00Z"
"""What Go prints for a time that was never set; on kube-proxy's pages it means "not yet"."""


class Clock(Protocol):
    """A source of time. Both methods may be called from any thread."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never goes back, whatever is done to the wall clock."""

    def now(self) -> datetime:
        """The wall clock, in UTC."""


class SystemClock:
    """The node's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)


def rfc3339(moment: datetime) -> str:
    """Format `moment` as Go's encoding/json does: RFC 3339 in UTC, the fraction without trailing zeros."""
    text = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{moment.microsecond:06d}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"
