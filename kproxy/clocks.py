"""The two clocks that health and events need: one that only runs forward, one that people read."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

ZERO_TIME = "0001-01-01T00:00:00Z"
"""What Go prints for a time that was never set; readers of kube-proxy's pages know it as "not yet"."""


class Clock(Protocol):
    """Where the time comes from."""

    def monotonic(self) -> float:
        """Seconds since an unknown moment; never goes back, whatever is done to the node's wall clock."""

    def now(self) -> datetime:
        """The wall clock, in UTC."""


class SystemClock:
    """The node's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)


def rfc3339(moment: datetime) -> str:
    """MOMENT as Go's encoding/json writes a time in UTC: RFC 3339, the fraction without trailing zeros."""
    text = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{moment.microsecond:06d}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"
