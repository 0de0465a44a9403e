"""A proxy at work on each backend of iptables, and one in userspace mode, with its periodic sync an hour away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.lab.deployment import Deployment, deployment
from kproxy.lab.namespaces import unavailable
from kproxy.lab.scenario_table import SCENARIOS

ALIVE = [s for s in SCENARIOS if s.name in ("cluster-ip", "node-port-local", "source-ranges", "no-endpoints")]
LONG = ["--iptables-sync-period", "1h", "--iptables-min-sync-period", "50ms"]


@pytest.fixture(scope="module", params=["nft", "legacy", "userspace"])
def healing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    mode, backend = ("userspace", "nft") if request.param == "userspace" else ("iptables", request.param)
    reason = unavailable((f"iptables-{backend}-restore", f"ip6tables-{backend}-restore"))
    if reason:
        pytest.skip(reason)
    with deployment(tmp_path_factory.mktemp(request.param), backend, LONG, ALIVE, mode=mode) as under_way:
        yield under_way
        assert under_way.proxy.running(), under_way.proxy.tail()
