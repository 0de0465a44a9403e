"""Kubernetes Events: what an operator should see with `kubectl describe` or `kubectl get events`.

`EventRecorder.record` may be called from any thread and never blocks: a thread of its own posts, and what does not fit
in the queue is dropped and counted. Which notices become an Event, and when repeats of one are summed up, is decided in
`event_series`; this module only moves them.

An Event of events.k8s.io/v1 is posted, as by kube-proxy, so the same ClusterRole (system:node-proxier) will do.
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

from kproxy.errors import KernelError, KproxyError
from kproxy.health.clocks import Clock
from kproxy.health.event_series import Event, EventSeries, Notice, event_json
from kproxy.health.service_checks import HealthCheck

__all__ = ["ApiSink", "EventRecorder", "EventSink", "LogSink", "Notice", "Outcome", "Poster", "check_failed"]

Outcome = Literal["posted", "failed", "dropped"]

_ATTEMPTS = 3
_RETRY_SECONDS = 1.0
_POLL_SECONDS = 5.0
_log = logging.getLogger(__name__)


class EventSink(Protocol):
    """Where Events go. Called from one thread; may block; raises KproxyError when it did not work."""

    def post(self, event: dict[str, Any]) -> None: ...


class Poster(Protocol):
    """The part of the API server's client that Events need. Raises KproxyError."""

    def post(self, path: str, body: bytes) -> bytes: ...


class ApiSink:
    """Creates Events through the API server."""

    def __init__(self, client: Poster) -> None:
        self._client = client

    def post(self, event: dict[str, Any]) -> None:
        namespace = quote(event["metadata"]["namespace"], safe="")
        self._client.post(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", json.dumps(event).encode())


class LogSink:
    """Writes Events to the log, where there is no API server."""

    def post(self, event: dict[str, Any]) -> None:
        about = event["regarding"]
        level = logging.WARNING if event["type"] == "Warning" else logging.INFO
        where = f"{about['namespace']}/{about['name']}" if "namespace" in about else about["name"]
        _log.log(level, "%s %s: %s: %s", about["kind"], where, event["reason"], event["note"])


def check_failed(node: str, port: int, check: HealthCheck, error: KernelError) -> Notice:
    """The notice that NODE cannot answer on the health check port of a Service; reason and action as kube-proxy's."""
    note = f"node {node} cannot answer health checks of {check.service} on port {port}: {error}"
    return Notice("Service", check.namespace, check.name, "FailedToStartServiceHealthcheck", "Listen", note)


class EventRecorder:
    """Queues notices and posts them as Events to SINK.

    node: this node's name. count: told what became of each Event, for the metrics. capacity: notices that may wait.
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
            else:
                return True
        return False
