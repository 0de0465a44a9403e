"""Which notices become Kubernetes Events, and what those look like. Pure but for the clock.

The first notice of its kind becomes an Event at once. The same again within the window is only counted, and told as
one Event with a series (count, last time) when the window is over. A reason that comes too often, whatever it is about,
is cut off for a while, so that a thousand broken Services do not flood the API server.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from kproxy.errors import one_line
from kproxy.health.clocks import Clock

__all__ = ["Event", "EventSeries", "Notice", "event_json"]

WINDOW = 300.0
"""Seconds during which the same notice is only counted."""
BURST = 20
"""Events that one reason may cause at once..."""
REFILL = 60.0
"""...and the seconds after which it may cause another."""
REMEMBERED = 1024
"""Different notices that are remembered, the latest."""

_CONTROLLER = "kproxy"
_NOTE_LIMIT = 1000  # bytes; the API server takes 1,024
_WORD_LIMIT = 128


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that an operator should know of.

    kind, namespace, name, uid: the object that it is about; namespace "" for a Node, uid "" when unknown. api_version:
    of that kind. reason: why, one CamelCase word for machines. action: what kproxy tried, likewise. note: for people.
    """

    kind: str
    namespace: str
    name: str
    reason: str
    action: str
    note: str
    type: Literal["Normal", "Warning"] = "Warning"
    uid: str = ""
    api_version: str = "v1"


@dataclass(frozen=True, slots=True)
class Event:
    """A notice that is to be posted. count: how often it came, 1 at first; number: makes its name unique."""

    notice: Notice
    first: datetime
    last: datetime
    count: int
    number: int


@dataclass(slots=True)
class _Seen:
    first: datetime
    last: datetime
    window_ends: float
    count: int = 1
    told: int = 1


@dataclass(slots=True)
class _Bucket:
    tokens: float = BURST
    filled_at: float = 0.0


@dataclass(slots=True)
class EventSeries:
    """Remembers what has been told. Used by one thread."""

    clock: Clock
    _seen: OrderedDict[Notice, _Seen] = field(default_factory=OrderedDict)
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def add(self, notice: Notice) -> list[Event] | None:
        """What to post now because of NOTICE; None when it is dropped since its reason comes too often."""
        now, moment = self.clock.now(), self.clock.monotonic()
        seen = self._seen.get(notice)
        if seen is not None:
            seen.count += 1
            seen.last = now
            return []
        if not self._allowed(notice.reason, moment):
            return None
        seen = self._seen[notice] = _Seen(now, now, moment + WINDOW)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return [self._event(notice, seen)]

    def due(self) -> list[Event]:
        """The repeats whose window is over, to be posted now. Notices that were not repeated are forgotten."""
        moment = self.clock.monotonic()
        events: list[Event] = []
        # In the order in which windows end, so the first that has not ended ends the search.
        while self._seen and next(iter(self._seen.values())).window_ends <= moment:
            notice, seen = self._seen.popitem(last=False)
            if seen.count > seen.told:
                if self._allowed(notice.reason, moment):
                    events.append(self._event(notice, seen))
                    seen.told = seen.count
                seen.window_ends = moment + WINDOW
                self._seen[notice] = seen
        return events

    def _event(self, notice: Notice, seen: _Seen) -> Event:
        return Event(notice, seen.first, seen.last, seen.count, next(self._numbers))

    def _allowed(self, reason: str, moment: float) -> bool:
        bucket = self._buckets.setdefault(reason, _Bucket(filled_at=moment))
        bucket.tokens = min(BURST, bucket.tokens + (moment - bucket.filled_at) / REFILL)
        bucket.filled_at = moment
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


def event_json(event: Event, node: str) -> dict[str, Any]:
    """EVENT as an object of events.k8s.io/v1, reported by kproxy on NODE."""
    notice = event.notice
    # An Event about an object without a namespace goes to "default"; the API server insists.
    regarding = {
        "apiVersion": notice.api_version,
        "kind": notice.kind,
        "namespace": notice.namespace,
        "name": notice.name,
        "uid": notice.uid,
    }
    body: dict[str, Any] = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "namespace": notice.namespace or "default",
            "name": _event_name(notice.name, event),
        },
        "regarding": {key: value for key, value in regarding.items() if value},
        "eventTime": _micro_time(event.first),
        "type": notice.type,
        "reason": notice.reason[:_WORD_LIMIT],
        "action": notice.action[:_WORD_LIMIT],
        "note": _cut(one_line(notice.note, _NOTE_LIMIT)),
        "reportingController": _CONTROLLER,
        "reportingInstance": f"{_CONTROLLER}/{node}"[:_WORD_LIMIT],
    }
    if event.count > 1:
        body["series"] = {"count": event.count, "lastObservedTime": _micro_time(event.last)}
    return body


def _event_name(about: str, event: Event) -> str:
    """A valid and unique name, even when the object's own is not valid."""
    labels = (label.strip("-") for label in re.sub(r"[^a-z0-9.-]+", "-", about.lower())[:200].split("."))
    stem = ".".join(label for label in labels if label) or "object"
    return f"{stem}.{int(event.last.timestamp() * 1e6):x}{event.number & 0xFFFF:04x}"


def _micro_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _cut(text: str) -> str:
    return text.encode()[:_NOTE_LIMIT].decode(errors="ignore")
