"""What can go wrong with an API server, as values that the stand-in is told to act out."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refuse:
    """Any request: this HTTP status. retry_after: seconds for the header of that name, 0 for none."""

    status: int
    retry_after: int = 0


@dataclass(frozen=True, slots=True)
class Hang:
    """Any request: taken, and never answered."""


@dataclass(frozen=True, slots=True)
class CutBody:
    """A list: half of it, then the connection breaks."""


@dataclass(frozen=True, slots=True)
class Forget:
    """A list: answered, and then the server forgets its history, so that no further page of it can be had."""


@dataclass(frozen=True, slots=True)
class Silent:
    """A watch: it begins, and nothing ever comes."""


@dataclass(frozen=True, slots=True)
class EndAtOnce:
    """A watch: it begins and ends without an event."""


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """A watch: HTTP status 200, then an event of the type ERROR with this code."""

    code: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A watch: after that many events, half of the next one's line, then the connection breaks."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class Garbled:
    """A watch: after that many events, half of the next one's JSON as if it were a line, then the end."""

    after: int = 0


Fault = Refuse | Hang | CutBody | Forget | Silent | EndAtOnce | ErrorEvent | Cut | Garbled


class Faults:
    """Those still to come. Used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[Fault, str, str]] = []

    def add(self, fault: Fault, verb: str, kind: str, times: int) -> None:
        """Let the next TIMES requests of VERB on KIND ("" for any) meet FAULT."""
        with self._lock:
            self._waiting += [(fault, verb, kind)] * times

    def take(self, verb: str, kind: str) -> Fault | None:
        """The fault that this request meets, which is then used up."""
        with self._lock:
            for number, (fault, its_verb, its_kind) in enumerate(self._waiting):
                if its_verb in ("", verb) and its_kind in ("", kind):
                    del self._waiting[number]
                    return fault
        return None

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()

    def __len__(self) -> int:
        return len(self._waiting)
