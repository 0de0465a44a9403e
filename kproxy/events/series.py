"""Which notices become Kubernetes Events, and what those look like. Pure but for the clock.

The first notice of its kind becomes an Event at once. The same again within the window makes that Event a series
(count, last time), told at once the first time and then once a window, as long as it goes on: one object in the
cluster, however often something recurs, as Kubernetes' own recorder does it (KEP-383). A reason that comes too often,
whatever it is about, is cut off for a while, so that a thousand broken Services do not flood the API server.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from kproxy.clocks import Clock
from kproxy.errors import one_line
from kproxy.rate_limit import TokenBucket

WINDOW = 300.0
"""Seconds during which the same notice, told for the second time, is only counted."""
BURST = 20
"""Events that one reason may create at once, and as many that it may count on..."""
REFILL = 60.0
"""...and the seconds after which it may do another of each."""
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
    """A notice that is to be told. count: how often it came: 1 for a new Event, more to be counted on the one that has
    the same name, which `first` and `number` make unique."""

    notice: Notice
    first: datetime
    last: datetime
    count: int
    number: int


@dataclass(slots=True)
class _Seen:
    """told: the count that was told last; before: the count when the window began."""

    first: datetime
    last: datetime
    window_ends: float
    number: int
    count: int = 1
    told: int = 1
    before: int = 1


@dataclass(slots=True)
class EventSeries:
    """Remembers what has been told. Used by one thread."""

    clock: Clock
    _seen: OrderedDict[Notice, _Seen] = field(default_factory=OrderedDict)
    _buckets: dict[tuple[str, bool], TokenBucket] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def add(self, notice: Notice) -> list[Event] | None:
        """What to tell now because of NOTICE; None when it is dropped since its reason comes too often."""
        now, moment = self.clock.now(), self.clock.monotonic()
        seen = self._seen.get(notice)
        if seen is not None:
            seen.count += 1
            seen.last = now
            return self._told(notice, seen, moment) if seen.told == 1 else []
        if not self._allowed(notice.reason, False, moment):
            return None
        seen = self._seen[notice] = _Seen(now, now, moment + WINDOW, next(self._numbers))
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return [_event(notice, seen)]

    def due(self) -> list[Event]:
        """The repeats whose window is over, to be told now. Notices that were not repeated in it are forgotten."""
        moment = self.clock.monotonic()
        events: list[Event] = []
        # In the order in which windows end, so the first that has not ended ends the search.
        while self._seen and next(iter(self._seen.values())).window_ends <= moment:
            notice, seen = self._seen.popitem(last=False)
            if seen.count > seen.told:
                events += self._told(notice, seen, moment)
            if seen.count > min(seen.told, seen.before):
                seen.before = seen.count
                seen.window_ends = moment + WINDOW
                self._seen[notice] = seen
        return events

    def _told(self, notice: Notice, seen: _Seen, moment: float) -> list[Event]:
        """The repeats of NOTICE as they are now, to be told; nothing when its reason has told too many lately."""
        if not self._allowed(notice.reason, True, moment):
            return []
        seen.told = seen.count
        return [_event(notice, seen)]

    def _allowed(self, reason: str, repeated: bool, moment: float) -> bool:
        # Apart from each other, so that what recurs never keeps something new from being told.
        bucket = self._buckets.get((reason, repeated))
        if bucket is None:
            bucket = self._buckets[reason, repeated] = TokenBucket(1 / REFILL, BURST, moment)
        return bucket.take(moment)


def _event(notice: Notice, seen: _Seen) -> Event:
    return Event(notice, seen.first, seen.last, seen.count, seen.number)


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
    return f"{stem}.{int(event.first.timestamp() * 1e6):x}{event.number & 0xFFFF:04x}"


def _micro_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _cut(text: str) -> str:
    return text.encode()[:_NOTE_LIMIT].decode(errors="ignore")
