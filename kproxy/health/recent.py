"""What happened lately, kept in memory for the status page: syncs and the like, and the log's warnings and errors."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, NamedTuple, TypeVar

from kproxy import logs
from kproxy.errors import one_line
from kproxy.health.clocks import rfc3339
from kproxy.health.overview import LogLine

__all__ = ["KEPT", "Latest", "RecentLines"]

KEPT = 50
LONGEST = 600  # characters of a line

T = TypeVar("T")


class Latest(Generic[T]):
    """The last KEPT things, latest first. From any thread."""

    def __init__(self, kept: int = KEPT) -> None:
        self._lock = threading.Lock()
        self._held: deque[T] = deque(maxlen=kept)

    def add(self, item: T) -> None:
        with self._lock:
            self._held.appendleft(item)

    def items(self) -> tuple[T, ...]:
        with self._lock:
            return tuple(self._held)


class _Line(NamedTuple):
    """What makes two lines the same: numbers in it may differ (how often, when again)."""

    level: str
    part: str
    message: str
    words: str


@dataclass(slots=True)
class _Said:
    first: float
    last: float
    text: str
    times: int = 1


class RecentLines(logging.Handler):
    """A handler that keeps the last KEPT different warnings and errors; the same again is only counted."""

    def __init__(self, kept: int = KEPT) -> None:
        super().__init__(logging.WARNING)
        self._kept = kept
        self._held: OrderedDict[_Line, _Said] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        """As logging.Handler.emit, which holds the lock."""
        part, message, fields = logs.told(record)
        level = "error" if record.levelno >= logging.ERROR else "warning"
        words = {name: value for name, value in fields.items() if type(value) not in (int, float)}
        line = _Line(level, part, message, one_line(_shown(words), LONGEST))
        text = one_line(message + _shown(fields), LONGEST)
        said = self._held.pop(line, None)
        if said is None:
            said = _Said(record.created, record.created, text)
        else:
            said.last, said.text, said.times = record.created, text, said.times + 1
        self._held[line] = said
        while len(self._held) > self._kept:
            self._held.popitem(last=False)

    def lines(self) -> tuple[LogLine, ...]:
        """What is kept, latest first. From any thread."""
        self.acquire()
        try:
            held = [(line, said.first, said.last, said.text, said.times) for line, said in reversed(self._held.items())]
        finally:
            self.release()
        return tuple(
            LogLine(first=_time(first), last=_time(last), times=times, level=line.level, part=line.part, text=text)
            for line, first, last, text, times in held
        )


def _shown(fields: Mapping[str, object]) -> str:
    return "".join(f" {name}={json.dumps(value, ensure_ascii=False)}" for name, value in fields.items())


def _time(seconds: float) -> str:
    return rfc3339(datetime.fromtimestamp(int(seconds), UTC))
