"""Where the daemon hears of the cluster: a folder of manifests, or an API server, which is told of troubles as well."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kproxy.clocks import Clock
from kproxy.config.options import Options
from kproxy.events.series import Notice
from kproxy.metrics.registry import Metrics
from kproxy.sync.event_queue import EventQueue

if TYPE_CHECKING:
    from kproxy.sources.credentials import ClientSettings


class Source:
    """Follows what OPTIONS name and tells INBOX, from `start` to `close`."""

    def __init__(self, options: Options, inbox: EventQueue, clock: Clock, metrics: Metrics) -> None:
        self._options, self._inbox, self._clock, self._metrics = options, inbox, clock, metrics
        self._stack = ExitStack()
        self._record: Callable[[Notice], None] | None = None

    def start(self) -> None:
        """Begin; returns at once. Raises InvalidConfig when the credentials cannot be read."""
        if self._options.manifests:
            self._follow_manifests()
        else:
            self._follow_server()

    def check(self) -> None:
        """Raises InvalidConfig with all that is wrong with the credentials; nothing is asked of the server."""
        if not self._options.manifests:
            from kproxy.sources.credentials import check

            check(client_settings(self._options))

    def close(self) -> None:
        """End it; nothing is put into the inbox from now on."""
        self._stack.close()

    def notify(self, notice: Notice) -> None:
        """Tell operators. Without an API server there is nobody to tell; the log has it all."""
        if self._record is not None:
            self._record(notice)

    def _follow_manifests(self) -> None:
        from kproxy.sources.manifests import ManifestSource

        manifests = ManifestSource(self._options.manifests)
        manifests.start(self._inbox)
        self._stack.callback(manifests.stop)

    def _follow_server(self) -> None:
        # Only here: the kubernetes package is large, and not needed with manifests.
        from kproxy.events.recorder import ApiSink, EventRecorder
        from kproxy.sources.api import ApiSource
        from kproxy.sources.client import ApiClient

        self.check()
        node = self._options.node_name
        client = ApiClient(client_settings(self._options), self._metrics.client)
        self._stack.callback(client.close)
        source = ApiSource(client, node)
        source.start(self._inbox)
        self._stack.callback(source.stop)
        recorder = EventRecorder(ApiSink(client), node, self._clock, self._metrics.kubernetes_event)
        recorder.start()
        self._stack.callback(recorder.stop)
        self._record = recorder.record


def client_settings(options: Options) -> ClientSettings:
    """How OPTIONS have the API server reached."""
    from kproxy.sources.credentials import ClientSettings

    connection = options.config.client_connection
    return ClientSettings(connection.kubeconfig, options.master, qps=connection.qps, burst=connection.burst)
