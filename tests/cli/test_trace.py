"""`kproxy trace`: arguments, the live kernel and rendered rules, as text and as JSON."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from kproxy.cli import main
from kproxy.lab.namespaces import Namespace, unavailable

DOCS = Path(__file__).parents[2] / "docs" / "debugging.md"
ROOT = pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))
OBJECTS = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  ports: [{name: http, port: 80, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.5]}, {addresses: [10.244.1.6]}, {addresses: [10.244.2.7]}]
"""
FIREWALL = """
table inet other {
  chain forwarding {
    type filter hook forward priority 10; policy accept;
    ip daddr 10.244.2.0/24 drop comment "a policy of somebody else"
    tcp sport 1234 accept
  }
}
"""
HOST = {
    "nodeIPs": ["172.18.0.2", "fd00:18::2"],
    "interfaces": [{"name": "eth0", "addresses": ["172.18.0.2/16", "fd00:18::2/64"]}],
}


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    (tmp_path / "objects.yaml").write_text(OBJECTS)
    (tmp_path / "host.json").write_text(json.dumps(HOST))
    return ["-f", str(tmp_path / "objects.yaml"), "--host", str(tmp_path / "host.json"), "--node", "node1"]


@pytest.fixture(params=["iptables", "nftables"])
def node(request: pytest.FixtureRequest, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> Iterator[Namespace]:
    """A namespace with the rules of a mode, and another program's."""
    mode = request.param
    assert main.main(["render", "--mode", mode, "--family", "ipv4", *inputs]) == 0
    rules = capsys.readouterr().out
    with closing(Namespace("node")) as space:
        for words in ("link set lo up", "link add eth0 type veth peer name other", "addr add 172.18.0.2/16 dev eth0",
                      "link set eth0 up", "link set other up", "route add default via 172.18.0.1"):  # fmt: skip
            space.run(["ip", *words.split()])
        loader = ["nft", "-f", "-"] if mode == "nftables" else ["iptables-nft-restore", "--noflush"]
        space.run(loader, rules)
        space.run(["nft", "-f", "-"], FIREWALL)
        yield space


def traced(space: Namespace, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert space.call(main.main, ["trace", *words, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)["traces"]


@ROOT
@pytest.mark.root
def test_the_live_kernels_rules_decide(node: Namespace, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = traced(node, capsys, "172.18.0.9", "10.96.0.10:80")
    ends = {(e["fate"], e["endpoint"], e["source"], e["probability"]) for e in found["outcomes"]}
    assert found["probe"]["interface"] == "eth0"
    assert ends == {
        ("forwarded", "10.244.1.5:8080", "172.18.0.9", "1/3"),
        ("forwarded", "10.244.1.6:8080", "172.18.0.9", "1/3"),
        ("dropped", None, "172.18.0.9", "1/3"),
    }
    last = next(e["steps"][-1] for e in found["outcomes"] if e["fate"] == "dropped")
    assert (last["table"], last["chain"], last["why"]) == ("inet other", "forwarding", "a policy of somebody else")
    assert [(u["chain"], u["rule"]) for u in found["unknown"]] == [("forwarding", "tcp sport 1234 accept")]

    frontends = traced(node, capsys, "172.18.0.9", "shop/web:http", *inputs)
    assert [(f["probe"]["to"], f["probe"]["port"]) for f in frontends] == [
        ("10.96.0.10:80", "shop/web:http, cluster IP"),
        ("172.18.0.2:30080", "shop/web:http, node port"),
    ]
    assert {e["source"] for e in frontends[1]["outcomes"] if e["fate"] == "forwarded"} == {"172.18.0.2"}
    assert all(sum(Fraction(e["probability"]) for e in f["outcomes"]) == 1 for f in frontends)

    assert traced(node, capsys, "node", "172.18.0.2:22")[0]["outcomes"][0]["fate"] == "delivered"
    assert traced(node, capsys, "172.18.0.9", "192.0.2.1:80")[0]["outcomes"][0]["fate"] == "unclaimed"


@ROOT
@pytest.mark.root
@pytest.mark.parametrize("family", [4, 6])
def test_a_client_that_iptables_remembers_is_not_taken_for_a_new_one(
    family: int, capsys: pytest.CaptureFixture[str]
) -> None:
    clients = ("172.18.0.9", "172.18.0.8") if family == 4 else ("fd00:18::9", "fd00:18::8")
    tool, to = ("iptables", "192.0.2.1:80") if family == 4 else ("ip6tables", "[2001:db8::1]:80")
    rule = "-A PREROUTING -m recent --name seen --rcheck --seconds 60 -j DROP"
    with closing(Namespace("node")) as space:
        space.run([f"{tool}-nft-restore"], f"*raw\n:PREROUTING ACCEPT\n{rule}\nCOMMIT\n")
        space.call(Path("/proc/thread-self/net/xt_recent/seen").write_text, f"+{clients[0]}\n")
        known = [traced(space, capsys, ip, to, "--interface", "eth0")[0]["unknown"] for ip in clients]
    assert [[each["why"] for each in unknown] for unknown in known] == [
        [f"how long ago list seen last saw {clients[0]}"],
        [],
    ]


@ROOT
@pytest.mark.root
def test_real_connections_beside_what_is_predicted(node: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    for ip in ("10.244.1.5", "10.244.1.6", "10.244.2.7"):
        node.run(["ip", "addr", "add", f"{ip}/32", "dev", "lo"])
    with node.call(socket.create_server, ("10.244.1.5", 8080)), node.call(socket.create_server, ("10.244.1.6", 8080)):
        (found,) = traced(node, capsys, "node", "10.96.0.10:80", "--send", "60")
        ends = {(each["met"], each["endpoint"], each["predicted"]) for each in found["sent"]}
        assert ends == {
            ("connected", "10.244.1.5:8080", "1/3"),
            ("connected", "10.244.1.6:8080", "1/3"),
            ("connected", "10.244.2.7:8080", "1/3"),
            ("refused", None, "0"),  # by the endpoint on which nobody listens
        }
        assert sum(each["count"] for each in found["sent"]) == 60
        assert [each["count"] for each in found["sent"] if each["endpoint"] == "10.244.2.7:8080"] == [0]
        assert node.call(main.main, ["trace", "node", "172.18.0.2:23", "--send", "2"]) == 0
        assert (
            "    2 refused (predicted: 0)\n    0 connected to 172.18.0.2:23 (predicted: 1)\n" in capsys.readouterr().out
        )


@ROOT
@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "entry", "directions", "drops"),
    [
        ("hash:ip", "192.0.2.1", "dst", True),
        ("hash:ip", "192.0.2.2", "dst", False),
        ("hash:ip,port", "192.0.2.1,tcp:80", "dst,dst", True),
        ("hash:ip,port", "192.0.2.1,udp:80", "dst,dst", False),
        ("hash:ip,port,ip", "192.0.2.1,80,172.18.0.9", "dst,dst,src", True),
        ("hash:ip,port,net", "192.0.2.1,80,172.18.0.0/24", "dst,dst,src", True),
        ("hash:ip,port,net", "192.0.2.1,80,172.18.1.0/24", "dst,dst,src", False),
        ("hash:net", "192.0.2.0/24", "dst", True),
        ("bitmap:port", "80", "dst", True),
        ("hash:ip,port", "192.0.2.1,tcp:80", "dst,src", None),
    ],
)
def test_ipsets_in_rules(
    kind: str, entry: str, directions: str, drops: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Namespace("node")) as space:
        size = " range 0-65535" if "bitmap" in kind else ""
        space.run(["ipset", "restore"], f"create some {kind}{size}\nadd some {entry}\n")
        rule = f"-A PREROUTING -m set --match-set some {directions} -j DROP"
        space.run(["iptables-nft-restore"], f"*raw\n:PREROUTING ACCEPT\n{rule}\nCOMMIT\n")
        (found,) = traced(space, capsys, "172.18.0.9", "192.0.2.1:80", "--interface", "eth0")
    assert found["outcomes"][0]["fate"] == ("dropped" if drops else "unclaimed")
    assert bool(found["unknown"]) is (drops is None)


@ROOT
@pytest.mark.root
def test_an_entry_of_connection_tracking_is_shown_first(node: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one of TCP, and none of another client's, address or port."""
    for n, (protocol, source, port) in enumerate(
        [("udp", "9", 53), ("tcp", "9", 80), ("tcp", "8", 80), ("tcp", "9", 81)]
    ):
        state = ["--state", "ESTABLISHED"] if protocol == "tcp" else []
        words = (
            f"-I -p {protocol} -s 172.18.0.{source} -d 10.96.0.10 --sport {4000 + n} --dport {port} -r 10.244.9.9 "
            f"-q 172.18.0.{source} --reply-port-src 8080 --reply-port-dst {4000 + n} -t 60"
        )
        node.run(["conntrack", *words.split(), *state])
    for protocol, port in (("udp", 53), ("tcp", 80)):
        (found,) = traced(node, capsys, "172.18.0.9", f"10.96.0.10:{port}", "--protocol", protocol)
        assert found["conntrack"] == [{"endpoint": "10.244.9.9:8080", "sourcePorts": [4000 + (protocol == "tcp")]}]
    assert traced(node, capsys, "172.18.0.7", "10.96.0.10:80")[0]["conntrack"] is None
    assert node.call(main.main, ["trace", "172.18.0.9", "10.96.0.10:80"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "  = from port 4001: follows its connection to 10.244.9.9:8080"


@ROOT
@pytest.mark.root
def test_the_text_reads_from_top_to_bottom(node: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert node.call(main.main, ["trace", "172.18.0.9", "10.96.0.10:80"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("172.18.0.9 → 10.96.0.10:80/tcp, comes in by eth0\n  ! depends on inet other forwarding")
    assert "forwarded to 10.244.1.5:8080 by eth0, which sees 172.18.0.9" in text
    assert "⇒ dropped by inet other forwarding" in text
    if "ip kproxy" in text:
        assert text in DOCS.read_text()
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_rules_that_would_be_rendered(mode: str, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trace", "10.244.1.5", "shop/web", "--mode", mode, *inputs, "--format", "json"]
    assert main.main(words) == 0
    found = json.loads(capsys.readouterr().out)["traces"]
    assert {e["endpoint"] for e in found[0]["outcomes"]} == {"10.244.1.5:8080", "10.244.1.6:8080", "10.244.2.7:8080"}
    assert {e["probability"] for e in found[0]["outcomes"]} == {"1/3"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("10.0.0.1", "shop/other"), "there is no Service shop/other with a cluster IP"),
        (("10.0.0.1", "shop/web:https"), "Service shop/web has no such port: it has http/TCP"),
        (("10.0.0.1", "shop/web", "--protocol", "udp"), "Service shop/web has no such port: it has http/TCP"),
        (("10.0.0.1", "[fd00:96::10]:80"), "10.0.0.1 and [fd00:96::10]:80 have no IP family in common"),
        (("10.0.0.1", "10.96.0.10"), "TO: must be IP:PORT, [IPv6]:PORT or NAMESPACE/NAME[:PORT], is '10.96.0.10'"),
        (("10.0.0.1", "10.96.0.10:99999"), "TO: must be IP:PORT, [IPv6]:PORT or NAMESPACE/NAME[:PORT]"),
        (("10.0.0.1", "shop/web", "--send", "1"), "--send: needs FROM `node`"),
        (("a", "10.96.0.10:80"), "FROM: must be an IP address or 'node', is 'a'"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], says: str, inputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["trace", *words, "--mode", "iptables", *inputs]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kproxy: error: {says}")
