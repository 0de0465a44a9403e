"""How often the API server may be asked: clientConnection.qps and .burst, as a token bucket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Pace"]


class Pace:
    """At most BURST requests at once and QPS a second in the long run; QPS of 0 or less: no limit. From any thread."""

    def __init__(
        self,
        qps: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._qps, self._burst = qps, max(1, burst)
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._free = float(self._burst)
        self._counted_at = clock()

    def wait(self) -> float:
        """Wait until it is this request's turn; the seconds that it had to wait."""
        if self._qps <= 0:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free = min(self._burst, self._free + (now - self._counted_at) * self._qps)
            self._counted_at = now
            self._free -= 1  # below zero it says how many wait
            seconds = max(0.0, -self._free / self._qps)
        if seconds:
            self._sleep(seconds)
        return seconds
