"""Series of Kubernetes Events: which notices become Events, and how repeats are counted. Pure but for the clock.

The first notice of its kind becomes an Event at once. A repeat within the window turns that Event into a series (count,
last time), which is updated at the first repeat and then once a window for as long as repeats come: one object in the
cluster, however often something recurs, as with Kubernetes' own recorder (KEP-383). The rate of each reason is limited,
whatever object it is about, so that a thousand broken Services do not flood the API server.
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
"""Seconds between two updates of a series."""
BURST = 20
"""Events that one reason may create at once, and series that it may update at once..."""
REFILL = 60.0
"""...and the seconds after which it may create and update one more."""
REMEMBERED = 1024
"""How many different notices are remembered."""

_CONTROLLER = "kproxy"
_NOTE_LIMIT = 1000  # bytes; the API server takes 1,024
_WORD_LIMIT = 128


@dataclass(frozen=True, slots=True)
class Notice:
    """A condition that operators should know of.

    kind, namespace, name, uid: the object concerned; namespace "" for a Node, uid "" when unknown. api_version: of that
    kind. reason: one CamelCase word for programs. action: what kproxy tried, likewise. note: a sentence for people.
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
    """An Event to be created (count 1), or a series to be updated on it (count above 1).

    first, number: make its name unique, and the same for all updates.
    """

    notice: Notice
    first: datetime
    last: datetime
    count: int
    number: int


@dataclass(slots=True)
class _Seen:
    """A notice that is remembered. posted: the last count that was posted; before: the count as the window began."""

    first: datetime
    last: datetime
    window_ends: float
    number: int
    count: int = 1
    posted: int = 1
    before: int = 1


@dataclass(slots=True)
class EventSeries:
    """Remembers the notices of the last window. Used by one thread."""

    clock: Clock
    _seen: OrderedDict[Notice, _Seen] = field(default_factory=OrderedDict)
    _buckets: dict[tuple[str, bool], TokenBucket] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def add(self, notice: Notice) -> list[Event] | None:
        """Add `notice`; returns the Events to post now, None when it is dropped because its reason is too frequent."""
        now, moment = self.clock.now(), self.clock.monotonic()
        seen = self._seen.get(notice)
        if seen is not None:
            seen.count += 1
            seen.last = now
            return self._updated(notice, seen, moment) if seen.posted == 1 else []
        if not self._allowed(notice.reason, False, moment):
            return None
        seen = self._seen[notice] = _Seen(now, now, moment + WINDOW, next(self._numbers))
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return [_event(notice, seen)]

    def due(self) -> list[Event]:
        """Return the series whose window ended, to be posted. Notices that were not repeated in it are forgotten."""
        moment = self.clock.monotonic()
        events: list[Event] = []
        # They are in the order in which their windows end.
        while self._seen and next(iter(self._seen.values())).window_ends <= moment:
            notice, seen = self._seen.popitem(last=False)
            if seen.count > seen.posted:
                events += self._updated(notice, seen, moment)
            if seen.count > min(seen.posted, seen.before):
                seen.before = seen.count
                seen.window_ends = moment + WINDOW
                self._seen[notice] = seen
        return events

    def _updated(self, notice: Notice, seen: _Seen, moment: float) -> list[Event]:
        """Return the update of a series, nothing when its reason had too many lately."""
        if not self._allowed(notice.reason, True, moment):
            return []
        seen.posted = seen.count
        return [_event(notice, seen)]

    def _allowed(self, reason: str, repeated: bool, moment: float) -> bool:
        # Two buckets, so that repeats never keep a new Event from being posted.
        bucket = self._buckets.get((reason, repeated))
        if bucket is None:
            bucket = self._buckets[reason, repeated] = TokenBucket(1 / REFILL, BURST, moment)
        return bucket.take(moment)


def _event(notice: Notice, seen: _Seen) -> Event:
    return Event(notice, seen.first, seen.last, seen.count, seen.number)


def event_json(event: Event, node: str) -> dict[str, Any]:
    """Return `event` as an object of events.k8s.io/v1, reported by kproxy on `node`."""
    notice = event.notice
    # The API server insists that an Event about an object without a namespace is in "default".
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
    """Return a valid and unique name, even when the object's own name is not valid."""
    labels = (label.strip("-") for label in re.sub(r"[^a-z0-9.-]+", "-", about.lower())[:200].split("."))
    stem = ".".join(label for label in labels if label) or "object"
    return f"{stem}.{int(event.first.timestamp() * 1e6):x}{event.number & 0xFFFF:04x}"


def _micro_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _cut(text: str) -> str:
    return text.encode()[:_NOTE_LIMIT].decode(errors="ignore")
