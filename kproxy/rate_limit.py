"""How often something may be done, and how long to wait after it failed: a token bucket and a backoff.

Both are pure: the time is an argument, and so is where random numbers come from. `RateLimiter` makes a thread wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import Random

FIRST_RETRY = 0.2
LAST_RETRY = 30.0


class Backoff:
    """The wait after each of several failures in a row, in seconds.

    Without `random` each wait is twice the one before, from `first` to `last`. With it, each is drawn between `first`
    and three times the one before (decorrelated jitter), so that many nodes that lose the API server at once do not
    come back at once.
    """

    def __init__(self, first: float = FIRST_RETRY, last: float = LAST_RETRY, random: Random | None = None) -> None:
        self._first, self._last, self._random = first, last, random
        self._wait, self.failures = first, 0

    def next(self, at_least: float = 0.0) -> float:
        """The wait after one more failure. at_least: what the other side asked for, honoured even over `last`."""
        self.failures += 1
        if self._random is not None:
            self._wait = min(self._last, self._random.uniform(self._first, self._wait * 3))
        elif self.failures > 1:
            self._wait = min(self._last, self._wait * 2)
        return max(self._wait, at_least)

    def reset(self) -> None:
        """Note a success: the next wait is a short one again."""
        self._wait, self.failures = self._first, 0


class TokenBucket:
    """At most `burst` events at once, and `rate` a second in the long run. Times are seconds of one monotonic clock."""

    __slots__ = ("_burst", "_filled_at", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._filled_at = float(burst), now

    def take(self, now: float) -> bool:
        """Whether an event may happen now; if so, it is counted."""
        self._fill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def reserve(self, now: float) -> float:
        """Count an event that will happen, and return the seconds that it has to wait for its turn."""
        self._fill(now)
        self._tokens -= 1  # below zero it says how many wait
        return max(0.0, -self._tokens / self._rate)

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now


class RateLimiter:
    """Lets threads wait for their turn: clientConnection.qps and .burst. A `qps` of 0 or less means no limit."""

    def __init__(
        self,
        qps: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._bucket = TokenBucket(qps, max(1, burst), clock()) if qps > 0 else None

    def wait(self) -> float:
        """Wait until it is this caller's turn; returns the seconds that it had to wait."""
        if self._bucket is None:
            return 0.0
        with self._lock:
            seconds = self._bucket.reserve(self._clock())
        if seconds:
            self._sleep(seconds)
        return seconds
