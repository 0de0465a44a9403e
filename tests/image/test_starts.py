"""The image does the work of kube-proxy's: kubeadm's command line in a container, in each mode and backend."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from kproxy.config.defaults import METRICS_PORT
from kproxy.lab import probes
from kproxy.lab.namespaces import Namespace
from kproxy.lab.proxies import LAST_SYNC, choose_backend, wait_for
from tests.fakes.apiserver import ApiServer
from tests.image.conftest import ROOT, Image
from tests.image.containers import Confinement, Container, run

pytestmark = [pytest.mark.root, pytest.mark.slow]

KUBEADM = {item["kind"]: item for item in yaml.safe_load_all((ROOT / "tests/packaging/data/kubeadm.yaml").read_text())}
NODE, TOKEN, HEALTHZ = "node1", "the-account's-token", 10256
COMMAND = ["/usr/local/bin/kube-proxy", "--config=/var/lib/kube-proxy/config.conf", f"--hostname-override={NODE}"]
SECONDS = 30
ENDPOINT = "10.244.1.2"
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "type": "ClusterIP",
        "clusterIP": "10.96.0.5",
        "clusterIPs": ["10.96.0.5"],
        "ipFamilies": ["IPv4"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
    },
}
SLICE = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
    "addressType": "IPv4",
    "endpoints": [{"addresses": [ENDPOINT], "conditions": {"ready": True}}],
    "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
}
NODE_OBJECT = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}


@dataclass(slots=True)
class Pod:
    """kubeadm's pod of the image, on a node with an API server."""

    container: Container
    server: ApiServer

    def status(self, path: str) -> int:
        try:
            status, _, _ = self.container.space.call(probes.http_status, "127.0.0.1", HEALTHZ, path)
        except OSError:
            return 0
        return status

    def metric(self, start: str) -> list[float]:
        """The samples whose line begins so."""
        try:
            _, _, text = self.container.space.call(probes.http_status, "127.0.0.1", METRICS_PORT, "/metrics")
        except OSError:
            return []
        return [float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(start)]

    def await_rules(self) -> None:
        def synced() -> bool:
            return sum(value > 0 for value in self.metric(LAST_SYNC)) == 2

        assert wait_for(lambda: synced() or not self.container.running(), SECONDS, pause=0.1)
        assert self.container.running(), self.container.said()


Start = Callable[..., Pod]


@pytest.fixture
def start(image: Image, space: Namespace, tmp_path: Path) -> Iterator[Start]:
    """Start the container with kubeadm's ConfigMap, this mode in it."""
    with_tls = ApiServer(tls=True, tokens={TOKEN})
    server = space.call(with_tls.start)
    for item in (NODE_OBJECT, SERVICE, SLICE):
        server.apply(item)

    def pod(mode: str, confinement: Confinement | None = None) -> Pod:
        config, account = tmp_path / "config", tmp_path / "account"
        for folder in (config, account):
            folder.mkdir()
        data = KUBEADM["ConfigMap"]["data"]
        (config / "config.conf").write_text(data["config.conf"].replace('mode: ""', f'mode: "{mode}"'))
        kubeconfig = data["kubeconfig.conf"].replace("https://control-plane.example:6443", server.url)
        (config / "kubeconfig.conf").write_text(kubeconfig)
        (account / "token").write_text(TOKEN)
        (account / "ca.crt").write_bytes(server.ca_file.read_bytes())
        volumes = {"/var/lib/kube-proxy": config, "/run/secrets/kubernetes.io/serviceaccount": account}
        container = Container(image.root, space, tmp_path / "log", volumes, confinement)
        container.start(COMMAND)
        return Pod(container, server)

    yield pod
    server.stop()


def rules(space: Namespace) -> dict[str, str]:
    """All that there is, by where it is."""
    return {
        "nft": space.run(["iptables-nft-save", "-t", "nat"]),
        "legacy": space.run(["iptables-legacy-save"]),
        "nftables": space.run(["nft", "list", "ruleset"]),
    }


@pytest.mark.parametrize(
    ("mode", "backend", "confinement"),
    [
        ("", "nft", None),
        ("", "legacy", None),
        ("nftables", "", None),
        ("iptables", "nft", Confinement(("NET_ADMIN",))),
        ("nftables", "", Confinement(("NET_ADMIN",), user=65532, ambient=True)),
    ],
    ids=["nft", "legacy", "nftables", "confined", "not root"],
)
def test_kubeadms_command_line(
    start: Start, space: Namespace, mode: str, backend: str, confinement: Confinement | None
) -> None:
    if backend:
        choose_backend(space, backend)
    pod = start(mode, confinement)
    pod.await_rules()
    assert (pod.status("/healthz"), pod.status("/livez")) == (200, 200)
    found = rules(space)
    # The ruleset of nf_tables has iptables-nft's rules as well, and only iptables says that they are KUBE-.
    mine, others = {
        "nft": ("nft", ["legacy"]),
        "legacy": ("legacy", ["nft"]),
        "": ("nftables", ["nft", "legacy"]),
    }[backend]
    assert ENDPOINT in found[mine], pod.container.said()
    assert [other for other in others if ENDPOINT in found[other]] == []
    assert "healthy" in space.run(["chroot", str(pod.container.root), "/usr/local/bin/kproxy", "status"])
    assert pod.container.stop() == 0, pod.container.said()
    assert ENDPOINT in rules(space)[mine]


@pytest.mark.parametrize("mode", ["iptables", "ipvs", "nftables", "userspace"])
def test_render_says_the_same_inside(image: Image, tmp_path: Path, mode: str) -> None:
    given = yaml.safe_dump_all([NODE_OBJECT, SERVICE, SLICE])
    words = ["render", "--mode", mode, "--family", "all", "--node", NODE]
    host = '{"nodeIPs": ["192.0.2.1"], "interfaces": [{"name": "eth0", "addresses": ["192.0.2.1/24"]}]}'
    (image.root / "tmp/host.json").write_text(host)
    (tmp_path / "host.json").write_text(host)
    inside = run(image.root, ["kproxy", *words, "--host", "/tmp/host.json", "-f", "-"], given)
    outside = subprocess.run(
        [sys.executable, "-m", "kproxy", *words, "--host", str(tmp_path / "host.json"), "-f", "-"],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (inside.returncode, inside.stderr) == (0, "")
    assert "10.96.0.5" in inside.stdout
    assert inside.stdout == outside.stdout


def test_a_bad_configuration_is_told_and_ends_it(image: Image, tmp_path: Path) -> None:
    (image.root / "tmp/bad.conf").write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: fast\nclusterCIDR: x\n"
    )
    done = run(image.root, ["kube-proxy", "--config=/tmp/bad.conf"])
    assert done.returncode == 2
    assert "mode" in done.stderr
    assert "clusterCIDR" in done.stderr
