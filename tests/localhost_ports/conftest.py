"""A node whose daemon follows a configuration file, and Services with node ports of every kind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kproxy.config.defaults import METRICS_PORT
from kproxy.lab import probes
from kproxy.lab.clusters import CLUSTER_CIDRS, Cluster, build
from kproxy.lab.namespaces import unavailable
from kproxy.lab.probes import Answered
from kproxy.lab.proxies import Manifests, Proxy, wait_for
from kproxy.lab.scenarios import PODS, PORTS, node_objects
from kproxy.model.plans import Family

V4, V6 = Family.IPV4, Family.IPV6
GATE = "KubeProxyNFTablesLocalhostNodePorts"
NODES = ("172.30.0.0/24", "fd00:30::/64")  # node1's own addresses are in these
LOOPBACK = ("127.0.0.0/8", "::1/128")
BOTH = (*NODES, *LOOPBACK)
SOON = 30.0
LAST_SYNC = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
LISTENERS = "kubeproxy_nftables_localhost_nodeport_listeners"
FAILURES = "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total"
REJECTED = "kubeproxy_nftables_localhost_nodeport_rejected_packets_total"


@dataclass(frozen=True, eq=False)
class Exposed:
    """A Service with a node port, by TCP and UDP. ends: pods. meets: those that a client on loopback gets."""

    name: str
    node_port: int
    ends: tuple[str, ...]
    meets: frozenset[str]
    spec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sticky(self) -> bool:
        return "sessionAffinity" in self.spec

    def objects(self, node_port: int = 0) -> list[dict[str, Any]]:
        """Its manifests, with another NODE_PORT if given."""
        number = self.node_port - 30000
        meta, ips = {"namespace": "default"}, [f"10.96.5.{number}", f"fd00:96::5{number:02}"]
        ports = [
            {"name": p, "protocol": p, "port": 80, "nodePort": node_port or self.node_port} for p in ("TCP", "UDP")
        ]
        spec = {"type": "NodePort", "clusterIP": ips[0], "clusterIPs": ips, "ports": ports, **self.spec}
        pods = [pod for pod in PODS if pod.name in self.ends]
        slices = [
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    **meta,
                    "name": f"{self.name}-{family.lower()}",
                    "labels": {"kubernetes.io/service-name": self.name},
                },
                "addressType": family.value,
                "ports": [{"name": p, "protocol": p, "port": 8080} for p in ("TCP", "UDP")],
                "endpoints": [{"addresses": [pod.ip(family)], "nodeName": f"node{pod.node}"} for pod in pods],
            }
            for family in Family
        ]
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {**meta, "name": self.name}, "spec": spec}
        return [service, *slices]


STICKY = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}
ONLY_LOCAL = {"externalTrafficPolicy": "Local"}
EXPOSED = (
    Exposed("cluster", 30001, ("a", "far"), frozenset({"a", "far"})),
    Exposed("local", 30002, ("a", "far"), frozenset({"a"}), ONLY_LOCAL),
    Exposed("elsewhere", 30003, ("far",), frozenset(), ONLY_LOCAL),
    Exposed("sticky", 30004, ("a", "b", "far"), frozenset({"a", "b", "far"}), STICKY),
    Exposed("sticky-local", 30005, ("a", "b", "far"), frozenset({"a", "b"}), {**STICKY, **ONLY_LOCAL}),
    Exposed("nobody", 30006, (), frozenset()),
)
SERVED = [each for each in EXPOSED if each.meets]


def by_name(name: str) -> Exposed:
    return next(each for each in EXPOSED if each.name == name)


class Node:
    """node1, with a daemon that follows `config` and the manifests."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.space, self._folder = cluster, cluster.spaces["node1"], folder
        self.manifests = Manifests(folder)
        self.manifests.put("nodes", node_objects())
        for each in EXPOSED:
            self.manifests.put(each.name, each.objects())
        self._config = folder / "config.yaml"
        arguments = ("--config", str(self._config), "--hostname-override", "node1")
        self.proxy = Proxy(self.space, self.manifests.folder, folder / "log", arguments)

    def configure(self, mode: str, addresses: tuple[str, ...], gate: bool = True, **more: Any) -> None:
        """Write the configuration file, and start the daemon or wait until it has applied the file."""
        header = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": mode}
        more = {"clusterCIDR": CLUSTER_CIDRS, "featureGates": {GATE: gate}, **more}
        text = json.dumps({**header, "nodePortAddresses": list(addresses), **more})
        if self.proxy.running() and self._config.read_text() == text:
            return
        before = self.metrics() if self.proxy.running() else {}
        self._config.write_text(text)
        if not self.proxy.running():
            self.start()
        else:
            news = [("kproxy_config_reloads_total", "applied"), *((LAST_SYNC, family.value) for family in Family)]
            assert wait_for(lambda: all(self.metrics().get(k, 0) > before[k] for k in news), SOON), self.proxy.tail()
        # The table is removed once the new mode serves.
        assert wait_for(lambda: ("kproxy" in self.space.run(["nft", "list", "tables"])) == (mode == "nftables"), SOON)

    def start(self) -> None:
        self.proxy.start()
        self.proxy.await_ready(lambda: self.proxy.synced() == len(Family))

    def metrics(self) -> dict[tuple[str, str], float]:
        """The values of all metrics, by name and labels' values."""
        _, _, text = self.space.call(probes.http_status, "127.0.0.1", METRICS_PORT, "/metrics")
        found = {}
        for line in text.splitlines():
            if match := re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line):
                labels = ",".join(re.findall(r'="([^"]*)"', match[2] or ""))
                found[match[1], labels] = float(match[3])
        return found

    def counted(self, name: str) -> dict[str, float]:
        """The values of one metric, by its labels' values; those that are 0 left out."""
        return {labels: value for (metric, labels), value in self.metrics().items() if metric == name and value}

    def listeners(self) -> dict[str, list[int]]:
        """The TCP ports from 30000 to 32767 that processes listen on, by address (and device)."""
        found: dict[str, list[int]] = {}
        for line in self.space.run(["ss", "-Hltn"]).splitlines():
            address, _, port = line.split()[3].rpartition(":")
            if 30000 <= int(port) <= 32767:
                found.setdefault(address, []).append(int(port))
        return {address: sorted(set(ports)) for address, ports in found.items()}

    def forwarders(self) -> list[int]:
        """The forwarder's processes."""
        children = [task.read_text().split() for task in Path(f"/proc/{self.proxy.pid}/task").glob("*/children")]
        return [int(pid) for pids in children for pid in pids if b"userspace.worker" in _command_line(pid)]

    def runs(self, number: int) -> None:
        """Wait until the forwarder has so many processes."""
        assert wait_for(lambda: len(self.forwarders()) == number, SOON), (self.forwarders(), self.proxy.tail())

    def meets(self, ip: str, port: int, times: int = 6, source: str = "node1") -> set[str]:
        """Who answers TCP at an address, or how it ends. source: the namespace that asks."""
        outcomes = [self.cluster.spaces[source].call(probes.tcp, ip, port, 3.0) for _ in range(times)]
        return {found.pod if isinstance(found, Answered) else found.value for found in outcomes}

    def udp(self, ip: str, port: int) -> str:
        """Who answers UDP on the node itself, or how it ends."""
        found = self.space.call(probes.udp, ip, port, 1.0)
        return found.pod if isinstance(found, Answered) else found.value

    def comes_to(self, wanted: Mapping[str, list[int]], when: str = "") -> None:
        """Wait until exactly these listen."""
        right = wait_for(lambda: self.listeners() == wanted, SOON, 0.1)
        assert right, (when, self.listeners(), self.proxy.tail())


def _command_line(pid: str) -> bytes:
    with suppress(OSError):  # it has ended
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := unavailable(("nft", "ip", "ss", "iptables-nft-save")):
        pytest.skip(reason)
    with build(PODS, PORTS) as made:
        yield made


@pytest.fixture(scope="module")
def node(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(cluster, tmp_path_factory.mktemp("node"))
    try:
        yield made
    finally:
        if made.proxy.running():
            made.proxy.stop()
