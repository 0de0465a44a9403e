"""Health check node ports of the real daemon: who answers at a port that two Services ask for, and on which addresses.

Reports: kubernetes/kubernetes#63617, #60749 (one port for two Services) and #82163 (nodePortAddresses).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from kproxy.config.defaults import METRICS_PORT
from kproxy.lab import probes
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.lab.proxies import Manifests, Proxy, wait_for

SOON = 60  # seconds; it takes less than one, but the machine may be busy
PORT = 32100
OWN = ("172.30.0.11/24", "fd00:30::11/64")
FOUR, SIX = ("10.96.40.{}", "10.244.1.{}"), ("fd00:96::{}", "fd00:244:1::{}")


class Node(NamedTuple):
    """A daemon on a node of its own, and the manifests that it follows."""

    space: Namespace
    manifests: Manifests
    proxy: Proxy
    config: Path
    mode: str

    def configure(self, asked: Iterable[str]) -> None:
        """asked: nodePortAddresses; none for the mode's default."""
        fields = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": self.mode,
            "clusterCIDR": "10.244.0.0/16,fd00:244::/32",
            "conntrack": {"maxPerCore": 0},
            "nodePortAddresses": [*asked],
        }
        fresh = self.config.with_suffix(".new")
        fresh.write_text(yaml.safe_dump(fields))
        fresh.replace(self.config)

    def serve(self, *found: list[dict[str, Any]]) -> None:
        """Have these Services, each with its slices, and no others."""
        wanted = {some[0]["metadata"]["name"]: some for some in found}
        for path in self.manifests.folder.glob("*.yaml"):
            if path.stem not in {"node", *wanted}:
                path.unlink()
        for name, some in wanted.items():
            self.manifests.put(name, some)

    def conflicts(self) -> list[list[str]]:
        body = self.space.call(probes.http_status, "127.0.0.1", METRICS_PORT, "/status.json", 10.0)[2]
        return [each["services"] for each in json.loads(body)["conflicts"]]

    def ask(self, ip: str = "172.30.0.11") -> tuple[int, str, int]:
        """Status, name of the Service, and local endpoints, as a load balancer gets them."""
        status, _, body = self.space.call(probes.http_status, ip, PORT, "/", 10.0)
        answer = json.loads(body)
        return status, answer["service"]["name"], answer["localEndpoints"]

    def listening(self) -> set[str]:
        """The addresses on which the port is open, as ss(8) writes them."""
        listed = self.space.run(["ss", "-Hltn", "sport", "=", f":{PORT}"])
        return {line.split()[3].removesuffix(f":{PORT}") for line in listed.splitlines()}


def objects(name: str, number: int, ends: Iterable[int], families: str = "4") -> list[dict[str, Any]]:
    """A Service with so many endpoints here for each family. families: "4", "6" or "46"."""
    chosen = [FOUR if family == "4" else SIX for family in families]
    metadata = {"name": name, "namespace": "default"}
    ips = [cluster.format(number) for cluster, _ in chosen]
    spec = {
        "type": "LoadBalancer",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30000 + number}],
        "clusterIP": ips[0],
        "clusterIPs": ips,
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": PORT,
    }
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-{family}",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": f"IPv{family}",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": [pod.format(number * 10 + n)], "nodeName": "node1", "conditions": {"ready": True}}
                for n in range(count)
            ],
        }
        for family, (_, pod), count in zip(families, chosen, ends, strict=True)
    ]
    return [{"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}, *slices]


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One daemon for all rows: they differ in manifests and in its configuration file, which it follows."""
    if reason := unavailable(("ss", "iptables-nft-restore", "ip6tables-nft-restore")):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("checks")
    manifests = Manifests(folder)
    addresses = [{"type": "InternalIP", "address": ip.partition("/")[0]} for ip in OWN]
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}, "status": {"addresses": addresses}}
    manifests.put("node", [node])
    with closing(Namespace("checks")) as space:
        space.run(["ip", "link", "set", "lo", "up"])
        for ip in OWN:
            space.run(["ip", "address", "add", ip, "dev", "lo"])
        config = folder / "config.yaml"
        proxy = Proxy(space, manifests.folder, folder / "log", ["--config", str(config)])
        made = Node(space, manifests, proxy, config, request.param)
        made.configure(())
        proxy.start()
        proxy.await_ready(lambda: proxy.synced() == 2)
        yield made
        assert proxy.running(), proxy.tail()


@pytest.mark.parametrize(
    ("a", "b", "answers"),
    [((2,), (0,), (200, "a", 2)), ((0,), (1,), (503, "a", 0)), ((2,), (1,), (200, "a", 2))],
    ids=["a has two, b none", "a none, b one", "a two, b one"],
)
def test_one_port_for_two_services(node: Node, a: tuple[int], b: tuple[int], answers: tuple[int, str, int]) -> None:
    """The first keeps it, whatever the other does; that is a conflict; and when the first goes the other has it."""
    node.configure(())
    node.serve()
    assert wait_for(lambda: not node.listening(), SOON)
    node.serve(objects("a", 1, a))
    assert wait_for(lambda: bool(node.listening()) and node.ask() == answers, SOON), node.proxy.tail()
    node.serve(objects("a", 1, a), objects("b", 2, b))
    both = ["default/a (health checks)", "default/b (health checks)"]
    assert wait_for(lambda: node.conflicts() == [both], SOON), node.proxy.tail()
    assert node.ask() == answers
    node.serve(objects("a", 1, (4,)), objects("b", 2, (3,)))
    assert wait_for(lambda: node.ask() == (200, "a", 4), SOON), node.ask()
    node.serve(objects("b", 2, (3,)))
    assert wait_for(lambda: node.ask() == (200, "b", 3), SOON), node.ask()
    assert wait_for(lambda: not node.conflicts(), SOON)
    assert "Several Services claim" in node.proxy.tail(100_000)


LISTENERS = {
    "nothing restricted": ((), "4", {"*"}),
    "IPv4 restricted, a Service of IPv4": (("172.30.0.0/24",), "4", {"172.30.0.11"}),
    "IPv4 restricted, a Service of IPv6": (("172.30.0.0/24",), "6", {"[::]"}),
    "IPv4 restricted, a Service of both": (("172.30.0.0/24",), "46", {"172.30.0.11", "[::]"}),
    "IPv6 restricted, a Service of both": (("fd00:30::/64",), "46", {"0.0.0.0", "[fd00:30::11]"}),
    "IPv6 restricted, a Service of IPv4": (("fd00:30::/64",), "4", {"0.0.0.0"}),
    "primary": (("primary",), "46", {"172.30.0.11", "[fd00:30::11]"}),
    "localhost": (("localhost",), "46", {"127.0.0.1", "[::1]"}),
    "localhost and a network": (("localhost", "172.30.0.0/24"), "4", {"127.0.0.1", "172.30.0.11"}),
    "all and primary": (("all", "primary"), "46", {"*"}),
}


@pytest.mark.parametrize(("asked", "families", "expected"), LISTENERS.values(), ids=LISTENERS)
def test_where_a_port_is_open(node: Node, asked: tuple[str, ...], families: str, expected: set[str]) -> None:
    if node.mode == "nftables" and not asked:
        expected = {"172.30.0.11"}  # primary
    node.configure(asked)
    node.serve(objects("h", 1, [1] * len(families), families))
    assert wait_for(lambda: node.listening() == expected, SOON), node.listening()
    ips = [ip for ip in (each.strip("[]") for each in expected) if ip[-1].isdigit()]
    assert wait_for(lambda: all(node.ask(ip)[:2] == (200, "h") for ip in ips), SOON)
