"""A real `kproxy run` on a node of its own: its pages and `kproxy status`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.config.defaults import HEALTHZ_PORT, METRICS_PORT
from kproxy.errors import CommandError
from kproxy.lab import links, probes
from kproxy.lab.clusters import CLUSTER_CIDRS
from kproxy.lab.namespaces import Namespace
from kproxy.lab.proxies import Manifests, Proxy, wait_for
from tests.network_namespaces import fresh_namespace

pytestmark = pytest.mark.root

STATUS = [sys.executable, "-m", "kproxy", "status"]
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "nodePort": 30080}], "type": "NodePort"},
}
RIVAL = {
    **SERVICE,
    "metadata": {"name": "rival", "namespace": "shop"},
    "spec": {**SERVICE["spec"], "clusterIP": "10.96.0.2"},  # type: ignore[dict-item]
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Namespace, Proxy]]:
    folder: Path = tmp_path_factory.mktemp("daemon")
    with fresh_namespace("node1", "nft") as space:
        links.up(space)
        manifests = Manifests(folder)
        manifests.put("shop", [NODE, SERVICE, RIVAL])
        flags = ["--proxy-mode=nftables", "--v=3", "--emulate-version=1.38"]
        proxy = Proxy(space, manifests.folder, folder / "log", flags)
        proxy.start()
        proxy.await_ready(lambda: proxy.synced() == 2)
        yield space, proxy
        if proxy.running():
            assert proxy.stop() == 0


def get(space: Namespace, path: str) -> str:
    status, _, text = space.call(probes.http_status, "127.0.0.1", METRICS_PORT, path)
    assert status == 200
    return text


def answers(space: Namespace, port: int, path: str) -> bool:
    """Whether the path answers with status 200."""
    status, _, _ = space.call(probes.http_status, "127.0.0.1", port, path)
    return status == 200


def test_it_shows_its_flags_and_itself(node: tuple[Namespace, Proxy]) -> None:
    space, _ = node
    flags = get(space, "/flagz")
    assert f"\ncluster-cidr={CLUSTER_CIDRS}\n" in flags
    assert "\nproxy-mode=nftables\n" in flags
    assert "\nv=3\n" in flags
    assert "\nemulate-version=1.38\n" in flags
    assert "\nEmulation version: 1.38\n" in get(space, "/statusz")
    assert "in place of kube-proxy 1.38" in get(space, "/")
    assert json.loads(get(space, "/configz"))["kubeproxy.config.k8s.io"]["emulateVersion"] == "1.38"
    assert "shop/web" in get(space, "/")


def test_the_command_asks_it(node: tuple[Namespace, Proxy]) -> None:
    space, _ = node
    assert space.run(STATUS).startswith("node1: healthy\n")
    found = json.loads(space.run([*STATUS, "--json", "-q", "shop/web"]))
    assert (found["mode"], found["node"]) == ("nftables", "node1")
    (service,) = found["services"]["items"]
    table = space.run(["nft", "list", "table", "ip", "kproxy"])
    for name in service["ports"][0]["names"]:
        key = name.partition("{ ")[2].partition(" :")[0]
        assert key in table
    assert found["conflicts"] == [{"where": "node port 30080/TCP", "services": ["shop/rival:http", "shop/web:http"]}]
    assert any("Several Services claim the same address" in line["text"] for line in found["log"])


def test_the_command_fails_once_the_daemon_has_ended(node: tuple[Namespace, Proxy]) -> None:
    space, proxy = node
    assert proxy.stop() == 0
    with pytest.raises(CommandError, match="exit status 1: kproxy: error: cannot reach"):
        space.run(STATUS)


def test_before_the_first_list_it_is_ready_and_shows_that_nothing_is_written(tmp_path: Path) -> None:
    """As manifests/README.md describes a rolling update: the probe gets 200, metrics and status show the difference."""
    with fresh_namespace("node1", "nft") as space:
        links.up(space)
        nobody = "--master=http://127.0.0.1:1"
        proxy = Proxy(space, None, tmp_path / "log", ["--proxy-mode=nftables", nobody])
        proxy.start()
        try:
            assert wait_for(lambda: "Cannot list or watch the objects" in proxy.tail(), 60), proxy.tail()
            assert wait_for(lambda: answers(space, HEALTHZ_PORT, "/healthz"), 60), proxy.tail()
            _, _, text = space.call(probes.http_status, "127.0.0.1", HEALTHZ_PORT, "/healthz")
            assert json.loads(text)["healthy"]
            assert wait_for(lambda: answers(space, METRICS_PORT, "/metrics"), 60), proxy.tail()
            metrics = get(space, "/metrics")
            assert "\nkubeproxy_sync_proxy_rules_last_queued_timestamp_seconds" not in metrics
            assert "\nkubeproxy_sync_proxy_rules_last_timestamp_seconds" not in metrics
            assert "# TYPE kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge" in metrics
            assert "waiting for the cluster, nothing written yet" in space.run(STATUS)
            assert "kproxy" not in space.run(["nft", "list", "tables"])
        finally:
            assert proxy.stop() == 0
