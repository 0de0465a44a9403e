"""`kproxy render`: arguments, inputs and outputs. The rules themselves are tested in tests/parity."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kproxy.cli import host_file, main
from kproxy.errors import InvalidConfig

HEADER = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}

SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "clusterIP": "10.96.0.10",
        "clusterIPs": ["10.96.0.10", "fd00:96::10"],
        "ipFamilies": ["IPv4", "IPv6"],
        "type": "NodePort",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}],
    },
}


def endpoint_slice(family: str, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"web-{family.lower()}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": family,
        "endpoints": [{"addresses": [address], "nodeName": "node1"}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


OBJECTS = [SERVICE, endpoint_slice("IPv4", "10.244.0.5"), endpoint_slice("IPv6", "fd00:244::5")]
HOST: dict[str, Any] = {
    "nodeIPs": ["172.18.0.2", "fd00:18::2"],
    "interfaces": [
        {"name": "lo", "addresses": ["127.0.0.1/8", "::1/128"]},
        {"name": "eth0", "addresses": ["172.18.0.2/16", "fd00:18::2/64"]},
    ],
}


class Files:
    """The three inputs as files, which tests may overwrite."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = self.write("objects.json", {"apiVersion": "v1", "kind": "List", "items": OBJECTS})
        self.host = self.write("host.json", HOST)
        self.config = self.write("config.json", {**HEADER, "clusterCIDR": "10.244.0.0/16,fd00:244::/48"})

    def write(self, name: str, value: object) -> Path:
        path = self.folder / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    def args(self, *more: str) -> list[str]:
        return [
            "render", f"--config={self.config}", f"--host={self.host}", "-f", str(self.objects), "--node=node1", *more,
        ]  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path) -> Files:
    return Files(tmp_path)


def render(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main.main(args) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main.main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(line.startswith("kproxy: error: ") for line in err.splitlines())
    return [line.removeprefix("kproxy: error: ") for line in err.splitlines()]


# ---------------------------------------------------------------- output


def test_native_iptables_is_text_for_iptables_restore(inputs: Files, capsys: pytest.CaptureFixture[str]) -> None:
    lines = render(inputs.args("--mode", "iptables", "--family=ipv4"), capsys).splitlines()
    assert lines[0] == "*filter"
    assert lines.count("COMMIT") == 2
    assert any("-d 10.96.0.10/32" in line and "--dport 80" in line for line in lines)
    assert any(line.startswith("-A PREROUTING") and line.endswith("-j KUBE-SERVICES") for line in lines)
    assert not any("fd00" in line for line in lines)


def test_all_families_follow_each_other_under_a_header(inputs: Files, capsys: pytest.CaptureFixture[str]) -> None:
    each = [render(inputs.args("--mode=iptables", f"--family={f}"), capsys) for f in ("ipv4", "ipv6")]
    assert render(inputs.args("--dry-run"), capsys) == f"# IPv4\n{each[0]}# IPv6\n{each[1]}"
    one = json.loads(render(inputs.args("--family=ipv6", "--format=json"), capsys))
    assert one == {"rules": each[1]}
    assert json.loads(render(inputs.args("--family=all", "--format=json"), capsys)) == {
        "ipv4": {"rules": each[0]},
        "ipv6": {"rules": each[1]},
    }


def test_ipvs_has_a_section_for_each_tool(inputs: Files, capsys: pytest.CaptureFixture[str]) -> None:
    text = render(inputs.args("--mode=ipvs", "--family=ipv6"), capsys)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# ipvsadm -R",
        "# ipset restore",
        "# ip -force -batch -",
        "# ip6tables-restore --noflush",
    ]
    assert "-a -t [fd00:18::2]:30080 -r [fd00:244::5]:8080 -m -w 1" in text
    assert "add KUBE-6-CLUSTER-IP fd00:96::10,tcp:80" in text
    assert "address add fd00:96::10/128 dev kube-ipvs0" in text
    assert "-m set --match-set KUBE-6-CLUSTER-IP dst,dst" in text


def test_ipvs_json_has_virtual_servers_sets_addresses_and_rules(
    inputs: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    values = json.loads(render(inputs.args("--mode=ipvs", "--format=json"), capsys))
    assert list(values) == ["ipv4", "ipv6"]
    assert {name: set(value) for name, value in values.items()} == {
        name: {"rules", "virtualServers", "ipsets", "kubeIpvs0"} for name in ("ipv4", "ipv6")
    }
    assert [(v["address"], v["port"], v["realServers"]) for v in values["ipv4"]["virtualServers"]] == [
        ("10.96.0.10", 80, ["10.244.0.5:8080 weight=1"]),
        ("172.18.0.2", 30080, ["10.244.0.5:8080 weight=1"]),
    ]
    assert values["ipv4"]["kubeIpvs0"] == ["10.96.0.10"]


def test_the_mode_comes_from_the_configuration_when_it_is_not_given(
    inputs: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs.write("config.json", {**HEADER, "mode": "nftables"})
    assert "table ip kproxy {" in render(inputs.args(), capsys)
    assert "*nat" in render(inputs.args("--mode=iptables"), capsys)


def test_the_node_decides_what_is_local(inputs: Files, capsys: pytest.CaptureFixture[str]) -> None:
    local = json.loads(json.dumps(SERVICE))
    local["spec"]["externalTrafficPolicy"] = "Local"
    inputs.write("objects.json", {"apiVersion": "v1", "kind": "List", "items": [local, *OBJECTS[1:]]})
    here, there = (render([*inputs.args("--family=ipv4"), f"--node={n}"], capsys) for n in ("node1", "node2"))
    assert ":KUBE-SVL-" in here
    assert ":KUBE-SVL-" not in there


def test_the_node_may_be_named_by_the_configuration(inputs: Files, capsys: pytest.CaptureFixture[str]) -> None:
    whole = render(inputs.args(), capsys)
    inputs.write("config.json", {**HEADER, "clusterCIDR": "10.244.0.0/16,fd00:244::/48", "hostnameOverride": "NODE1 "})
    assert render([a for a in inputs.args() if not a.startswith("--node")], capsys) == whole


def test_an_unknown_node_is_reported(inputs: Files, capsys: pytest.CaptureFixture[str]) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}}
    inputs.write("objects.json", {"apiVersion": "v1", "kind": "List", "items": [node, *OBJECTS]})
    assert main.main([*inputs.args(), "--node=elsewhere"]) == 0
    assert capsys.readouterr().err.startswith("kproxy: there is no Node elsewhere: ")
    assert render(inputs.args(), capsys)


# ---------------------------------------------------------------- sources


def test_manifests_may_be_yaml_several_files_and_folders(inputs: Files, capsys: pytest.CaptureFixture[str]) -> None:
    whole = render(inputs.args(), capsys)
    folder = inputs.folder / "manifests"
    folder.mkdir()
    (folder / "slices.yaml").write_text("---\n".join(json.dumps(o) + "\n" for o in OBJECTS[1:]))
    service = inputs.write("service.yaml", "# one\n" + json.dumps(SERVICE, indent=2))
    rest = [f"--config={inputs.config}", f"--host={inputs.host}", "--node=node1"]
    assert render(["render", "-f", str(folder), "-f", str(service), *rest], capsys) == whole


def test_manifests_may_come_on_standard_input(inputs: Files) -> None:
    args = [sys.executable, "-m", "kproxy", "render", f"--host={inputs.host}", "--node=node1", "--family=ipv4", "-f"]
    text = inputs.objects.read_text()
    piped = subprocess.run([*args, "-"], input=text, capture_output=True, text=True, timeout=60, check=True)
    named = subprocess.run([*args, str(inputs.objects)], capture_output=True, text=True, timeout=60, check=True)
    assert piped.stdout == named.stdout
    assert "10.244.0.5:8080" in piped.stdout


def test_a_cluster_that_cannot_be_reached_ends_with_1(inputs: Files, capsys: pytest.CaptureFixture[str]) -> None:
    kubeconfig = inputs.write(
        "kubeconfig",
        {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        },
    )  # fmt: skip
    assert main.main(["render", f"--host={inputs.host}", f"--kubeconfig={kubeconfig}", "--node=node1"]) == 1
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith("kproxy: error: ")
    assert "refused" in err


# ---------------------------------------------------------------- bad input

BAD_ARGUMENTS = [
    (["--mode=ebpf"], ["--mode", "ebpf", "iptables", "ipvs", "nftables", "userspace"]),
    (["--family=ipv5"], ["--family", "ipv5", "ipv4", "ipv6", "all"]),
    (["--emulate-version=1.34"], ["--emulate-version", 'must be 1.35 or newer, is "1.34"']),
    (["--format=xml"], ["--format", "xml", "native", "json"]),
    (["--config=/no/such"], ["/no/such: No such file or directory"]),
    (["--host=/no/such"], ["/no/such: No such file or directory"]),
    (["word"], ["(word)"]),
]


@pytest.mark.parametrize(("args", "named"), BAD_ARGUMENTS, ids=[" ".join(args) for args, _ in BAD_ARGUMENTS])
def test_bad_arguments_are_refused(
    args: list[str], named: list[str], inputs: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = refused(inputs.args(*args), capsys)
    assert [part for part in named if part not in line] == []


def test_a_missing_manifest_is_refused(inputs: Files, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(inputs.args("-f", "/no/such/file"), capsys)
    assert "/no/such/file" in line


def test_settings_are_validated_as_the_minor_does(inputs: Files, capsys: pytest.CaptureFixture[str]) -> None:
    inputs.write("config.json", {**HEADER, "nodePortAddresses": ["primary", "10.0.0.0/8"]})
    assert main.main(inputs.args("--emulate-version=1.37")) == 0
    assert main.main(inputs.args("--emulate-version=1.36")) == 2
    assert "nodePortAddresses: must hold nothing else when it holds primary, in 1.36" in capsys.readouterr().err


def test_settings_of_a_mode_are_validated_in_that_mode(inputs: Files, capsys: pytest.CaptureFixture[str]) -> None:
    inputs.write("config.json", {**HEADER, "ipvs": {"tcpTimeout": "-1s"}})
    assert main.main(inputs.args("--mode=iptables")) == 0
    assert main.main(inputs.args("--mode=ipvs")) == 2
    assert f"kproxy: error: {inputs.config}: ipvs.tcpTimeout: must not be negative" in capsys.readouterr().err


BAD_HOSTS = [
    ("", ["is empty"]),
    ("[]", ["Expected object, got array"]),
    ("{", ["is no JSON: it ends too early"]),
    ('{"nodeips": []}', ["nodeips: unknown field"]),
    ('{"nodeIPs": "10.0.0.1"}', ["nodeIPs: Expected array, got str"]),
    ('{"interfaces": [{"addresses": []}]}', ["interfaces[0].name: is missing"]),
    ('{"nodeIPs": ["node1"]}', ['nodeIPs[0]: must be an IP address, is "node1"']),
    ('{"nodeIPs": ["10.0.0.1/8"]}', ['nodeIPs[0]: must be an IP address, is "10.0.0.1/8"']),
    ('{"nodeIPs": ["10.0.0.1", "10.0.0.2"]}', ["nodeIPs: must hold at most one address of each IP family"]),
    (
        '{"nodeIPs": ["x"], "interfaces": [{"name": "a", "addresses": '
        '["10.0.0.1", "fe80::1%eth0/64", "10.0.0.1/33"]}]}',
        [
            'nodeIPs[0]: must be an IP address, is "x"',
            'interfaces[0].addresses[0]: must be IP/LENGTH, is "10.0.0.1"',
            'interfaces[0].addresses[1]: must be IP/LENGTH, is "fe80::1%eth0/64"',
            'interfaces[0].addresses[2]: must be IP/LENGTH, is "10.0.0.1/33"',
        ],
    ),
]


@pytest.mark.parametrize(("text", "expected"), BAD_HOSTS, ids=range(len(BAD_HOSTS)))
def test_a_bad_host_file_is_refused_with_every_problem(text: str, expected: list[str]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        host_file.from_text(text.encode())
    assert list(caught.value.problems) == expected


def test_a_host_is_read_in_canonical_form() -> None:
    host = host_file.from_text(
        b'{"nodeIPs": ["10.0.0.1", "FD00:0::1"], "interfaces": [{"name": "a", "addresses": ["FD00::0:1/64"]}]}'
    )
    assert (host.ips, host.addresses) == (("10.0.0.1", "fd00::1"), ("fd00::1",))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace of its own needs root")
def test_without_a_host_file_this_hosts_addresses_count(inputs: Files) -> None:
    inputs.write("config.json", {**HEADER, "nodePortAddresses": ["192.0.2.0/24"]})
    script = "ip link set lo up && ip address add 192.0.2.7/24 dev lo && exec " + shlex.join(
        [sys.executable, "-m", "kproxy", *inputs.args("--family=ipv4")]
    ).replace(f" --host={inputs.host}", "")
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "-A KUBE-SERVICES -d 192.0.2.7/32" in done.stdout
