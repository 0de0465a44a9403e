"""For each proxy mode and backend: one cluster and one running proxy, all scenarios' Services alive at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.lab.deployment import Deployment, deployment
from kproxy.lab.namespaces import unavailable

MODES = (
    pytest.param(("iptables", "nft"), id="iptables-nft"),
    pytest.param(("iptables", "legacy"), id="iptables-legacy"),
    pytest.param(("nftables", "nft"), id="nftables"),
    pytest.param(("userspace", "nft"), id="userspace-nft"),
    pytest.param(("userspace", "legacy"), id="userspace-legacy"),
    pytest.param(("ipvs", "nft"), id="ipvs-nft", marks=pytest.mark.ipvs_kernel),
)


def arguments(mode: str) -> list[str]:
    """Flags of the proxy: an hour between its periodic syncs, so that nothing here is owed to one."""
    section = "ipvs" if mode == "ipvs" else "iptables"
    return [f"--{section}-sync-period", "1h", f"--{section}-min-sync-period", "50ms"]


@pytest.fixture(scope="session", params=MODES)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    mode, backend = request.param
    reason = unavailable((f"iptables-{backend}-restore", f"ip6tables-{backend}-restore"))
    if reason:
        pytest.skip(reason)
    with deployment(tmp_path_factory.mktemp(f"{mode}-{backend}"), backend, arguments(mode), mode=mode) as under_way:
        yield under_way
        assert under_way.proxy.running(), under_way.proxy.tail()
