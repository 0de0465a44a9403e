"""Every field and every flag of kube-proxy has a meaning here, or is said to have none; and what is said is so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from kproxy.cli import flags, pflags, reference, settings
from kproxy.config import files, validate
from kproxy.config.field_docs import FIELD_DOCS, leaves
from kproxy.config.fields import KubeProxyConfiguration
from kproxy.config.options import Options, node_name
from kproxy.model.node_info import NodeInfo
from kproxy.model.plans import Family
from kproxy.modes import settings as rules
from kproxy.modes.drivers import driver_of
from kproxy.sync import cluster_source, host_setup, reload
from kproxy.sync.daemon import server_settings

ROOT = Path(__file__).resolve().parents[2]
HEADER = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
KUBE_PROXYS = [line.split("\t")[0] for line in (ROOT / "tests/config/kube-proxy-flags.tsv").read_text().splitlines()]
NODE = NodeInfo(
    "node1",
    "zone-a",
    ("172.30.0.1",),
    ("10.244.1.0/24",),
    addresses=("127.0.0.1", "172.30.0.1", "172.31.0.1"),
)
V4 = Family.IPV4

Observer = Callable[[KubeProxyConfiguration], object]


def iptables(config: KubeProxyConfiguration) -> object:
    return rules.iptables_settings(config, V4, NODE, 1)


def ipvs(config: KubeProxyConfiguration) -> object:
    return rules.ipvs_settings(config, V4, NODE)


def nftables(config: KubeProxyConfiguration) -> object:
    return rules.nftables_settings(config, V4, NODE)


def periods(config: KubeProxyConfiguration) -> object:
    """What the schedules and the health state are given."""
    return config.sync_period, config.min_sync_period


def client(config: KubeProxyConfiguration) -> object:
    return cluster_source.client_settings(Options(config, "node1"))


def makes(config: KubeProxyConfiguration) -> object:
    """Whether a driver has to be made anew, which reads these fields only then; modes' own tests show what it does."""
    mode: dict[str, Any] = {"mode": config.mode.value}
    return reload.needs_new_driver(read(mode), config)


class Effect(NamedTuple):
    """A value, written into the file beside what else it needs, and where it shows."""

    value: Any
    observer: Observer
    beside: Mapping[str, Any] = MappingProxyType({})


IPVS, NFTABLES, USERSPACE = ({"mode": mode} for mode in ("ipvs", "nftables", "userspace"))
EFFECTS = {
    "emulateVersion": Effect("1.38", lambda config: config.gate_enabled("KubeProxyNFTablesLocalhostNodePorts")),
    "featureGates": Effect({"AllowServiceExternalIPs": False}, attrgetter("external_ips")),
    "clientConnection.kubeconfig": Effect("/etc/kubeconfig", client),
    "clientConnection.qps": Effect(7, client),
    "clientConnection.burst": Effect(70, client),
    "hostnameOverride": Effect("Other ", lambda config: node_name(config.hostname_override)),
    "bindAddress": Effect("172.30.0.9", lambda config: rules.node_ips(config, NODE, ())),
    "healthzBindAddress": Effect("127.0.0.1:1", server_settings),
    "metricsBindAddress": Effect("127.0.0.1:1", server_settings),
    "bindAddressHardFail": Effect(True, server_settings),
    "mode": Effect("nftables", lambda config: driver_of(config.mode)),
    "iptables.masqueradeBit": Effect(3, iptables),
    "iptables.masqueradeAll": Effect(True, iptables),
    "iptables.localhostNodePorts": Effect(False, iptables),
    "iptables.syncPeriod": Effect("7s", periods),
    "iptables.minSyncPeriod": Effect("7s", periods),
    "ipvs.syncPeriod": Effect("7s", periods, IPVS),
    "ipvs.minSyncPeriod": Effect("7s", periods, IPVS),
    "ipvs.scheduler": Effect("sh", ipvs, IPVS),
    "ipvs.excludeCIDRs": Effect(["10.0.0.0/8"], ipvs, IPVS),
    "ipvs.strictARP": Effect(True, makes, IPVS),
    "ipvs.tcpTimeout": Effect("7s", makes, IPVS),
    "ipvs.tcpFinTimeout": Effect("7s", makes, IPVS),
    "ipvs.udpTimeout": Effect("7s", makes, IPVS),
    "nftables.masqueradeBit": Effect(3, nftables, NFTABLES),
    "nftables.masqueradeAll": Effect(True, nftables, NFTABLES),
    "nftables.syncPeriod": Effect("7s", periods, NFTABLES),
    "nftables.minSyncPeriod": Effect("7s", periods, NFTABLES),
    "userspace.udpIdleTimeout": Effect("7s", makes, USERSPACE),
    "userspace.drainTimeout": Effect("7s", makes, USERSPACE),
    "detectLocalMode": Effect("NodeCIDR", iptables),
    "detectLocal.bridgeInterface": Effect("cbr0", iptables, {"detectLocalMode": "BridgeInterface"}),
    "detectLocal.interfaceNamePrefix": Effect("veth", iptables, {"detectLocalMode": "InterfaceNamePrefix"}),
    "clusterCIDR": Effect("10.244.0.0/16", iptables),
    "nodePortAddresses": Effect(["172.31.0.0/16"], iptables),
    "conntrack.maxPerCore": Effect(7, host_setup.conntrack_settings),
    "conntrack.min": Effect(7, host_setup.conntrack_settings),
    "conntrack.tcpEstablishedTimeout": Effect("7s", host_setup.conntrack_settings),
    "conntrack.tcpCloseWaitTimeout": Effect("7s", host_setup.conntrack_settings),
    "conntrack.tcpBeLiberal": Effect(True, iptables),
    "conntrack.udpTimeout": Effect("7s", host_setup.conntrack_settings),
    "conntrack.udpStreamTimeout": Effect("7s", host_setup.conntrack_settings),
    "portRange": Effect("6000-6100", makes, USERSPACE),
}
# Other values are errors; or what they do shows in a process: tests/dropin/test_pod.py, tests/cli/test_logs.py.
SHOWN_ELSEWHERE = {"apiVersion", "kind", "oomScoreAdj", "logging.format", "logging.verbosity", "logging.vmodule"}

IDLE_VALUES: dict[str, Any] = {
    "clientConnection.acceptContentTypes": "application/json",
    "clientConnection.contentType": "application/json",
    "configSyncPeriod": "7s",
    "enableProfiling": True,
    "logging.flushFrequency": "7s",
    "showHiddenMetricsForVersion": "1.35",
    "windowsRunAsService": True,
    **{f"logging.options.{form}.splitStream": True for form in ("text", "json")},
    **{f"logging.options.{form}.infoBufferSize": "64Ki" for form in ("text", "json")},
    **{f"winkernel.{name}": "x" for name in ("networkName", "sourceVip", "rootHnsEndpointName")},
    **{f"winkernel.{name}": True for name in ("enableDSR", "forwardHealthCheckVip")},
}


def read(*parts: Mapping[str, Any]) -> KubeProxyConfiguration:
    whole: dict[str, Any] = dict(HEADER)
    for part in parts:
        for name, value in part.items():
            both = isinstance(value, dict) and isinstance(whole.get(name), dict)
            whole[name] = {**whole[name], **value} if both else value
    return files.from_text(json.dumps(whole))


def written(path: str, value: Any) -> dict[str, Any]:
    """The file's fields that give VALUE to the field PATH."""
    *above, last = path.split(".")
    found: dict[str, Any] = {last: value}
    for name in reversed(above):
        found = {name: found}
    return found


def test_every_field_has_a_meaning() -> None:
    assert [path for path, _, _ in leaves()] == list(FIELD_DOCS)


def test_every_meaning_is_put_to_the_test() -> None:
    honoured = {path for path, meaning in FIELD_DOCS.items() if not meaning.idle}
    assert honoured == EFFECTS.keys() | SHOWN_ELSEWHERE
    assert FIELD_DOCS.keys() - honoured == IDLE_VALUES.keys()


@pytest.mark.parametrize("path", EFFECTS)
def test_a_field_with_a_meaning_has_an_effect(path: str) -> None:
    value, observer, beside = EFFECTS[path]
    needed = written(path, "other") if path.startswith("detectLocal.") else {}  # one of them must be set in its mode
    before, after = read(beside, needed), read(beside, written(path, value))
    assert observer(before) != observer(after)
    assert validate.ignored(after) == []


@pytest.mark.parametrize("path", IDLE_VALUES)
def test_a_field_without_a_meaning_is_named_when_it_is_set(path: str) -> None:
    assert validate.ignored(read()) == []
    assert validate.ignored(read(written(path, IDLE_VALUES[path]))) == [path]


# ---------------------------------------------------------------- flags

NO_FIELD: dict[str, tuple[str, Callable[[settings.Request], object]]] = {
    "cleanup": ("true", attrgetter("cleanup")),
    "config": ("{config}", attrgetter("options.config_file")),
    "hand-over-at-end": ("true", attrgetter("options.hand_over_at_end")),
    "init-only": ("true", attrgetter("options.init_only")),
    "iptables-backend": ("legacy", attrgetter("options.iptables_backend")),
    "manifests": ("{folder}", attrgetter("options.manifests")),
    "master": ("http://10.0.0.1", attrgetter("options.master")),
    "version": ("true", attrgetter("version")),
    "write-config-to": ("/tmp/x", attrgetter("write_config_to")),
    "boot-id-file": ("/x", attrgetter("options.warnings")),
    "machine-id-file": ("/x", attrgetter("options.warnings")),
}


def wish(*arguments: str) -> settings.Request:
    command = pflags.PflagCommand("run", params=pflags.options())
    with command.make_context("kube-proxy", list(arguments)) as context:
        return settings.read({flag.name: context.params[flag.name.replace("-", "_")] for flag in flags.FLAGS})


def test_every_flag_of_kube_proxy_sets_a_field_or_is_in_the_table() -> None:
    assert flags.BY_NAME.keys() >= set(KUBE_PROXYS) - {"help"}
    assert {flag.name for flag in flags.FLAGS if not flag.field} == NO_FIELD.keys()


def test_a_flag_sets_a_field_that_has_a_meaning() -> None:
    paths = {attributes: path for path, attributes, _ in leaves()}
    for flag in flags.FLAGS:
        if flag.field:
            says_nothing = "No effect" in flag.help
            assert says_nothing == FIELD_DOCS[paths[flag.field]].idle, flag.name


@pytest.mark.parametrize("name", NO_FIELD)
def test_a_flag_without_a_field_has_its_effect(name: str, tmp_path: Path) -> None:
    text, observer = NO_FIELD[name]
    (tmp_path / "config.conf").write_text(json.dumps(HEADER))
    text = text.format(config=tmp_path / "config.conf", folder=tmp_path)
    assert observer(wish()) != observer(wish(f"--{name}={text}"))


def test_the_reference_is_up_to_date() -> None:
    """If not: python -m kproxy.cli.reference > docs/configuration.md"""
    assert (ROOT / "docs" / "configuration.md").read_text() == reference.page()
