"""How long to wait after a failure: a short random while at first, longer and more spread out each time. Pure."""

from __future__ import annotations

from random import Random

__all__ = ["Backoff"]


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
