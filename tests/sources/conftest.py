from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from kproxy.clocks import SystemClock
from kproxy.containment import Containment
from kproxy.sources.api import ApiSource
from kproxy.sources.client import ApiClient
from kproxy.sources.credentials import ClientSettings
from kproxy.sources.watching import Timing
from tests.fakes.apiserver import ApiServer
from tests.fakes.sinks import Mirror
from tests.sources import cluster

FAST = Timing(
    watch=(20.0, 30.0), slack=1.0, bookmarked=2.0, streaming=0.8, backoff=0.01, backoff_cap=0.2, absent=0.3, settled=0.3
)


class Follow(Protocol):
    def __call__(
        self,
        server: ApiServer,
        timing: Timing = FAST,
        mirror: Mirror | None = None,
        streamed: bool = False,
        **settings: Any,
    ) -> tuple[Mirror, ApiSource]: ...


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(bookmark_seconds=0.5) as running:
        cluster.fill(running)
        yield running


@pytest.fixture
def follow() -> Iterator[Follow]:
    """Starts sources that are stopped, and waited for, at the end of the test."""
    started: list[tuple[ApiSource, ApiClient]] = []

    def start(
        server: ApiServer,
        timing: Timing = FAST,
        mirror: Mirror | None = None,
        streamed: bool = False,
        **settings: Any,
    ) -> tuple[Mirror, ApiSource]:
        if "kubeconfig" not in settings:
            settings.setdefault("master", server.url)
        client = ApiClient(ClientSettings(**{"read_timeout": 1.0, **settings}))
        mirror = mirror or Mirror()
        source = ApiSource(client, "node1", Containment(SystemClock()), timing, streamed)
        started.append((source, client))
        source.start(mirror)
        return mirror, source

    yield start
    for source, _ in started:
        source.stop()
    for source, client in started:
        assert source.join(10), "a thread of the source did not end"
        client.close()
