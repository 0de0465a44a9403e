"""A node whose proxy is told what to do by a configuration file, which changes while it works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.config.defaults import METRICS_PORT
from kproxy.lab import probes
from kproxy.lab.clusters import CLUSTER_CIDRS
from kproxy.lab.deployment import Deployment, deployment
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.lab.proxies import Proxy, wait_for
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.model.plans import Family
from tests.dropin.volumes import Volume

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
ALIVE = [BY_NAME[name] for name in ("node-port", "affinity", "no-endpoints")]
SOON = 60.0
QUIET = "1h"


@dataclass(slots=True)
class Node:
    """The node. config: what its file holds, as values."""

    deployed: Deployment
    volume: Volume
    proxy: Proxy
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def space(self) -> Namespace:
        return self.deployed.cluster.spaces["node1"]

    def write(self, **changed: Any) -> None:
        """Change fields of the file; None removes one."""
        self.config = {name: value for name, value in {**self.config, **changed}.items() if value is not None}
        self.volume.put({"config.conf": yaml.safe_dump(self.config)})

    def page(self, path: str, port: int = METRICS_PORT) -> str:
        """A page of the metrics address, "" when nobody answers."""
        _, _, text = self.space.call(probes.http_status, "127.0.0.1", port, path)
        return text

    def configz(self) -> dict[str, Any]:
        """The configuration in force."""
        found: dict[str, Any] = json.loads(self.page("/configz"))["kubeproxy.config.k8s.io"]
        return found

    def metric(self, name: str) -> float:
        """The sum of the samples of metric `name`."""
        lines = [line for line in self.page("/metrics").splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def reloads(self, outcome: str) -> int:
        return int(self.metric(f'kproxy_config_reloads_total{{outcome="{outcome}"}}'))

    def rules(self) -> str:
        return self.space.run(["iptables-nft-save"])

    def said(self, message: str) -> list[str]:
        """The lines of the log with `message`."""
        return [line for line in self.proxy.log.read_text().splitlines() if message in line]

    def await_reload(self, outcome: str = "applied", count: int = 1) -> None:
        assert wait_for(lambda: self.reloads(outcome) >= count, SOON, pause=0.1), self.proxy.tail()


def initial() -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clusterCIDR": CLUSTER_CIDRS,
        **{section: {"syncPeriod": QUIET, "minSyncPeriod": "50ms"} for section in ("iptables", "ipvs", "nftables")},
    }


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A proxy that works in iptables mode, by a file in a ConfigMap's volume."""
    if reason := unavailable(("iptables-nft-save", "iptables-nft-restore", "nft")):
        pytest.skip(reason)
    (tmp_path / "deployed").mkdir()
    volume = Volume(tmp_path / "volume")
    with deployment(tmp_path / "deployed", "nft", scenarios=ALIVE, start=False) as under_way:
        config = ("--config", str(volume.folder / "config.conf"))
        proxy = Proxy(under_way.cluster.spaces["node1"], under_way.manifests.folder, tmp_path / "log", config)
        here = Node(under_way, volume, proxy)
        here.write(**initial())
        proxy.start()
        try:
            proxy.await_ready(lambda: proxy.synced() == len(Family))
            yield here
            assert proxy.stop() == 0
            assert "Traceback" not in proxy.log.read_text()
        finally:
            if proxy.running():
                proxy.stop()
