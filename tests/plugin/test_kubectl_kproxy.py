"""`kubectl kproxy` with a real kubectl: objects, and commands in pods by websocket, come from the API stand-in.

A command in a pod runs kproxy itself as a process of this host where it says nothing else; status is of given values.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from kproxy.cli import kubectl_kproxy, main, node_answers
from kproxy.cli.kubectl import Kubectl
from kproxy.errors import InvalidInput
from kproxy.status.schema import FamilyStatus, Refusal, ServicePage, Status
from tests.fakes.apiexec import Executed
from tests.fakes.apifaults import Hang, Refuse
from tests.fakes.apiserver import ApiServer

ROOT = Path(__file__).resolve().parents[2]
NODES = ("node-1", "node-2", "node-3")
MANIFEST = ROOT / "manifests/base/kproxy.yaml"


@pytest.fixture(scope="session")
def kubectl_folder() -> str:
    command = [str(ROOT / "scripts/kubectl")]
    done = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(Path(done.stdout.strip()).parent)


class Cluster:
    """Three nodes with a pod of the manifest's DaemonSet each. statuses: what the daemons say. argv: what was run."""

    def __init__(self, api: ApiServer, folder: Path) -> None:
        self.api, self.folder, self.argv = api, folder, dict[str, list[str]]()
        self.statuses = {name: status(name) for name in NODES}
        self.answers: dict[str, Executed] = {}
        api.apply({"kind": "Namespace", "metadata": {"name": "shop"}})
        config: dict[str, Any] = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
        config |= {"mode": "nftables", "clientConnection": {"kubeconfig": str(folder / "pods.kubeconfig")}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        for at, name in enumerate(NODES, 1):
            self.apply("Node", name, "", status={"addresses": [{"type": "InternalIP", "address": f"192.0.2.{at}"}]})
            self.pod(name, f"kproxy-{at}")
        api.run_commands(self.execute)

    def apply(self, kind: str, name: str, namespace: str = "shop", **more: Any) -> None:
        api = "discovery.k8s.io/v1" if kind == "EndpointSlice" else "v1"
        labels = {"kubernetes.io/service-name": "web"} if kind == "EndpointSlice" else {}
        metadata = {"name": name, "namespace": namespace, "labels": labels}
        self.api.apply({"apiVersion": api, "kind": kind, "metadata": metadata, **more})

    def pod(self, node: str, name: str, **state: Any) -> None:
        """A pod of the manifest's DaemonSet, whose configuration lies in this cluster's folder. state: its status."""
        documents = list(yaml.safe_load_all(MANIFEST.read_text()))
        (template,) = [each["spec"]["template"] for each in documents if each["kind"] == "DaemonSet"]
        text = json.dumps(template).replace("/etc/kproxy/config.yaml", str(self.folder / "config.yaml"))
        running = {"phase": "Running", "containerStatuses": [{"name": "kproxy", "state": {"running": {}}}]}
        pod = json.loads(text) | {"kind": "Pod", "apiVersion": "v1", "status": state or running}
        pod["metadata"] |= {"name": name, "namespace": "kube-system"}
        pod["spec"]["nodeName"] = node
        self.api.apply(pod)

    def execute(self, pod: dict[str, Any], command: Sequence[str]) -> Executed:
        node = pod["spec"]["nodeName"]
        self.argv[node] = list(command)
        if node in self.answers:
            return self.answers[node]
        if command[1] == "status":
            found = self.statuses[node]
            return Executed(0 if found.healthy else 1, msgspec.json.encode(found).decode())
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, check=False)
        return Executed(done.returncode, done.stdout, done.stderr)


def status(node: str, **more: Any) -> Status:
    families = (FamilyStatus(family="IPv4", healthy=True, last_updated="", ports=3, endpoints=5),)
    page = ServicePage(query="", page=1, pages=1, total=0, matching=0, items=())
    names = {"program": "kproxy", "version": "0.1.0", "emulates": "1.37", "mode": "nftables", "started": "", "now": ""}
    state: dict[str, Any] = {"healthy": True, "node_eligible": True, "families": families, "services": page, **more}
    return Status(**names, **state, node=node, uptime_seconds=1)  # type: ignore[arg-type]


@pytest.fixture
def cluster(tmp_path: Path, kubectl_folder: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with ApiServer() as api:
        for name, namespace in (("kubeconfig", "shop"), ("pods.kubeconfig", "default")):
            context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": namespace}}
            config = {"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [context]}
            config |= {
                "clusters": [{"name": "c", "cluster": {"server": api.url}}],
                "users": [{"name": "u", "user": {}}],
            }
            (tmp_path / name).write_text(yaml.safe_dump(config))
        monkeypatch.setenv("PATH", f"{kubectl_folder}:{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin")
        monkeypatch.setenv("HOME", str(tmp_path))  # kubectl's cache of discovery
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield Cluster(api, tmp_path)


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    code = kubectl_kproxy.main(line.split())
    out, err = capsys.readouterr()
    assert "json" in line or all(len(each) <= node_answers.WIDTH for each in out.splitlines())
    return code, out, err


def test_nodes_that_agree_stand_in_one_row_and_one_that_differs_in_its_own(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = (Refusal(family="IPv4", service="shop/web:http", reason="no such " + "long " * 40),)
    assert run(capsys, "status") == (0, ANSWERS_AGREE, "")
    cluster.statuses["node-2"] = status("node-2", healthy=False, refused=refused)
    code, out, err = run(capsys, "status")
    assert (code, err) == (1, "")
    assert out.startswith("1 of 3 nodes differs\n")
    assert "2: node-1, node-3           healthy, kproxy 0.1.0, nftables\n" in out
    assert "node-2                      UNHEALTHY, kproxy 0.1.0, nftables\n" in out
    assert "refused by the kernel: shop/web:http (IPv4): no such" in out
    code, out, _ = run(capsys, "status --format json")
    assert (code, json.loads(out)["groups"], json.loads(out)["failed"]) == (1, [["node-1", "node-3"], ["node-2"]], {})
    assert cluster.argv["node-3"] == ["kproxy", "status", "--config", str(cluster.folder / "config.yaml"), "--json"]


ANSWERS_AGREE = """\
all 3 nodes agree

NODES                       STATUS
3: node-1, node-2, node-3   healthy, kproxy 0.1.0, nftables
                            IPv4: 3 Service ports

"""


def test_a_trace_from_a_pod_to_a_service_runs_on_the_pods_node_or_on_all(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
    spec = {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": ports, "internalTrafficPolicy": "Local"}
    cluster.apply("Service", "web", spec=spec)
    endpoint = {"addresses": ["10.244.1.5"], "nodeName": "node-1", "conditions": {"ready": True}}
    slice_ports = [{"name": "http", "port": 8080, "protocol": "TCP"}]
    cluster.apply("EndpointSlice", "web-1", addressType="IPv4", ports=slice_ports, endpoints=[endpoint])
    client = {"phase": "Running", "podIPs": [{"ip": "fd00::9"}, {"ip": "10.244.1.9"}]}
    cluster.apply("Pod", "client", spec={"nodeName": "node-1", "containers": [{"name": "c"}]}, status=client)

    code, out, err = run(capsys, "trace pod/client svc/web:http --mode nftables")
    assert (code, list(cluster.argv)) == (0, ["node-1"]), err
    assert out.startswith("10.244.1.9 → 10.96.0.10:80/tcp (shop/web:http, cluster IP), ")
    assert "⇒ forwarded to 10.244.1.5:8080" in out
    own = ["--node", "node-1", "--config", str(cluster.folder / "config.yaml")]
    assert cluster.argv["node-1"] == ["kproxy", "trace", *own, "10.244.1.9", "shop/web:http", "--mode", "nftables"]

    code, out, err = run(capsys, "trace pod/client svc/web --mode nftables --all-nodes -n shop --context c")
    assert (code, out.splitlines()[0], err) == (0, "1 of 3 nodes differs", "")
    assert "2: node-2, node-3           10.96.0.10:80/tcp\n" + " " * 30 + "dropped by " in out
    assert "node-1                      10.96.0.10:80/tcp\n" + " " * 30 + "forwarded to 10.244.1.5:8080\n" in out


def test_each_node_that_fails_has_one_line_and_the_others_are_shown(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = [{"name": "kproxy", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]
    cluster.pod("node-2", "kproxy-2", phase="Running", containerStatuses=waiting)
    cluster.pod("node-3", "kproxy-3-old", phase="Failed")  # beside the one that runs
    cluster.apply("Node", "node-4", "")
    cluster.apply("Node", "node-5", "")
    for name, answer in {
        "node-1": Executed(126, "", 'OCI runtime exec failed: exec: "kproxy": executable file not found in $PATH\n'),
        "node-5": Executed(2, "", "kproxy: note\nkproxy: error: no command 'status'\nkproxy: error: b\n"),
    }.items():
        cluster.answers[name] = answer
    cluster.pod("node-5", "kproxy-5")
    code, out, err = run(capsys, "status")
    assert code == 2  # as node-5's kproxy says
    assert out.startswith("1 node answered; 4 of 5 did not answer\n")
    assert err.splitlines() == [
        "kubectl-kproxy: error: node node-1: the pod has no kproxy; is it kube-proxy itself?",
        "kubectl-kproxy: error: node node-2: pod kproxy-2 does not run: CrashLoopBackOff",
        "kubectl-kproxy: error: node node-4: no pod of kproxy is there",
        "kubectl-kproxy: error: node node-5: no command 'status'; b",
    ]
    encoded = msgspec.json.encode(status("any")).decode()
    cluster.answers = {name: Executed(0, encoded, "kproxy: ignored: x\n") for name in ("node-1", "node-3")}
    code, out, err = run(capsys, "status --node node-1 --node node-3")
    assert (code, err) == (0, "kubectl-kproxy: node node-1 and 1 more: kproxy: ignored: x\n")
    cluster.answers = {"node-3": Executed(0, "{}")}
    code, out, err = run(capsys, "status --node node-3 --node node-4 --format json")
    assert (code, json.loads(out)["nodes"], len(err.splitlines())) == (1, {}, 2)
    assert "node node-3: kproxy answered something else than expected: '{}'" in err


def test_what_the_api_refuses_is_one_line_and_a_node_that_hangs_costs_its_time_limit(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.api.inject(Refuse(403), verb="exec", times=2)  # kubectl tries SPDY after the websocket
    code, out, err = run(capsys, "status --node node-1")
    assert (code, out) == (1, "")
    assert re.fullmatch("kubectl-kproxy: error: node node-1: .*told to refuse\n", err)
    cluster.api.clear_faults()
    cluster.api.inject(Hang(), verb="exec")
    code, out, err = run(capsys, "status --timeout 2 --parallel 1")
    assert (code, out.splitlines()[0]) == (1, "2 nodes agree; 1 of 3 did not answer")
    assert err == "kubectl-kproxy: error: node node-1: no answer within 2 s; see --timeout\n"
    cluster.api.inject(Refuse(403), verb="list", kind="Node")
    code, out, err = run(capsys, "status")
    assert (code, out, err.count("\n")) == (0, ANSWERS_AGREE, 1)
    assert err.startswith("kubectl-kproxy: only nodes with a pod of kproxy are asked: kubectl: ")


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("status --node node-1 --all-nodes", 2, "--node and --all-nodes are mutually exclusive"),
        ("status --node node-9", 1, "node node-9: no pod of kproxy is there"),
        ("lint", 2, "'lint' is not one of"),
        ("trace node svc/web -f x.yaml", 2, "-f: the pods do not have your files; use kproxy itself"),
        ("trace node svc/web -n shop", 2, "there is no service web in namespace shop"),
        ("trace pod/none 10.0.0.1:80", 2, "there is no pod none in the context's namespace; see -n"),
        ("status --proxy-namespace shop", 1, "there are no pods with the label app.kubernetes.io/name=kproxy or k8s"),
        ("status --context other", 1, 'context "other" does not exist'),
    ],
)
def test_bad_input_is_one_line(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], line: str, code: int, said: str
) -> None:
    found, out, err = run(capsys, line)
    assert (found, out, err.count("\n")) == (code, "", 1), err
    assert said in err


def test_what_kubectl_leaves_behind_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a credential plugin's helper, which has inherited kubectl's output."""
    script = tmp_path / "kubectl"
    script.write_text(f"#!/bin/sh\nsleep 60 &\necho $! >{tmp_path}/pid\necho node/n1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    try:
        assert Kubectl(timeout=20).nodes() == ["n1"]
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_top_of_one_node_runs_until_it_ends(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    cluster.answers["node-1"] = Executed(0, "first\nsecond\n")
    assert kubectl_kproxy.main(["top", "--sort", "rate", "--node", "node-1"]) == 0
    assert capfd.readouterr().out == "first\nsecond\n"
    assert cluster.argv["node-1"][-2:] == ["--sort", "rate"]


def test_one_file_is_a_plugin_that_needs_no_installed_library(cluster: Cluster, tmp_path: Path) -> None:
    bin_folder = tmp_path / "bin"
    command = [sys.executable, str(ROOT / "scripts/build_plugin.py"), str(bin_folder / "kubectl-kproxy")]
    subprocess.run(command, check=True, timeout=60)
    python = bin_folder / "python3"  # without site-packages and PYTHONPATH
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    (bin_folder / "kubectl-kproxy").chmod(0o755)
    cluster.statuses["node-2"] = status("node-2", healthy=False)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    done = subprocess.run(["kubectl", "kproxy", "status"], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("1 of 3 nodes differs\n")


@pytest.mark.parametrize(
    ("words", "resolved", "node"),
    [
        ("pod/both 192.0.2.1:80", "10.0.0.9 192.0.2.1:80", "n1"),
        ("po/both [2001:db8::1]:80", "fd00::9 [2001:db8::1]:80", "n1"),
        ("pods/both other/web", "fd00::9 other/web", "n1"),
        ("pod/both svc/four", "10.0.0.9 shop/four", "n1"),
        ("192.0.2.1 pod/both:80", "192.0.2.1 10.0.0.9:80", ""),
        ("node pod/both:80", "node [fd00::9]:80", ""),
        ("pod/host service/four:dns --protocol udp", "node shop/four:dns --protocol udp", "n2"),
        ("pod/both pod/host:80 --interface eth0", "10.0.0.9 192.0.2.2:80 --interface eth0", "n1"),
        ("pod/ended svc/four", "pod ended: the pod has ended: it is Succeeded", None),
        ("pod/pending svc/four", "pod pending: the pod has no IP address: it is Pending", None),
        ("node svc/headless", "Service headless: the Service has no cluster IP", None),
        ("pod/host [2001:db8::1]:80", "pod/host: the pod has no IP address of the family of the other end", None),
    ],
)
def test_pods_and_services_become_addresses_of_one_family(words: str, resolved: str, node: str | None) -> None:
    def thing(kind: str, name: str) -> dict[str, Any]:
        return {"kind": kind.capitalize(), "metadata": {"name": name, "namespace": "shop"}, **OBJECTS[name]}

    if node is None:
        with pytest.raises(InvalidInput, match="(?i)" + re.escape(resolved)):
            kubectl_kproxy.resolve(words.split(), thing)
    else:
        assert kubectl_kproxy.resolve(words.split(), thing) == (tuple(resolved.split()), node)


def _pod(node: str, phase: str, *ips: str, **spec: Any) -> dict[str, Any]:
    return {"spec": {"nodeName": node, **spec}, "status": {"phase": phase, "podIPs": [{"ip": ip} for ip in ips]}}


OBJECTS: dict[str, Any] = {
    "both": _pod("n1", "Running", "fd00::9", "10.0.0.9"),
    "host": _pod("n2", "Running", "192.0.2.2", hostNetwork=True),
    "ended": _pod("n1", "Succeeded", "10.0.0.8"),
    "pending": _pod("", "Pending"),
    "four": {"spec": {"clusterIPs": ["10.96.0.1"]}},
    "headless": {"spec": {"clusterIP": "None", "clusterIPs": ["None"]}},
}


@pytest.mark.parametrize(
    ("command", "values", "said"),
    [
        (
            "diff",
            [{"equal": True, "differences": []}] * 2,
            ["all 2 nodes agree", "2: n0, n1 the kernel holds what it should"],
        ),
        (
            "diff",
            [
                {"equal": True, "differences": []},
                {"equal": False, "differences": [{"service": "shop/web:http", "kind": "missing", "what": "rule x"}]},
            ],
            ["1 of 2 nodes differs", "n1 missing: shop/web:http: rule x"],
        ),
        (
            "trace",
            [
                {
                    "traces": [
                        {
                            "probe": {
                                "to": f"192.0.2.{at}:30080",
                                "port": "shop/web:http, node port",
                                "protocol": "tcp",
                            },
                            "conntrack": {"state": "assured"},
                            "unknown": [{"table": "ip t", "chain": "c", "rule": "limit rate 1/second"}],
                            "outcomes": [
                                {
                                    "probability": "1/2",
                                    "fate": "forwarded",
                                    "endpoint": "10.0.0.1:80",
                                    "source": f"192.0.2.{at}",
                                }
                                | {"masqueraded": True, "steps": []},
                                {
                                    "probability": "1/2",
                                    "fate": "dropped",
                                    "endpoint": None,
                                    "source": "",
                                    "masqueraded": False,
                                }
                                | {"steps": [{"table": "inet fw", "chain": "forward", "rule": f"counter {at} drop"}]},
                            ],
                        }
                    ]
                }
                for at in range(2)
            ],
            [
                "all 2 nodes agree",
                "2: n0, n1 shop/web:http, node port/tcp",
                "followed instead: an entry of connection tracking",
                "! depends on ip t c: limit rate 1/second",
                "1/2 forwarded to 10.0.0.1:80, masqueraded",
                "1/2 dropped by inet fw forward",
            ],
        ),
        (
            "preflight",
            [
                {
                    "verdict": "2 kinds of packets change",
                    "differences": [{"summary": "ping of cluster IPs"}],
                    "requirements": [{"what": "nft", "met": False, "detail": "not there"}, {"what": "x", "met": True}],
                }
            ],
            ["n0 2 kinds of packets change", "ping of cluster IPs", "not met: nft: not there"],
        ),
        (
            "top",
            [
                {
                    "services": [
                        {"namespace": "shop", "name": "web", "port": "http", "protocol": "TCP"}
                        | {"connections": 10 + at, "rate": 0.5, "refused": None}
                    ]
                }
                for at in range(2)
            ],
            ["The sum of 2 nodes", "shop/web:http/tcp 21 1.0 0"],
        ),
    ],
)
def test_other_commands_answers_are_merged_too(command: str, values: list[Any], said: list[str]) -> None:
    answers = [node_answers.Answer(f"n{at}", 0, value) for at, value in enumerate(values)]
    found = [" ".join(line.split()) for line in node_answers.as_text(command, answers).splitlines()]
    assert [line for line in said if line not in found] == []
    assert set(node_answers.as_json(command, answers)["nodes"]) == {answer.node for answer in answers}  # type: ignore[call-overload]


def test_every_command_runs_by_the_plugin_or_is_none_for_a_pod() -> None:
    assert set(main.COMMANDS) <= {*node_answers.COMMANDS, "run", "render", "lint", "cleanup", "demo"}
