"""The configuration without any setting is kube-proxy's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.config import defaults, files
from kproxy.config.durations import SECOND
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode

HERE = Path(__file__).parent
HEADER = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def test_the_default_configuration_is_written_as_kube_proxy_writes_it() -> None:
    expected = yaml.safe_load((HERE / "kube-proxy-defaults.yaml").read_text())
    assert files.to_values(defaults.default()) == expected
    assert yaml.safe_load(files.to_yaml(defaults.default())) == expected


def test_a_file_with_a_header_alone_gives_the_defaults() -> None:
    assert files.from_text(HEADER) == defaults.default()


def test_kube_proxys_own_default_file_gives_the_defaults() -> None:
    assert files.read(HERE / "kube-proxy-defaults.yaml") == defaults.default()


@pytest.mark.parametrize("mode", list(ProxyMode))
def test_the_mode_in_use_has_sync_periods(mode: ProxyMode) -> None:
    config = files.from_text(f"{HEADER}mode: {mode}\n")
    assert config == defaults.default(mode)
    assert (config.sync_period, config.min_sync_period) == (30 * SECOND, 0 if mode is ProxyMode.IPVS else SECOND)


EMPTY = [
    "iptables: {}\nipvs: {}\nnftables: {}\nconntrack: {}\nlogging: {}\nclientConnection: {}\ndetectLocal: {}\n",
    "iptables: null\nipvs: ~\nmode: null\noomScoreAdj: null\nnodePortAddresses: null\nfeatureGates: null\n",
    "iptables:\n  masqueradeBit: null\n  localhostNodePorts: null\n  syncPeriod: 0s\n  minSyncPeriod: 0s\n",
    'bindAddress: ""\nhealthzBindAddress: ""\nmetricsBindAddress: ""\nmode: ""\ndetectLocalMode: ""\n',
    "clientConnection: {qps: 0, burst: 0, contentType: ''}\nconfigSyncPeriod: 0s\nnodePortAddresses: []\n",
    "conntrack: {maxPerCore: null, min: null, tcpEstablishedTimeout: null, tcpCloseWaitTimeout: null}\n",
    "---\n",
    "logging: {format: '', options: {text: {}, json: null}, vmodule: []}\n",
]


@pytest.mark.parametrize("text", EMPTY)
def test_empty_and_null_stand_for_the_default(text: str) -> None:
    assert files.from_text(HEADER + text) == defaults.default()


def test_an_explicit_zero_of_conntrack_is_kept() -> None:
    conntrack = files.from_text(HEADER + "conntrack: {maxPerCore: 0, tcpCloseWaitTimeout: 0s}\n").conntrack
    assert (conntrack.max_per_core, conntrack.tcp_close_wait_timeout) == (0, 0)


ADDRESSES: list[tuple[str, dict[str, Any]]] = [
    ("bindAddress: 10.0.0.1\n", {"healthz": "0.0.0.0:10256", "metrics": "127.0.0.1:10249"}),
    ("bindAddress: '::'\n", {"healthz": "[::]:10256", "metrics": "[::1]:10249"}),
    ("healthzBindAddress: 10.0.0.1\n", {"healthz": "10.0.0.1:10256", "metrics": "127.0.0.1:10249"}),
    ("metricsBindAddress: '::'\n", {"healthz": "0.0.0.0:10256", "metrics": "[::]:10249"}),
    ("metricsBindAddress: '[::]'\n", {"healthz": "0.0.0.0:10256", "metrics": "[::]:10249"}),
    ("metricsBindAddress: 0.0.0.0:9\n", {"healthz": "0.0.0.0:10256", "metrics": "0.0.0.0:9"}),
]


@pytest.mark.parametrize(("text", "expected"), ADDRESSES)
def test_addresses_follow_the_family_and_get_a_port(text: str, expected: dict[str, str]) -> None:
    config = files.from_text(HEADER + text)
    assert {"healthz": config.healthz_bind_address, "metrics": config.metrics_bind_address} == expected


def test_masquerading_comes_from_the_section_of_the_mode() -> None:
    both = "iptables: {masqueradeAll: true, masqueradeBit: 3}\nnftables: {masqueradeBit: 5}\n"
    found = {}
    for mode in ProxyMode:
        config = files.from_text(f"{HEADER}mode: {mode}\n{both}")
        found[mode.value] = (config.masquerade_all, config.masquerade_bit)
    assert found == {"iptables": (True, 3), "ipvs": (True, 3), "userspace": (True, 3), "nftables": (False, 5)}


# ---------------------------------------------------------------- userspace mode


@pytest.mark.parametrize(
    ("text", "ports"),
    [("", (0, 0)), ("0-0", (0, 0)), ("6000", (6000, 6000)), ("6000-6100", (6000, 6100)), ("6000+100", (6000, 6100))],
)
def test_proxy_ports(text: str, ports: tuple[int, int]) -> None:
    assert KubeProxyConfiguration(port_range=text).proxy_ports == ports


def test_the_section_is_written_only_when_it_says_something() -> None:
    standard = files.from_text(HEADER)
    assert "userspace" not in files.to_values(standard)
    changed = files.from_text(HEADER + "userspace: {drainTimeout: 5s}\n")
    assert files.to_values(changed)["userspace"] == {"udpIdleTimeout": "250ms", "drainTimeout": "5s"}
    assert files.from_text(files.to_yaml(changed)) == changed
