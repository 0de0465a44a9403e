"""A watch that begins and then says nothing, without an end and without a bookmark, is not waited for for ever."""

from __future__ import annotations

import pytest

from kproxy.sources.watching import Timing
from tests.fakes.apifaults import Silent
from tests.fakes.apiserver import ApiServer
from tests.sources.cluster import agrees, endpoint_slice, eventually, service
from tests.sources.conftest import Follow

SHORT = Timing(watch=(0.8, 1.0), slack=0.3, backoff=0.01, backoff_cap=0.2, settled=0.3)


@pytest.mark.parametrize("times", [1, 2])
def test_a_watch_that_outlasts_its_own_length_is_given_up(server: ApiServer, follow: Follow, times: int) -> None:
    for kind in ("Service", "EndpointSlice"):
        server.inject(Silent(), verb="watch", kind=kind, times=times)
    mirror, _ = follow(server, timing=SHORT)
    assert mirror.wait(lambda m: m.complete)
    assert eventually(lambda: server.served["watch", "Service"] == server.served["watch", "EndpointSlice"] == 1)
    server.apply(service("new"))
    server.apply(endpoint_slice("web", "10.244.0.9"))
    server.delete("Service", "default", "api")
    assert mirror.wait(lambda m: agrees(server, m))
    assert server.faults_left == 0
    assert server.served["watch", "Service"] == times + 1
    assert server.served["list", "Service"] == 1, "what was missed is had by a watch from the same version"
