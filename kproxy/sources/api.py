"""The API server as a source: Services, EndpointSlices, the node's own Node and ServiceCIDRs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from random import Random

from kproxy.errors import InvalidObject
from kproxy.model.events import Sink
from kproxy.model.objects import Kind, Object
from kproxy.sources.client import ApiClient
from kproxy.sources.decode import Decoder
from kproxy.sources.listing import Lister, resources
from kproxy.sources.watching import Progress, Timing, Watcher


class ApiSource:
    """Follows the cluster, one thread a kind, and tells a sink: first a Listed of each kind, then what changes.

    client: may be shared. node_name: the node whose Node object is followed. timing: waits and timeouts.
    """

    def __init__(self, client: ApiClient, node_name: str, timing: Timing | None = None) -> None:
        self._client, self._node_name = client, node_name
        self._timing = timing or Timing()
        self._watchers: tuple[Watcher, ...] = ()

    def start(self, sink: Sink) -> None:
        """Begin; returns at once. Failures are retried for ever and never raised."""
        random = Random()
        self._watchers = tuple(
            Watcher(self._client, resource, sink, self._timing, random) for resource in resources(self._node_name)
        )
        for watcher in self._watchers:
            watcher.start()

    def stop(self) -> None:
        """End it; nothing is put into the sink from now on. Returns at once."""
        for watcher in self._watchers:
            watcher.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the threads, at most TIMEOUT seconds in all; whether they have ended. One that waits for an answer
        to begin takes up to the client's read timeout."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = True
        for watcher in self._watchers:
            ended &= watcher.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return ended

    @property
    def progress(self) -> Mapping[Kind, Progress]:
        """How each kind is doing: counters, and why it fails at the moment."""
        return {watcher.kind: watcher.progress for watcher in self._watchers}


def read_cluster(client: ApiClient, node_name: str) -> tuple[dict[Kind, list[Object]], list[InvalidObject]]:
    """All objects of the cluster now, by kind, and what is wrong with those that could not be read.

    NODE_NAME: the Node to read. Raises SourceError when the server cannot be asked; nothing is retried.
    """
    objects: dict[Kind, list[Object]] = {}
    problems: list[InvalidObject] = []
    for resource in resources(node_name):
        page = Lister(client, resource, Decoder(resource.kind)).list("")
        objects[resource.kind] = page.objects if page else []
        problems += page.problems if page else []
    return objects, problems
