"""Where the daemon hears of the cluster: a folder of manifests, or an API server, which is told of troubles as well."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kproxy.config.options import Options
from kproxy.health.clocks import Clock
from kproxy.health.event_series import Notice
from kproxy.health.metrics import Metrics
from kproxy.sync.inbox import Inbox

if TYPE_CHECKING:
    from kproxy.source.credentials import ClientSettings

__all__ = ["Source", "client_settings"]


class Source:
    """Follows what OPTIONS name and tells INBOX, from `start` to `close`."""

    def __init__(self, options: Options, inbox: Inbox, clock: Clock, metrics: Metrics) -> None:
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
            from kproxy.source.credentials import check

            check(client_settings(self._options))

    def close(self) -> None:
        """End it; nothing is put into the inbox from now on."""
        self._stack.close()

    def notify(self, notice: Notice) -> None:
        """Tell operators. Without an API server there is nobody to tell; the log has it all."""
        if self._record is not None:
            self._record(notice)

    def _follow_manifests(self) -> None:
        from kproxy.source.manifests import ManifestSource

        manifests = ManifestSource(self._options.manifests)
        manifests.start(self._inbox)
        self._stack.callback(manifests.stop)

    def _follow_server(self) -> None:
        # Only here: the kubernetes package is large, and not needed with manifests.
        from kproxy.health.events import ApiSink, EventRecorder
        from kproxy.source.api import ApiSource
        from kproxy.source.client import ApiClient

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
    from kproxy.source.credentials import ClientSettings

    connection = options.config.client_connection
    return ClientSettings(connection.kubeconfig, options.master, qps=connection.qps, burst=connection.burst)
