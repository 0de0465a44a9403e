"""Kubernetes Events: what an operator should see with `kubectl describe` or `kubectl get events`.

`EventRecorder.record` may be called from any thread and never blocks: a thread of its own posts, and what does not fit
in the queue is dropped and counted. Which notices become an Event, and when repeats of one are summed up, is decided in
`event_series`; this module only moves them.

An Event of events.k8s.io/v1 is created, and its repeats are counted on it by PATCH, as by kube-proxy, so the same
ClusterRole (system:node-proxier) will do.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, Protocol
from urllib.parse import quote

from kproxy.clocks import Clock
from kproxy.errors import ApiError, KproxyError
from kproxy.events.series import Event, EventSeries, Notice, event_json

Outcome = Literal["posted", "failed", "dropped"]

_ATTEMPTS = 3
_RETRY_SECONDS = 1.0
_POLL_SECONDS = 5.0
_GONE = 404
_CONFLICT = 409
_TOO_MANY = 429
_log = logging.getLogger(__name__)


class EventSink(Protocol):
    """Where Events go. Called from one thread; may block; raises KproxyError when it did not work.

    An Event with a series takes the place of the one that has its name; both may be given again after a failure.
    """

    def post(self, event: dict[str, Any]) -> None: ...


class Poster(Protocol):
    """The part of the API server's client that Events need. Raises KproxyError."""

    def post(self, path: str, body: bytes) -> bytes: ...

    def patch(self, path: str, body: bytes) -> bytes: ...


class ApiSink:
    """Creates Events through the API server, and sets the series of those that are there."""

    def __init__(self, client: Poster) -> None:
        self._client = client

    def post(self, event: dict[str, Any]) -> None:
        namespace = quote(event["metadata"]["namespace"], safe="")
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        if "series" not in event or not self._counted(f"{path}/{event['metadata']['name']}", event["series"]):
            self._create(path, event)

    def _counted(self, path: str, series: dict[str, Any]) -> bool:
        """Whether the Event at PATH has SERIES now. It may be gone: deleted, too old, or it never came to be."""
        try:
            self._client.patch(path, json.dumps({"series": series}).encode())
        except ApiError as error:
            if error.status == _GONE:
                return False
            raise
        return True

    def _create(self, path: str, event: dict[str, Any]) -> None:
        try:
            self._client.post(path, json.dumps(event).encode())
        except ApiError as error:
            if error.status != _CONFLICT:  # an attempt before this one arrived, and only its answer did not
                raise


class EventRecorder:
    """Queues notices and posts them as Events to SINK.

    node: this node's name. count: told what became of each Event, and of each time that repeats of one were to be
    counted, for the metrics. capacity: notices that may wait.
    """

    def __init__(
        self,
        sink: EventSink,
        node: str,
        clock: Clock,
        count: Callable[[Outcome], None] = lambda outcome: None,
        capacity: int = 256,
    ) -> None:
        self._sink = sink
        self._node = node
        self._count = count
        self._series = EventSeries(clock)
        self._queue: queue.Queue[Notice | None] = queue.Queue(capacity)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def record(self, notice: Notice) -> None:
        """Post NOTICE some time soon, or drop it."""
        try:
            self._queue.put_nowait(notice)
        except queue.Full:
            self._count("dropped")

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 2.0) -> None:
        """Post what waits, for at most SECONDS, and end. An attempt that hangs is left behind."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                notice = self._queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self._post(self._series.due())
                continue
            if notice is None:
                return
            events = self._series.add(notice)
            if events is None:
                self._count("dropped")
            else:
                self._post(events)
            self._post(self._series.due())

    def _post(self, events: list[Event]) -> None:
        for event in events:
            self._count("posted" if self._delivered(event_json(event, self._node)) else "failed")

    def _delivered(self, event: dict[str, Any]) -> bool:
        for attempt in range(_ATTEMPTS):
            if attempt and self._stopping.wait(_RETRY_SECONDS):
                break
            try:
                self._sink.post(event)
            except KproxyError as error:
                _log.info("Event %s about %s not posted: %s", event["reason"], event["regarding"]["name"], error)
                if _final(error):
                    break
            else:
                return True
        return False


def _final(error: KproxyError) -> bool:
    """The server has judged the Event itself, so that asking again would not help."""
    return isinstance(error, ApiError) and 400 <= error.status < 500 and error.status not in (_CONFLICT, _TOO_MANY)
