"""Where the daemon learns of the cluster: a folder of manifests, or an API server, which gets Events as well."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kproxy import logs
from kproxy.clocks import Clock
from kproxy.config.options import Options
from kproxy.containment import Containment
from kproxy.errors import KproxyError
from kproxy.events.series import Notice
from kproxy.metrics.registry import Metrics
from kproxy.rate_limit import Backoff
from kproxy.sync.event_queue import EventQueue

if TYPE_CHECKING:
    from kproxy.sources.credentials import ClientSettings

_log = logs.get("source")


class ClusterSource:
    """Follows what the options name and fills the queue, from `start` to `close`. For one thread, `notify` for any."""

    def __init__(
        self, options: Options, queue: EventQueue, clock: Clock, metrics: Metrics, containment: Containment
    ) -> None:
        self._options, self._queue, self._clock, self._metrics = options, queue, clock, metrics
        self._containment = containment
        self._stage = containment.stage("source", "the cluster is known as it was, and following it is tried again")
        self._stack = ExitStack()
        self._record: Callable[[Notice], None] | None = None
        self._backoff = Backoff()
        self._retry_at: float | None = None

    def start(self) -> None:
        """Start to follow the cluster; returns at once. Raises InvalidConfig when the credentials cannot be read."""
        with ExitStack() as stack:
            record: Callable[[Notice], None] | None = None
            if self._options.manifests:
                self._follow_manifests(stack)
            else:
                record = self._follow_server(stack)
            self._stack, self._record = stack.pop_all(), record

    def replace(self, options: Options) -> None:
        """Follow what other options name from now on.

        If that fails (credentials that were there a moment ago are gone), `retry` tries again; meanwhile the last known
        state of the cluster stays in use.
        """
        self._options = options
        self.close()
        self._begin()

    @property
    def retry_due(self) -> bool:
        """Whether `retry` would try again: `replace` failed, and the wait after that is over."""
        return self._retry_at is not None and self._clock.monotonic() >= self._retry_at

    def retry(self) -> None:
        """Try again what `replace` could not begin, if that is due."""
        if self.retry_due:
            self._begin()

    def close(self) -> None:
        """Stop following the cluster; nothing is put into the queue after that."""
        self._record, stack = None, self._stack
        self._stack = ExitStack()
        self._stage.attempt(stack.close, None)

    def notify(self, notice: Notice) -> None:
        """Post an Event. Without an API server there is nowhere to post it; the log has it all."""
        if (record := self._record) is not None:
            record(notice)

    def _begin(self) -> None:
        self._retry_at = None
        failures = self._stage.failures
        try:
            self._stage.attempt(self.start, None)
            failed = self._stage.failures > failures
        except KproxyError as error:
            failed = True
            if not self._backoff.failures:
                _log.error("The cluster cannot be watched with the new configuration; will retry", error)
        if failed:
            self._retry_at = self._clock.monotonic() + self._backoff.next()
        else:
            self._backoff.reset()

    def _follow_manifests(self, stack: ExitStack) -> None:
        from kproxy.sources.manifests import ManifestSource

        manifests = ManifestSource(self._options.manifests, self._containment)
        manifests.start(self._queue)
        stack.callback(manifests.stop)

    def _follow_server(self, stack: ExitStack) -> Callable[[Notice], None]:
        # Only here: the kubernetes package is large, and not needed with manifests.
        from kproxy.events.recorder import ApiSink, EventRecorder
        from kproxy.sources.api import ApiSource
        from kproxy.sources.client import ApiClient

        check_credentials(self._options)
        node = self._options.node_name
        client = ApiClient(client_settings(self._options), self._metrics.client)
        stack.callback(client.close)
        source = ApiSource(client, node, self._containment, streamed=self._options.config.streamed_lists)
        source.start(self._queue)
        stack.callback(source.stop)
        recorder = EventRecorder(ApiSink(client), node, self._clock, self._containment, self._metrics.kubernetes_event)
        recorder.start()
        stack.callback(recorder.stop)
        return recorder.record


def check_credentials(options: Options) -> None:
    """Raises InvalidConfig with all that is wrong with the credentials; the server is not asked."""
    if not options.manifests:
        from kproxy.sources.credentials import check

        check(client_settings(options))


def client_settings(options: Options) -> ClientSettings:
    """How to reach the API server."""
    from kproxy.sources.credentials import ClientSettings

    connection = options.config.client_connection
    return ClientSettings(connection.kubeconfig, options.master, qps=connection.qps, burst=connection.burst)
