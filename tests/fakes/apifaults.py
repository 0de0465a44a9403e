"""The faults that the API stand-in can act out, as values for `ApiServer.inject`."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refuse:
    """Any request: refused with this HTTP status. retry_after: seconds for that header, 0 for none."""

    status: int
    retry_after: int = 0


@dataclass(frozen=True, slots=True)
class Hang:
    """Any request: accepted, and never answered."""


@dataclass(frozen=True, slots=True)
class CutBody:
    """A list: half of it, then the connection breaks."""


@dataclass(frozen=True, slots=True)
class Forget:
    """A list: answered, and then the server forgets its history, so that further pages of it are expired."""


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


@dataclass(frozen=True, slots=True)
class Unended:
    """A watch that begins with a streamed list: all is sent, and never that this is all."""


Fault = Refuse | Hang | CutBody | Forget | Silent | EndAtOnce | ErrorEvent | Cut | Garbled | Unended


class Faults:
    """The faults that no request has met yet. Used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[Fault, str, str]] = []

    def add(self, fault: Fault, verb: str, kind: str, times: int) -> None:
        """Let the next TIMES requests of VERB on KIND ("" for any) meet FAULT."""
        with self._lock:
            self._waiting += [(fault, verb, kind)] * times

    def take(self, verb: str, kind: str) -> Fault | None:
        """Remove and return the fault that this request meets."""
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
