"""Configuration files in both syntaxes, and written files read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kproxy.config import defaults, files, validate
from kproxy.config.durations import SECOND, Duration
from kproxy.config.fields import DetectLocalMode, LoggingFormat, ProxyMode, VModule
from kproxy.errors import KproxyError

HEADER = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}

EVERYTHING: dict[str, Any] = {
    **HEADER,
    "bindAddress": "10.0.0.7",
    "bindAddressHardFail": True,
    "clientConnection": {
        "acceptContentTypes": "application/json",
        "burst": 20,
        "contentType": "application/json",
        "kubeconfig": "/etc/kubeconfig",
        "qps": 7.5,
    },
    "clusterCIDR": "10.244.0.0/16,fd00:244::/48",
    "configSyncPeriod": "1m0s",
    "conntrack": {
        "maxPerCore": 1,
        "min": 2,
        "tcpBeLiberal": True,
        "tcpCloseWaitTimeout": "3s",
        "tcpEstablishedTimeout": "4s",
        "udpStreamTimeout": "5s",
        "udpTimeout": "6s",
    },
    "detectLocal": {"bridgeInterface": "cbr0", "interfaceNamePrefix": "veth"},
    "detectLocalMode": "InterfaceNamePrefix",
    "enableProfiling": True,
    "featureGates": {"AllAlpha": True, "WatchList": False},
    "healthzBindAddress": "10.0.0.7:1",
    "hostnameOverride": "Node-1",
    "iptables": {
        "localhostNodePorts": False,
        "masqueradeAll": True,
        "masqueradeBit": 31,
        "minSyncPeriod": "500ms",
        "syncPeriod": "10s",
    },
    "ipvs": {
        "excludeCIDRs": ["10.9.0.0/16", "fd09::/64"],
        "minSyncPeriod": "1s",
        "scheduler": "mh",
        "strictARP": True,
        "syncPeriod": "20s",
        "tcpFinTimeout": "7s",
        "tcpTimeout": "8s",
        "udpTimeout": "9s",
    },
    "logging": {
        "flushFrequency": "1s",
        "format": "json",
        "options": {
            "json": {"infoBufferSize": "64Ki", "splitStream": True},
            "text": {"infoBufferSize": 5, "splitStream": True},
        },
        "verbosity": 3,
        "vmodule": [{"filePattern": "sync", "verbosity": 5}],
    },
    "metricsBindAddress": "[::1]:2",
    "mode": "ipvs",
    "nftables": {"masqueradeAll": True, "masqueradeBit": 1, "minSyncPeriod": "2s", "syncPeriod": "3s"},
    "nodePortAddresses": ["10.0.0.0/8", "fd00::/8"],
    "oomScoreAdj": -5,
    "portRange": "30000-30100",
    "showHiddenMetricsForVersion": "1.35",
    "windowsRunAsService": True,
    "winkernel": {
        "enableDSR": True,
        "forwardHealthCheckVip": True,
        "networkName": "n",
        "rootHnsEndpointName": "r",
        "sourceVip": "10.0.0.9",
    },
}


def used_in(mode: str) -> dict[str, Any]:
    """EVERYTHING in MODE, without what kube-proxy drops of other modes' sections; portRange is userspace mode's."""
    values = json.loads(json.dumps(EVERYTHING | {"mode": mode, "portRange": "", "emulateVersion": "1.36"}))
    for section in {"iptables", "ipvs", "nftables"} - {"iptables" if mode == "userspace" else mode}:
        values[section] |= {"syncPeriod": "0s", "minSyncPeriod": "0s"}
    values["iptables" if mode == "nftables" else "nftables"]["masqueradeAll"] = False
    return dict(values) | ({"portRange": EVERYTHING["portRange"]} if mode == "userspace" else {})


@pytest.mark.parametrize("mode", [mode.value for mode in ProxyMode])
def test_every_field_is_read_and_written_back(mode: str) -> None:
    given = EVERYTHING | {"mode": mode, "emulateVersion": "1.36"}
    assert files.to_values(files.from_text(json.dumps(given))) == used_in(mode)


def test_every_field_of_the_sample_differs_from_the_default() -> None:
    """So that the test above cannot pass on a field that is not read at all."""

    def leaves(values: dict[str, Any], path: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            found |= leaves(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
        return found

    ours, standard = leaves(EVERYTHING), leaves(files.to_values(defaults.default()))
    assert standard.keys() <= ours.keys()
    assert {k for k in standard if ours[k] == standard[k]} == HEADER.keys()


def test_values_arrive_in_their_types() -> None:
    config = files.from_text(json.dumps(EVERYTHING))
    assert config.mode is ProxyMode.IPVS
    assert config.logging.format is LoggingFormat.JSON
    assert config.logging.vmodule == (VModule("sync", 5),)
    assert config.detect_local_mode is DetectLocalMode.INTERFACE_NAME_PREFIX
    assert config.conntrack.udp_timeout == Duration(6 * SECOND)
    assert config.cluster_cidrs == ("10.244.0.0/16", "fd00:244::/48")
    assert (config.sync_period, config.min_sync_period) == (20 * SECOND, SECOND)


def test_yaml_and_json_say_the_same() -> None:
    config = files.from_text(json.dumps(EVERYTHING))
    assert files.from_text(files.to_yaml(config)) == config
    assert files.from_text("# a comment\n---\n" + files.to_yaml(config)) == config
    assert files.from_text(json.dumps(EVERYTHING, indent="\t")) == config


@pytest.mark.parametrize("mode", list(ProxyMode))
def test_a_written_file_reads_back_equal(tmp_path: Path, mode: ProxyMode) -> None:
    path = tmp_path / "config.yaml"
    files.write(defaults.default(mode), path)
    assert files.read(path) == defaults.default(mode)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "mode": st.sampled_from([m.value for m in ProxyMode]),
            "bindAddress": st.ip_addresses().map(str).filter(lambda a: "%" not in a),
            "clusterCIDR": st.sampled_from(["", "10.0.0.0/8", "fd00::/64", "10.0.0.0/8,fd00::/64"]),
            "nodePortAddresses": st.lists(st.sampled_from(["10.0.0.0/8", "::/0", "0.0.0.0/0"])) | st.just(["primary"]),
            "iptables": st.fixed_dictionaries(
                {},
                optional={
                    "masqueradeBit": st.integers(0, 31),
                    "masqueradeAll": st.booleans(),
                    "syncPeriod": st.integers(2, 10**6).map(lambda n: str(Duration(n * SECOND))),
                },
            ),
            "featureGates": st.dictionaries(st.sampled_from(["AllAlpha", "AllBeta", "WatchList"]), st.booleans()),
            "hostnameOverride": st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Z"]), max_size=8),
            "oomScoreAdj": st.integers(-1000, 1000),
        },
    )
)
@example(values={"hostnameOverride": "\x85"})
def test_any_valid_configuration_survives_being_written(values: dict[str, Any]) -> None:
    config = files.from_text(json.dumps(HEADER | values))
    assert files.from_text(files.to_yaml(config)) == config
    assert files.from_text(json.dumps(files.to_values(config))) == config


def test_a_folder_that_does_not_exist_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(KproxyError, match="No such file or directory"):
        files.write(defaults.default(), tmp_path / "nowhere" / "config.yaml")


def test_settings_without_meaning_are_named() -> None:
    assert validate.ignored(files.from_text(json.dumps(EVERYTHING))) == [
        "clientConnection.acceptContentTypes",
        "clientConnection.contentType",
        "configSyncPeriod",
        "enableProfiling",
        "featureGates.WatchList",
        "logging.flushFrequency",
        "logging.options.json.infoBufferSize",
        "logging.options.json.splitStream",
        "logging.options.text.infoBufferSize",
        "logging.options.text.splitStream",
        "showHiddenMetricsForVersion",
        "windowsRunAsService",
        "winkernel.enableDSR",
        "winkernel.forwardHealthCheckVip",
        "winkernel.networkName",
        "winkernel.rootHnsEndpointName",
        "winkernel.sourceVip",
    ]
    assert validate.ignored(defaults.default()) == []
