"""What became of one probe."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Answered:
    """Someone answered.

    pod: its name; source, source_port: where it saw the probe come from; reached, reached_port: where it got it.
    """

    pod: str
    source: str
    source_port: int
    reached: str
    reached_port: int


class Nothing(Enum):
    """No answer, and how that showed."""

    REFUSED = "refused"
    TIMED_OUT = "timed out"
    UNREACHABLE = "unreachable"
    CUT = "cut off"


Outcome = Answered | Nothing
