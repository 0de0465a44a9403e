"""One cluster with a daemon in nftables mode, for all tests of this folder: they run in the virtual machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.lab.deployment import Deployment, deployment
from kproxy.lab.namespaces import unavailable
from kproxy.lab.scenario_table import SCENARIOS

CHOSEN = ("hairpin", "no-endpoints", "node-port-local", "load-balancer-local", "source-ranges", "affinity")
SERVED = tuple(scenario for scenario in SCENARIOS if scenario.name in CHOSEN)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    if reason := unavailable(("nft",)):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("nftables-guest")
    with deployment(folder, "nft", ("--iptables-sync-period", "1h"), SERVED, mode="nftables") as under_way:
        yield under_way
        assert under_way.proxy.running(), under_way.proxy.tail()
