"""The recorder of Kubernetes Events, which `kubectl describe` and `kubectl get events` show to operators.

`EventRecorder.record` may be called from any thread and never blocks: a thread of its own posts, and notices that do
not fit in the queue are dropped and counted. `series` decides which notices become Events and how repeats are counted.

As with kube-proxy, Events of events.k8s.io/v1 are created, and repeats are counted on them by PATCH, so the same
ClusterRole (system:node-proxier) suffices.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Literal, Protocol
from urllib.parse import quote

from kproxy import logs
from kproxy.clocks import Clock
from kproxy.containment import Containment
from kproxy.errors import ApiError, KproxyError
from kproxy.events.series import Event, EventSeries, Notice, event_json

Outcome = Literal["posted", "failed", "dropped"]

_ATTEMPTS = 3
_RETRY_SECONDS = 1.0
_POLL_SECONDS = 5.0
_GONE = 404
_CONFLICT = 409
_TOO_MANY = 429
_log = logs.get("events")


class EventSink(Protocol):
    """Stores Events. Called from one thread; may block; raises KproxyError when it failed.

    An Event with a series replaces the Event of the same name; both may be posted again after a failure.
    """

    def post(self, event: dict[str, Any]) -> None: ...


class Poster(Protocol):
    """The requests of the API server's client that Events need. Raises KproxyError."""

    def post(self, path: str, body: bytes) -> bytes: ...

    def patch(self, path: str, body: bytes) -> bytes: ...


class ApiSink:
    """Creates Events at the API server, and updates the series of those that exist."""

    def __init__(self, client: Poster) -> None:
        self._client = client

    def post(self, event: dict[str, Any]) -> None:
        namespace = quote(event["metadata"]["namespace"], safe="")
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        if "series" not in event or not self._counted(f"{path}/{event['metadata']['name']}", event["series"]):
            self._create(path, event)

    def _counted(self, path: str, series: dict[str, Any]) -> bool:
        """Set `series` on the Event at `path`; returns whether it exists. It may be deleted, or never created."""
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
            if error.status != _CONFLICT:  # an earlier attempt succeeded, and its answer was lost
                raise


class EventRecorder:
    """Posts notices as Events to `sink`, from a thread of its own.

    node: this node's name. containment: contains unexpected errors, which cost only the notice concerned.
    count: called with the outcome of each Event and of each update of a series. capacity: notices that may wait.
    """

    def __init__(
        self,
        sink: EventSink,
        node: str,
        clock: Clock,
        containment: Containment,
        count: Callable[[Outcome], None] = lambda outcome: None,
        capacity: int = 256,
    ) -> None:
        self._sink = sink
        self._node = node
        self._count = count
        self._stage = containment.stage("events", "the Kubernetes Event is dropped, the next one is posted")
        self._series = EventSeries(clock)
        self._queue: queue.Queue[Notice | None] = queue.Queue(capacity)
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._stage.supervise, args=(self._run, self._stopping), name="events", daemon=True
        )

    def record(self, notice: Notice) -> None:
        """Queue `notice` to be posted, or drop it when too many wait."""
        try:
            self._queue.put_nowait(notice)
        except queue.Full:
            self._count("dropped")

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 2.0) -> None:
        """Post the notices that wait, for at most `seconds`, and end. A request that hangs is abandoned."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._stopping.set()

    def _run(self) -> None:
        """Post until `stop`. Once restarted after an error it goes on with the next notice."""
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
            posted = self._stage.attempt(partial(self._delivered, event), otherwise=False)
            self._count("posted" if posted else "failed")

    def _delivered(self, event: Event) -> bool:
        body = event_json(event, self._node)
        for attempt in range(_ATTEMPTS):
            if attempt and self._stopping.wait(_RETRY_SECONDS):
                break
            try:
                self._sink.post(body)
            except KproxyError as error:
                _log.info(
                    "Cannot post an Event", reason=event.notice.reason, object=event.notice.name, attempt=attempt + 1,
                    err=error,
                )  # fmt: skip
                if _final(error):
                    break
            else:
                return True
        return False


def _final(error: KproxyError) -> bool:
    """Whether the server refused the Event itself, so that another attempt would fail as well."""
    return isinstance(error, ApiError) and 400 <= error.status < 500 and error.status not in (_CONFLICT, _TOO_MANY)
