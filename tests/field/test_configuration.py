"""Reports of configuration files that kube-proxy starts with, through the daemon's own command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.cli import main

HEADER = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

ACCEPTED: list[tuple[str, str, dict[str, Any], str]] = [
    # report, file, what is written, what the log says
    ("kubernetes#100895: leading zeros", "clusterCIDR: 010.0.0.0/8\nbindAddress: 010.0.0.1\n",
     {"clusterCIDR": "010.0.0.0/8", "bindAddress": "010.0.0.1"}, ""),
    ("leading zeros, elsewhere", "healthzBindAddress: 010.0.0.1\nnodePortAddresses: [010.0.0.0/08]\n",
     {"healthzBindAddress": "010.0.0.1:10256", "nodePortAddresses": ["010.0.0.0/08"]}, ""),
    ("leading zeros, ipvs", "mode: ipvs\nipvs: {excludeCIDRs: [010.9.0.0/16]}\n",
     {"ipvs.excludeCIDRs": ["010.9.0.0/16"]}, ""),
    ("ipvs minSyncPeriod 0", "mode: ipvs\nipvs: {minSyncPeriod: 0s}\n",
     {"ipvs.minSyncPeriod": "0s", "ipvs.syncPeriod": "30s"}, ""),
    ("ipvs minSyncPeriod unset", "mode: ipvs\n", {"ipvs.minSyncPeriod": "0s", "iptables.syncPeriod": "0s"}, ""),
    ("a wrong portRange in other modes", "portRange: foo\n", {"portRange": ""},
     'portRange: must be a range of ports such as 30000-30100, is "foo"; mode iptables does not use it'),
    ("a portRange in other modes", "mode: nftables\nportRange: 3000-4000\n", {"portRange": ""},
     "portRange: mode nftables does not use it"),
    ("periods of another mode", "mode: nftables\niptables: {syncPeriod: 1s, masqueradeAll: true}\n",
     {"iptables.syncPeriod": "0s", "iptables.masqueradeAll": False, "nftables.syncPeriod": "30s"}, ""),
    ("masqueradeAll of nftables mode", "mode: ipvs\nnftables: {masqueradeAll: true}\n",
     {"nftables.masqueradeAll": False}, ""),
    ("a second document", "mode: ipvs\n---\nmode: nftables\n", {"mode": "ipvs"},
     "line 5: what follows the first YAML document"),
    ("a second document, broken", "mode: ipvs\n---\nmode: [\n", {"mode": "ipvs"},
     "what follows the first YAML document"),
    ("a scheduler that only the kernel can judge", "mode: ipvs\nipvs: {scheduler: foo}\n",
     {"ipvs.scheduler": "foo"}, ""),
    ("a prefix as iptables writes it",
     "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali+}\n",
     {"detectLocal.interfaceNamePrefix": "cali+"}, ""),
    ("a number of nanoseconds", "logging: {flushFrequency: 5000000000}\n", {"logging.flushFrequency": 5000000000}, ""),
]  # fmt: skip


def value(values: dict[str, Any], path: str) -> Any:
    for name in path.split("."):
        values = values[name]
    return values


@pytest.mark.parametrize(("text", "expected", "says"), [row[1:] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_what_kube_proxy_starts_with_is_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: dict[str, Any], says: str
) -> None:
    config, written = tmp_path / "config.yaml", tmp_path / "written.yaml"
    config.write_text(HEADER + text)
    assert main.main(["run", "--config", str(config), "--write-config-to", str(written)]) == 0
    found = yaml.safe_load(written.read_text())
    assert {path: value(found, path) for path in expected} == expected
    warnings = [line for line in capsys.readouterr().err.splitlines() if "ignored" in line]
    assert len(warnings) == bool(says)
    assert all(says in line.replace('\\"', '"') for line in warnings)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("clusterCIDR: 10.0.0.0/8,010.1.0.0/16\n", "clusterCIDR: must be one CIDR, or one of IPv4 and one of IPv6"),
        ("mode: userspace\nportRange: foo\n", "portRange: must be a range of ports"),
        ("iptables: {syncPeriod: null}\n", 'iptables.syncPeriod: must be text with a unit, such as "30s", is null'),
        ("bindAddress: ' 10.0.0.1'\n", "bindAddress: must be an IP address"),
        ("featureGates: {Nope: true}\n", "featureGates.Nope: unrecognized feature gate"),
    ],
)
def test_what_kube_proxy_refuses_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(HEADER + text)
    assert main.main(["run", "--config", str(config), "--write-config-to", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{config}: {says}" in line
