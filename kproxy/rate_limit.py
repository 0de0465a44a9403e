"""How often the API server may be asked: clientConnection.qps and .burst, as a token bucket.

How long to wait after a failure: a short random while at first, longer and more spread out each time. Pure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import Random


class TokenBucket:
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


class Backoff:
    """Decorrelated jitter: each wait is drawn between BASE and three times the one before, and never over CAP seconds.

    Many nodes that lose the API server at once thus do not come back at once. RANDOM is where the draws come from.
    """

    def __init__(self, base: float, cap: float, random: Random) -> None:
        self._base, self._cap, self._random = base, cap, random
        self._last = base

    def next(self, at_least: float = 0.0) -> float:
        """Seconds to wait now; AT_LEAST, what the server asked for, is honoured even over the cap."""
        self._last = min(self._cap, self._random.uniform(self._base, self._last * 3))
        return max(self._last, at_least)

    def reset(self) -> None:
        """It worked: the next wait is a short one again."""
        self._last = self._base
