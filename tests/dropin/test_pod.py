"""kubeadm's DaemonSet with its ConfigMap as it stands: real process, real paths, real rules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.config.defaults import METRICS_PORT
from kproxy.lab import links, probes
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.lab.proxies import wait_for
from tests.dropin.pods import ACCOUNT, CONFIG, Pod
from tests.fakes.apiserver import ApiServer
from tests.sources import cluster
from tests.sources.cluster import service

SOON = 60.0
DATA = Path(__file__).parents[1] / "packaging" / "data" / "kubeadm.yaml"
CONFIG_MAP, DAEMON_SET = yaml.safe_load_all(DATA.read_text())
(CONTAINER,) = DAEMON_SET["spec"]["template"]["spec"]["containers"]
PROGRAM, *ARGUMENTS = (text.replace("$(NODE_NAME)", "node1") for text in CONTAINER["command"])
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node1"},
    "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "172.30.9.1"}]},
}


def endpoint_slice(name: str, *addresses: str) -> dict[str, Any]:
    ports = [{"name": "", "protocol": "TCP", "port": 8080}]
    return {**cluster.endpoint_slice(name, *addresses), "ports": ports}


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    """A node without a proxy, a server that lets in the token "first", and the pod's volumes."""
    if reason := unavailable(("iptables-nft-save", "unshare", "mount")):
        pytest.skip(reason)
    with closing(Namespace("node1")) as node:
        links.up(node)
        node.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer"])
        node.run(["ip", "address", "add", "172.30.9.1/24", "dev", "eth0"])
        for interface in ("eth0", "peer"):
            node.run(["ip", "link", "set", interface, "up"])
        server = node.call(ApiServer(tls=True, tokens=["first"], bookmark_seconds=0.5).start)
        try:
            for item in (NODE, service("web"), endpoint_slice("web", "10.244.0.7")):
                server.apply(item)
            found = Pod.on(node, server, tmp_path)
            found.trust("first")
            yield found
        finally:
            if found.running():
                found.stop()
            server.stop()


def kubeadms(server: ApiServer) -> dict[str, str]:
    """The ConfigMap's files, with the server's address in the place of the control plane's."""
    data: dict[str, str] = CONFIG_MAP["data"]
    return {name: text.replace("https://control-plane.example:6443", server.url) for name, text in data.items()}


def edited(pod: Pod, **fields: Any) -> dict[str, str]:
    files = kubeadms(pod.server)
    return {**files, "config.conf": yaml.safe_dump({**yaml.safe_load(files["config.conf"]), **fields})}


def tells_apart(pod: Pod, cidr: str) -> bool:
    return f"! -s {cidr}" in pod.rules()


def started(server: ApiServer) -> list[set[Any]]:
    """The reasons of the Events that are posted, then the objects and actions."""
    events = server.events
    objects = {(e["regarding"]["kind"], e["regarding"]["name"], e["action"]) for e in events}
    return [{e["reason"] for e in events}, objects]


def programmed(pod: Pod, address: str) -> bool:
    return f"--to-destination {address}" in pod.rules()


def test_the_config_map_of_kubeadm_works_as_it_stands(pod: Pod) -> None:
    assert Path(PROGRAM).name == "kube-proxy"
    assert f"--config={CONFIG}/config.conf" in ARGUMENTS
    pod.config.put(kubeadms(pod.server))
    pod.start(ARGUMENTS)
    assert wait_for(lambda: programmed(pod, "10.244.0.7:8080"), SOON), pod.said()
    assert "! -s 10.244.0.0/16" in pod.rules(), "clusterCIDR counts"
    # Its `mode: ""` is the default, which changes in 1.40.
    posted = [{"Starting", "ProxyModeUnset"}, {("Node", "node1", "StartKubeProxy")}]
    assert wait_for(lambda: started(pod.server) == posted, SOON), pod.server.events
    host = pod.server.url.removeprefix("https://")
    _, _, scraped = pod.node.call(probes.http_status, "127.0.0.1", METRICS_PORT, "/metrics")
    assert f'\nrest_client_requests_total{{code="200",host="{host}",method="GET"}} ' in scraped
    assert f'\nrest_client_request_duration_seconds_count{{host="{host}",verb="GET"}} ' in scraped

    # The kubelet renews the token; the server forgets the old one. What is under way goes on.
    streams, watches = pod.server.served["stream", "Service"], pod.server.served["watch", "Service"]
    pod.trust("second")
    pod.server.tokens = {"second"}
    pod.server.apply(endpoint_slice("web", "10.244.0.7", "10.244.0.8"))
    assert wait_for(lambda: programmed(pod, "10.244.0.8:8080"), SOON), pod.said()
    assert pod.server.served["watch", "Service"] == watches
    pod.server.break_connections()
    pod.server.apply(service("later", ip="10.96.0.11"))
    pod.server.apply(endpoint_slice("later", "10.244.0.9"))
    assert wait_for(lambda: programmed(pod, "10.244.0.9:8080"), SOON), pod.said()
    assert pod.server.served["stream", "Service"] == streams, "a new token is no reason to list again"

    # The ConfigMap is edited: a mode that is wrong, then another one.
    pod.config.put(edited(pod, mode="ebpf"))
    assert wait_for(lambda: "InvalidConfiguration" in str(pod.server.events), SOON), pod.said()
    assert "mode: must be one of" in str(pod.server.events)
    pod.config.put(edited(pod, mode="nftables"))
    assert wait_for(lambda: not programmed(pod, "10.244.0.7:8080"), SOON), pod.said()
    assert "table ip kproxy" in pod.node.run(["nft", "list", "tables"])
    assert pod.server.served["stream", "Service"] == streams, "the watches are not touched"
    assert pod.stop() == 0
    assert "Traceback" not in pod.said()


def test_inside_a_cluster_no_kubeconfig_is_needed(pod: Pod) -> None:
    """The account's volume and two variables, as every container has them, are enough."""
    host, _, port = pod.server.url.removeprefix("https://").rpartition(":")
    environment = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    pod.start(["--hostname-override=Node1", "--cluster-cidr=10.244.0.0/16"], environment)
    assert wait_for(lambda: programmed(pod, "10.244.0.7:8080"), SOON), pod.said()
    pod.trust("second")
    pod.server.tokens = {"second"}
    pod.server.break_connections()
    pod.server.apply(endpoint_slice("web", "10.244.0.8"))
    assert wait_for(lambda: programmed(pod, "10.244.0.8:8080"), SOON), pod.said()


def test_another_kubeconfig_takes_effect_in_place(pod: Pod) -> None:
    files = kubeadms(pod.server)
    pod.config.put(files)
    pod.start(ARGUMENTS)
    assert wait_for(lambda: programmed(pod, "10.244.0.7:8080"), SOON), pod.said()
    client = {**yaml.safe_load(files["config.conf"])["clientConnection"], "kubeconfig": f"{CONFIG}/other.conf"}
    pod.config.put(edited(pod, clientConnection=client))  # which is not there
    assert wait_for(lambda: "other.conf: No such file or directory" in pod.said(), SOON), pod.said()
    streams = pod.server.served["stream", "Service"]
    # A kubeconfig that appears is no change of the configuration; whoever puts it there changes both.
    pod.config.put({**edited(pod, clientConnection={**client, "qps": 6}), "other.conf": files["kubeconfig.conf"]})
    assert wait_for(lambda: pod.server.served["stream", "Service"] > streams, SOON), pod.said()
    pod.server.apply(endpoint_slice("web", "10.244.0.8"))
    assert wait_for(lambda: programmed(pod, "10.244.0.8:8080"), SOON), pod.said()


def test_the_nodes_pod_cidr_is_waited_for_and_followed(pod: Pod) -> None:
    """kube-proxy ends when the Node's pod CIDR or address changes; here the rules follow."""
    bare = {**NODE, "spec": {}}
    pod.server.apply(bare)
    pod.config.put(edited(pod, detectLocalMode="NodeCIDR", clusterCIDR="", oomScoreAdj=500))
    pod.start(ARGUMENTS)
    assert wait_for(lambda: "Waiting for the Node's pod CIDR" in pod.said(), SOON), pod.said()
    assert "KUBE-SVC" not in pod.rules()
    assert pod.process is not None
    assert Path(f"/proc/{pod.process.pid}/oom_score_adj").read_text().strip() == "500"
    for cidr in ("10.244.0.0/24", "10.244.7.0/24"):
        pod.server.apply({**NODE, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}})
        assert wait_for(partial(tells_apart, pod, cidr), SOON), pod.said()
    assert pod.running()


def test_what_needs_full_privileges_is_done_once_and_nothing_else(pod: Pod) -> None:
    pod.config.put(kubeadms(pod.server))
    pod.start([*ARGUMENTS, "--init-only"])
    assert pod.wait() == 0, pod.said()
    assert "KUBE-" not in pod.rules()
    assert pod.node.run(["sysctl", "-n", "net.ipv4.conf.all.route_localnet"]).strip() == "1"
    assert not pod.server.served


@pytest.mark.parametrize("mode", ["iptables", "nftables", "userspace"])
def test_cleanup_takes_away_what_any_mode_wrote(pod: Pod, mode: str) -> None:
    """Whatever the configuration says of the mode, and whether the server can be reached or not."""
    pod.config.put(edited(pod, mode=mode))
    pod.start(ARGUMENTS)
    assert wait_for(lambda: pod.said().count('"Synced"') == 2, SOON), pod.said()
    assert pod.stop() == 0
    left = pod.rules() + pod.node.run(["nft", "list", "tables"])
    assert ("table ip kproxy" if mode == "nftables" else "KUBE-SVC-") in left, "the rules stay"
    pod.server.tokens = set()
    pod.config.put(edited(pod, mode="iptables"))
    pod.start([*ARGUMENTS, "--cleanup"])
    assert pod.wait() == 0, pod.said()
    left = pod.rules() + pod.node.run(["nft", "list", "tables"])
    assert "KUBE-" not in left
    assert "kproxy" not in left


BAD: dict[str, tuple[dict[str, str | None], list[str]]] = {
    "no kubeconfig": ({"kubeconfig.conf": None}, ["kubeconfig.conf: No such file or directory"]),
    "a kubeconfig that is no YAML": ({"kubeconfig.conf": "a: ["}, ["kubeconfig.conf: not YAML"]),
    "an empty kubeconfig": ({"kubeconfig.conf": ""}, ["kubeconfig.conf: must be a mapping"]),
    "a kubeconfig without contexts": ({"kubeconfig.conf": "kind: Config\n"}, ["kubeconfig.conf"]),
    "no authority, no token": (
        {"kubeconfig.conf": CONFIG_MAP["data"]["kubeconfig.conf"].replace(ACCOUNT, "/nowhere")},
        [
            "clusters[0].cluster.certificate-authority: /nowhere/ca.crt: No such file or directory",
            "users[0].user.tokenFile: /nowhere/token: No such file or directory",
        ],
    ),
    "no configuration": ({"config.conf": None}, ["config.conf: No such file or directory"]),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_cannot_be_used_end_it_with_a_line_each(pod: Pod, case: str) -> None:
    changed, expected = BAD[case]
    files = {**kubeadms(pod.server), **changed}
    pod.config.put({name: text for name, text in files.items() if text is not None})
    pod.start(ARGUMENTS)
    assert pod.wait() == 2
    errors = [line for line in pod.said().splitlines() if line.startswith("kube-proxy: error: ")]
    assert len(errors) == len(expected)
    assert all(text in line for text, line in zip(expected, errors, strict=True)), errors
    assert "Traceback" not in pod.said()
