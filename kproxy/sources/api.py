"""The API server as a source: Services, EndpointSlices, the node's own Node and ServiceCIDRs."""

from __future__ import annotations

import time
from random import Random

from kproxy.containment import Containment
from kproxy.errors import InvalidObject
from kproxy.model.events import Sink
from kproxy.model.objects import Kind, Object
from kproxy.sources.client import ApiClient
from kproxy.sources.decode import Decoder
from kproxy.sources.listing import Lister, resources
from kproxy.sources.source_thread import STAGE
from kproxy.sources.watching import Timing, Watcher


class ApiSource:
    """Follows the cluster, one thread per kind. Puts into a sink first a Listed of each kind, then what changes."""

    def __init__(
        self,
        client: ApiClient,
        node_name: str,
        containment: Containment,
        timing: Timing | None = None,
        streamed: bool = True,
    ) -> None:
        """client: may be shared. node_name: whose Node object is followed. timing: waits and timeouts.

        streamed: whether lists are streamed, where the server does that.
        """
        self._client, self._node_name, self._containment = client, node_name, containment
        self._timing, self._streamed = timing or Timing(), streamed
        self._watchers: tuple[Watcher, ...] = ()

    def start(self, sink: Sink) -> None:
        """Start the threads; returns at once. Failures are retried for ever and never raised."""
        random = Random()
        self._watchers = tuple(
            Watcher(
                self._client,
                resource,
                sink,
                self._containment.stage(STAGE, f"{resource.kind} objects stay as they are known until the next list"),
                self._timing,
                random,
                self._streamed,
            )
            for resource in resources(self._node_name)
        )
        for watcher in self._watchers:
            watcher.thread.start()

    def stop(self) -> None:
        """End it, without waiting for the threads. Nothing is put into the sink after this has returned."""
        for watcher in self._watchers:
            watcher.thread.ask_to_stop()
        for watcher in self._watchers:
            watcher.thread.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the threads, at most `timeout` seconds in all; returns whether they have ended. One that waits for
        the beginning of an answer takes up to the client's read timeout."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = True
        for watcher in self._watchers:
            ended &= watcher.thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return ended


def read_cluster(client: ApiClient, node_name: str) -> tuple[dict[Kind, list[Object]], list[InvalidObject]]:
    """All objects of the cluster now, by kind, and what is wrong with those that could not be read.

    node_name: the Node to read, "" for all of them. Raises SourceError when the server cannot be asked; nothing is
    retried.
    """
    objects: dict[Kind, list[Object]] = {}
    problems: list[InvalidObject] = []
    for resource in resources(node_name):
        page = Lister(client, resource, Decoder(resource.kind)).list("")
        objects[resource.kind] = page.objects if page else []
        problems += page.problems if page else []
    return objects, problems
