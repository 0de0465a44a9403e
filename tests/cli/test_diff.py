"""`kproxy diff`: on a kernel that holds what it should, and after each kind of change to it or to the cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kproxy.cli import main
from kproxy.kernel import nfacct
from kproxy.kernel.constants import NFACCT_COUNTERS
from kproxy.lab.namespaces import Namespace, unavailable

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))]

DATA = Path(__file__).parents[1] / "iptables" / "data"
OBJECTS = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ports: [{name: http, port: 80, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: kube-system}
spec:
  clusterIP: 10.96.0.53
  clusterIPs: [10.96.0.53]
  ports: [{name: dns, port: 53, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.5]}, {addresses: [10.244.1.6]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-1, namespace: kube-system, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}]
endpoints: [{addresses: [10.244.1.53]}]
"""
SET = "10.96.0.10 . tcp . 80"
HOST = {"nodeIPs": ["172.18.0.2"], "interfaces": [{"name": "eth0", "addresses": ["172.18.0.2/16"]}]}
BACKENDS = {"iptables": "nft", "legacy": "legacy", "userspace": "nft"}
Found = set[tuple[str, str]]


class Node:
    """A namespace with the rules of a mode for OBJECTS; `diff` compares it with them, or with `objects`."""

    def __init__(self, space: Namespace, mode: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.space, self.mode, self._capsys = space, mode, capsys
        self._file, self._host = folder / "objects.yaml", folder / "host.json"
        self._host.write_text(json.dumps(HOST))
        self._file.write_text(OBJECTS)
        self.err = ""

    def load(self) -> None:
        for family in ("ipv4", "ipv6"):
            assert main.main(["render", "--family", family, *self.words]) == 0
            rules = self._capsys.readouterr().out
            stem = f"ip{'6' * (family == 'ipv6')}tables-{BACKENDS.get(self.mode)}-restore"
            self.space.run(["nft", "-f", "-"] if self.mode == "nftables" else [stem, "--noflush"], rules)

    @property
    def words(self) -> list[str]:
        mode = "iptables" if self.mode == "legacy" else self.mode
        return ["--mode", mode, "-f", str(self._file), "--host", str(self._host), "--node", "node1"]

    def text(self, *more: str) -> tuple[int, str]:
        status = self.space.call(main.main, ["diff", *self.words, *more])
        out, self.err = self._capsys.readouterr()
        return status, out

    def diff(self, objects: str = OBJECTS) -> list[dict[str, str]]:
        self._file.write_text(objects)
        status, out = self.text("--format", "json")
        answer = json.loads(out)
        assert status == int(not answer["equal"]) == int(bool(answer["differences"])), (out, self.err)
        return list(answer["differences"])


@pytest.fixture(params=["iptables", "legacy", "nftables"])
def node(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Node]:
    with closing(Namespace("node")) as space:
        for words in (
            "link set lo up",
            "link add eth0 type veth peer name other",
            "addr add 172.18.0.2/16 dev eth0",
            "link set eth0 up",
        ):
            space.run(["ip", *words.split()])
        made = Node(space, request.param, tmp_path, capsys)
        made.load()
        yield made


CHANGES = {  # of the kernel, by mode: a command, and what must be among the differences
    "iptables": [
        ("-t nat -D KUBE-MARK-MASQ 1", ("", "missing", "nat KUBE-MARK-MASQ: -j MARK")),
        ("-t nat -D KUBE-SERVICES 1", ("*", "missing", "nat KUBE-SERVICES: ")),
        ("-t nat -A KUBE-MARK-MASQ -s 192.0.2.1/32 -j RETURN", ("", "foreign", "nat KUBE-MARK-MASQ: -s 192.0.2.1/32")),
        ("-t nat -I KUBE-SERVICES -s 192.0.2.1/32 -j RETURN", ("", "foreign", "nat KUBE-SERVICES: -s 192.0.2.1/32")),
        ("-t nat -D PREROUTING 1", ("", "missing", "nat PREROUTING: ")),
        ("-t nat -F KUBE-NODEPORTS", ("shop/web:http", "missing", "nat KUBE-NODEPORTS: ")),
        ("-t nat -N KUBE-SVC-OTHER", ("", "extra", "nat chain KUBE-SVC-OTHER")),
        ("-t nat -N KUBE-PORTALS-HOST", ("", "extra", "KUBE-PORTALS-HOST, which another mode left")),
    ],
    "nftables": [
        ("add rule ip kproxy services ip saddr 192.0.2.1 accept", ("", "foreign", "services: ip saddr 192.0.2.1")),
        ("add chain ip kproxy mine", ("", "foreign", "chain mine")),
        (f"delete element ip kproxy services {{ {SET} }}", ("shop/web:http", "missing", f"of services: {SET}")),
        ("flush map ip kproxy endpoints", ("shop/web:http", "missing", "10.244.1.5 . 8080")),
        ("add element ip kproxy cluster-ips { 10.96.7.7 }", ("", "extra", "of cluster-ips: 10.96.7.7")),
        ("flush chain ip kproxy services", ("", "missing", "chain services: ")),
        ("delete table ip kproxy", ("", "missing", "table ip kproxy, with ")),
        ("add table ip kube-proxy; add chain ip kube-proxy services", ("", "extra", "table ip kube-proxy, which")),
    ],
}  # fmt: skip
SERVICES = OBJECTS.split("---\n")
OTHERS = [  # clusters, and the Services that must be named, with what
    (OBJECTS.replace("10.244.1.6", "10.244.1.7"), {"shop/web:http"}, {"missing", "extra", "changed"}),
    ("---\n".join(SERVICES[1:]), {"shop/web:http"}, {"extra"}),
    (OBJECTS.replace("nodePort: 30080", "nodePort: 30081"), {"shop/web:http"}, {"missing", "extra"}),
    (OBJECTS + "---\n" + SERVICES[0].replace("web", "more").replace("0.10", "0.11").replace("30080", "30082"),
     {"shop/more:http"}, {"missing"}),
]  # fmt: skip


def test_each_change_of_the_kernel_is_named(node: Node) -> None:
    assert node.diff() == []
    for command, (service, kind, what) in CHANGES["iptables" if node.mode == "legacy" else node.mode]:
        words = [f"iptables-{BACKENDS[node.mode]}"] if node.mode in BACKENDS else ["nft"]
        node.space.run([*words, *command.split()] if node.mode in BACKENDS else ["nft", command])
        found = node.diff()
        named = [each for each in found if each["kind"] == kind and what in each["what"]]
        assert {each["service"] for each in named} & {service} or (named and service == "*"), (command, found)
        status, text = node.text()
        assert (status, "\x1b" in text, max(map(len, text.splitlines())) <= 100) == (1, False, True), text
        assert "a takeover by kproxy, or its next full check, would write this" in text
        node.space.run(["nft", "flush ruleset"])
        for restore in ("iptables-legacy-restore", "ip6tables-legacy-restore"):
            node.space.run([restore], "*nat\nCOMMIT\n*filter\nCOMMIT\n")
        node.load()


def test_each_change_of_the_cluster_is_named_by_service(node: Node) -> None:
    for objects, services, kinds in OTHERS:
        found = node.diff(objects)
        assert {each["service"] for each in found} - {""} == services, found
        assert {each["kind"] for each in found} <= kinds | {"missing", "extra"}, found
        assert kinds & {each["kind"] for each in found if each["service"]}, found


def test_the_mode_that_visibly_runs_is_named(node: Node) -> None:
    runs, node.mode = ("nftables", "legacy") if node.mode == "nftables" else ("iptables", "nftables")
    left = [each["what"] for each in node.diff() if each["kind"] == "extra"]
    assert any("which nftables mode left" in each or "which another mode left" in each for each in left), left
    (line,) = node.err.splitlines()
    assert line.startswith(f"kproxy: this node runs in {runs} mode; it is compared with "), line


@pytest.mark.parametrize("node", ["iptables"], indirect=True)
def test_a_stale_udp_flow_is_named(node: Node) -> None:
    tuple_of = "-s 10.244.9.9 -d 10.96.0.53 -r 10.244.1.99 -q 10.244.9.9"
    ports = "--sport 1000 --dport 53 --reply-port-src 53 --reply-port-dst 1000"
    node.space.run(["conntrack", *f"-I -p udp -t 100 {tuple_of} {ports}".split()])
    (flow,) = node.diff()
    assert flow == {
        "service": "kube-system/dns:dns",
        "kind": "conntrack",
        "what": "UDP 10.244.9.9:1000 → 10.96.0.53:53, answered by 10.244.1.99:53",
    }
    assert "a takeover would write nothing" in node.text()[1]


@pytest.mark.parametrize("node", ["userspace"], indirect=True)
def test_portals_need_listeners(node: Node) -> None:
    """The ports of `render` are made up, so nobody listens; the rules are right."""
    found = node.diff()
    assert {(each["service"], each["kind"]) for each in found} == {
        ("shop/web:http", "missing"), ("kube-system/dns:dns", "missing"),
    }  # fmt: skip
    assert all("nobody listens on proxy port 4000" in each["what"] for each in found)
    node.space.run(["iptables-nft", "-t", "nat", "-D", "KUBE-PORTALS-HOST", "1"])
    assert [e["kind"] for e in node.diff() if "nat KUBE-PORTALS-HOST" in e["what"]] == ["missing"]


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_node_that_kube_proxy_left_needs_no_write(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.conf").write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
        "clusterCIDR: 10.244.0.0/16,fd00:244::/32\n"
    )
    (tmp_path / "host.json").write_text(json.dumps({"nodeIPs": ["172.30.0.11"], "interfaces": []}))
    words = ["diff", "-f", str(DATA / "objects.json"), "--config", str(tmp_path / "config.conf"), "--node", "node1",
             "--host", str(tmp_path / "host.json")]  # fmt: skip
    with closing(Namespace("node")) as space:
        for name in NFACCT_COUNTERS:
            space.call(nfacct.ensure, name)
        for stem in ("iptables", "ip6tables"):
            space.run([f"{stem}-{backend}-restore"], (DATA / f"{stem}-nft-save.txt").read_text())
        status = space.call(main.main, words)
        out = capsys.readouterr().out
        assert (status, "a takeover would write nothing" in out) == (0, True), out
        space.run([f"iptables-{backend}", "-t", "nat", "-F", "KUBE-SERVICES"])
        assert space.call(main.main, words) == 1


def test_bad_input_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    assert main.main(["diff", "-f", str(tmp_path / "none")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("node", ["iptables"], indirect=True)
def test_in_ipvs_mode_what_the_kernel_has_not_loaded_is_missing(node: Node) -> None:
    node.mode = "ipvs"
    found = {(each["service"], each["kind"], each["what"]) for each in node.diff()}
    assert {
        ("shop/web:http", "missing", "virtual server TCP 10.96.0.10:80: real server 10.244.1.5:8080"),
        ("shop/web:http", "missing", "address 10.96.0.10 of kube-ipvs0"),
        ("kube-system/dns:dns", "missing", "element 10.96.0.53,udp:53 of ipset KUBE-CLUSTER-IP"),
        ("", "missing", "device kube-ipvs0"),
        ("", "missing", "ipset KUBE-CLUSTER-IP"),
    } <= found
    assert "kproxy: this node runs in iptables mode; it is compared with ipvs mode, see --mode" in node.err
