"""How a run tells what it is doing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called from the thread that measures."""

    def begin(self, subject: str, services: int, what: str, total: int) -> None:
        """A phase of TOTAL steps starts; the one before it is over."""

    def step(self) -> None:
        """One more of its steps is done."""

    def say(self, line: str) -> None:
        """A line for people: a result, a problem."""
