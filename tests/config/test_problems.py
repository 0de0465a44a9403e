"""Bad configuration files: every problem at once, each by the field's full path."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.config import files
from kproxy.errors import InvalidConfig

HEADER = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def problems(text: str, header: str = HEADER) -> tuple[str, ...]:
    with pytest.raises(InvalidConfig) as caught:
        files.from_text(header + text)
    return caught.value.problems


ONE = [
    # types
    ("iptables: {masqueradeAll: 'true'}", 'iptables.masqueradeAll: must be true or false, is "true"'),
    ("iptables: {masqueradeBit: '14'}", 'iptables.masqueradeBit: must be a 32-bit whole number, is "14"'),
    ("iptables: {masqueradeBit: true}", "iptables.masqueradeBit: must be a 32-bit whole number, is true"),
    ("conntrack: {min: 4294967296}", "conntrack.min: must be a 32-bit whole number, is 4294967296"),
    ("clusterCIDR: [10.0.0.0/8]", "clusterCIDR: must be text, is a list"),
    ("hostnameOverride: 7", "hostnameOverride: must be text, is 7"),
    ("clientConnection: {qps: fast}", 'clientConnection.qps: must be a number, is "fast"'),
    ("nodePortAddresses: 10.0.0.0/8", 'nodePortAddresses: must be a list, is "10.0.0.0/8"'),
    ("nodePortAddresses: [10.0.0.0/8, 7]", "nodePortAddresses[1]: must be text, is 7"),
    ("ipvs: []", "ipvs: must be a mapping, is a list"),
    ("featureGates: [a]", "featureGates: must be a mapping, is a list"),
    ("featureGates: {AllAlpha: 'yes', AllBeta: true}", 'featureGates.AllAlpha: must be true or false, is "yes"'),
    ("featureGates: {NoSuchGate: true}", "featureGates.NoSuchGate: unrecognized feature gate"),
    ("featureGates: {nftablesProxyMode: true}",
     "featureGates.nftablesProxyMode: unrecognized feature gate (is NFTablesProxyMode meant?)"),
    ("featureGates: {NFTablesProxyMode: false}",
     "featureGates.NFTablesProxyMode: cannot be set to false, the feature is locked to true"),
    ("featureGates: {AllowServiceLBStatusOnNonLB: true}",
     "featureGates.AllowServiceLBStatusOnNonLB: cannot be set to true, the feature is locked to false"),
    ("showHiddenMetricsForVersion: '1.30'",
     'showHiddenMetricsForVersion: must be "1.36", the version before, is "1.30"'),
    ("logging: {options: {json: {infoBufferSize: 1.5}}}",
     "logging.options.json.infoBufferSize: must be text or a whole number, is 1.5"),
    ("logging: {options: {text: {infoBufferSize: much}}}",
     'logging.options.text.infoBufferSize: must be a quantity such as 0, 64Ki or 1M, is "much"'),
    # durations
    ("iptables: {syncPeriod: 30}", 'iptables.syncPeriod: must be text with a unit, such as "30s", is 30'),
    ("configSyncPeriod: 0", 'configSyncPeriod: must be text with a unit, such as "30s", is 0'),
    ("iptables: {syncPeriod: '30'}", 'iptables.syncPeriod: needs a unit, as in "30s", is "30"'),
    ("ipvs: {udpTimeout: 1 day}",
     "ipvs.udpTimeout: has the unknown unit ' day'; units are ns, us, ms, s, m, h, is \"1 day\""),
    ("iptables: {syncPeriod: -1s}", "iptables.syncPeriod: must be greater than 0, is -1s"),
    ("iptables: {minSyncPeriod: -1s}", "iptables.minSyncPeriod: must not be negative, is -1s"),
    ("mode: nftables\nnftables: {syncPeriod: -1s}", "nftables.syncPeriod: must be greater than 0, is -1s"),
    ("iptables: {syncPeriod: 1s, minSyncPeriod: 2s}",
     "iptables.minSyncPeriod: must not be longer than iptables.syncPeriod (1s), is 2s"),
    ("mode: ipvs\nipvs: {syncPeriod: 1s, minSyncPeriod: 2s}",
     "ipvs.minSyncPeriod: must not be longer than ipvs.syncPeriod (1s), is 2s"),
    ("configSyncPeriod: -1s", "configSyncPeriod: must be greater than 0, is -1s"),
    ("conntrack: {tcpCloseWaitTimeout: -1s}", "conntrack.tcpCloseWaitTimeout: must not be negative, is -1s"),
    ("conntrack: {tcpEstablishedTimeout: -1s}", "conntrack.tcpEstablishedTimeout: must not be negative, is -1s"),
    ("conntrack: {udpTimeout: -1s}", "conntrack.udpTimeout: must not be negative, is -1s"),
    ("conntrack: {udpStreamTimeout: -1s}", "conntrack.udpStreamTimeout: must not be negative, is -1s"),
    ("mode: ipvs\nipvs: {tcpTimeout: -1s}", "ipvs.tcpTimeout: must not be negative, is -1s"),
    ("mode: ipvs\nipvs: {tcpFinTimeout: -1s}", "ipvs.tcpFinTimeout: must not be negative, is -1s"),
    ("logging: {flushFrequency: -1s}", "logging.flushFrequency: must not be negative, is -1s"),
    ("logging: {flushFrequency: -1}", "logging.flushFrequency: must not be negative, is -1ns"),
    ("logging: {flushFrequency: true}",
     'logging.flushFrequency: must be text with a unit, such as "30s", is true'),
    # words
    ("mode: ebpf", 'mode: must be one of iptables, ipvs, nftables, userspace, is "ebpf"'),
    ("mode: kernelspace", 'mode: must be one of iptables, ipvs, nftables, userspace, is "kernelspace"'),
    ("logging: {format: xml}", 'logging.format: must be one of text, json, is "xml"'),
    ("detectLocalMode: Pods",
     'detectLocalMode: must be one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix, is "Pods"'),
    # CIDRs
    ("clusterCIDR: 10.0.0.0", 'clusterCIDR: must be a CIDR such as 10.0.0.0/8 or fd00::/64, is "10.0.0.0"'),
    ("clusterCIDR: 10.0.0.0/33", 'clusterCIDR: must be a CIDR such as 10.0.0.0/8 or fd00::/64, is "10.0.0.0/33"'),
    ("clusterCIDR: 10.0.0.0/255.0.0.0",
     'clusterCIDR: must be a CIDR such as 10.0.0.0/8 or fd00::/64, is "10.0.0.0/255.0.0.0"'),
    ("clusterCIDR: '10.0.0.0/8, fd00::/16'",
     'clusterCIDR: must be a CIDR such as 10.0.0.0/8 or fd00::/64, is " fd00::/16"'),
    ("clusterCIDR: fe80::%eth0/64", 'clusterCIDR: must be a CIDR such as 10.0.0.0/8 or fd00::/64, is "fe80::%eth0/64"'),
    ("clusterCIDR: '10.0.0.0/8,'", 'clusterCIDR: must be a CIDR such as 10.0.0.0/8 or fd00::/64, is ""'),
    ("clusterCIDR: 10.0.0.0/16,10.1.0.0/16",
     "clusterCIDR: must be one CIDR, or one of IPv4 and one of IPv6 (10.244.0.0/16,fd00:244::/48), "
     'is "10.0.0.0/16,10.1.0.0/16"'),
    ("clusterCIDR: 10.0.0.0/16,fd00::/48,fd01::/48",
     "clusterCIDR: must be one CIDR, or one of IPv4 and one of IPv6 (10.244.0.0/16,fd00:244::/48), "
     'is "10.0.0.0/16,fd00::/48,fd01::/48"'),
    ("nodePortAddresses: [10.0.0.1]",
     'nodePortAddresses[0]: must be "primary", "localhost", "all" or a CIDR such as 10.0.0.0/8 or fd00::/64, '
     'is "10.0.0.1"'),
    ("nodePortAddresses: [Primary]",
     'nodePortAddresses[0]: must be "primary", "localhost", "all" or a CIDR such as 10.0.0.0/8 or fd00::/64, '
     'is "Primary"'),
    ("emulateVersion: 1.36\nnodePortAddresses: [primary, 10.0.0.0/8]",
     'nodePortAddresses: must hold nothing else when it holds primary, in 1.36, is "primary, 10.0.0.0/8"'),
    ("emulateVersion: 1.36\nnodePortAddresses: [all]",
     'nodePortAddresses[0]: must be "primary" or a CIDR such as 10.0.0.0/8 or fd00::/64, is "all"'),
    ("emulateVersion: '1.34'", 'emulateVersion: must be 1.35 or newer, is "1.34"'),
    ("emulateVersion: 1.40", "emulateVersion: must be 1.35 or newer, is 1.4; write it in quotes"),
    ("emulateVersion: newest",
     'emulateVersion: must be a minor version of Kubernetes such as "1.37", is "newest"'),
    ("mode: ipvs\nipvs: {excludeCIDRs: [10.0.0.0/8, x]}",
     'ipvs.excludeCIDRs[1]: must be a CIDR such as 10.0.0.0/8 or fd00::/64, is "x"'),
    # ranges
    ("iptables: {masqueradeBit: 32}", "iptables.masqueradeBit: must be from 0 to 31, is 32"),
    ("iptables: {masqueradeBit: -1}", "iptables.masqueradeBit: must be from 0 to 31, is -1"),
    ("mode: nftables\nnftables: {masqueradeBit: 32}", "nftables.masqueradeBit: must be from 0 to 31, is 32"),
    ("oomScoreAdj: -1001", "oomScoreAdj: must be from -1000 to 1000, is -1001"),
    ("oomScoreAdj: 1001", "oomScoreAdj: must be from -1000 to 1000, is 1001"),
    ("conntrack: {maxPerCore: -1}", "conntrack.maxPerCore: must not be negative, is -1"),
    ("conntrack: {min: -1}", "conntrack.min: must not be negative, is -1"),
    ("clientConnection: {burst: -1}", "clientConnection.burst: must not be negative, is -1"),
    ("clientConnection: {qps: .inf}", "clientConnection.qps: must be a finite number, is inf"),
    ("logging: {verbosity: -1}", "logging.verbosity: must not be negative, is -1"),
    ("logging: {vmodule: [{filePattern: a, verbosity: -1}]}",
     "logging.vmodule[0].verbosity: must not be negative, is -1"),
    ("logging: {vmodule: [{verbosity: 1}]}",
     "logging.vmodule[0].filePattern: must be a name without '=', ',' or spaces, is \"\""),
    ("mode: userspace\nportRange: 3000-70000",
     'portRange: must be a range of ports such as 30000-30100, is "3000-70000"'),
    ("mode: userspace\nportRange: 200-100", 'portRange: must be a range of ports such as 30000-30100, is "200-100"'),
    ("mode: userspace\nuserspace: {udpIdleTimeout: 0s}", "userspace.udpIdleTimeout: must be greater than 0, is 0s"),
    ("mode: userspace\nuserspace: {drainTimeout: -1s}", "userspace.drainTimeout: must not be negative, is -1s"),
    ("mode: userspace\nportRange: many", 'portRange: must be a range of ports such as 30000-30100, is "many"'),
    # addresses
    ("bindAddress: node1", 'bindAddress: must be an IP address, is "node1"'),
    ("bindAddress: 1.2.3", 'bindAddress: must be an IP address, is "1.2.3"'),
    ("healthzBindAddress: ':10256'",
     'healthzBindAddress: must be IP:port, such as "0.0.0.0:10256" or "[::]:10256", is ":10256"'),
    ("healthzBindAddress: localhost:10256",
     'healthzBindAddress: must be IP:port, such as "0.0.0.0:10256" or "[::]:10256", is "localhost:10256"'),
    ("healthzBindAddress: '[1.2.3.4]:80'",
     'healthzBindAddress: must be IP:port, such as "0.0.0.0:10256" or "[::]:10256", is "[1.2.3.4]:80"'),
    ("metricsBindAddress: 0.0.0.0:0", 'metricsBindAddress: must have a port from 1 to 65535, is "0.0.0.0:0"'),
    ("metricsBindAddress: 0.0.0.0:65536", 'metricsBindAddress: must have a port from 1 to 65535, is "0.0.0.0:65536"'),
    ("metricsBindAddress: '0.0.0.0:'", 'metricsBindAddress: must have a port from 1 to 65535, is "0.0.0.0:"'),
    # local traffic
    ("detectLocalMode: BridgeInterface",
     "detectLocal.bridgeInterface: must be set, because detectLocalMode is BridgeInterface"),
    ("detectLocalMode: InterfaceNamePrefix",
     "detectLocal.interfaceNamePrefix: must be set, because detectLocalMode is InterfaceNamePrefix"),
    ("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: abcdefghijklmnop}",
     'detectLocal.bridgeInterface: must be at most 15 bytes long, is "abcdefghijklmnop"'),
    ("detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: abcdefghijklmno}",
     'detectLocal.interfaceNamePrefix: must be at most 14 bytes long, is "abcdefghijklmno"'),
    ("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: 'a b'}",
     'detectLocal.bridgeInterface: must be the name of an interface, is "a b"'),
    ("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: 'a\"-j'}",
     'detectLocal.bridgeInterface: must be the name of an interface, is "a"-j"'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), ONE, ids=[text for text, _ in ONE])
def test_one_wrong_field_is_named_with_the_reason(text: str, expected: str) -> None:
    assert problems(text) == (expected,)


def test_all_problems_come_at_once() -> None:
    found = problems(
        "mode: ebpf\n"
        "iptables: {masqueradeBit: 40, syncPeriod: 30, extra: 1}\n"
        "ipvs: {excludeCIDRs: [x, y]}\n"
        "nodePortAddresses: [x, y]\n"
        "clusterCIDR: z\n"
        "oomScoreAdj: 5000\n"
    )
    assert [p.split(": ")[0] for p in found] == [
        "mode",
        "iptables.syncPeriod",
        "iptables.masqueradeBit",
        "clusterCIDR",
        "nodePortAddresses[0]",
        "nodePortAddresses[1]",
        "oomScoreAdj",
        "iptables.extra",
        "ipvs.excludeCIDRs[0]",
        "ipvs.excludeCIDRs[1]",
    ]


UNKNOWN = [
    ("foo: 1", "foo: unknown field"),
    ("iptables: {masqueradeall: true}", "iptables.masqueradeall: unknown field (is masqueradeAll meant?)"),
    ("logging: {options: {text: {size: 1}}}", "logging.options.text.size: unknown field"),
    ("logging: {vmodule: [{name: a, filePattern: a}]}", "logging.vmodule[0].name: unknown field"),
    ("IPTables: {}", "IPTables: unknown field (is iptables meant?)"),
    ("mode: ipvs\nmode: iptables", "line 4: the key 'mode' stands twice"),
    ("iptables: {masqueradeBit: 1, masqueradeBit: 2}", "line 3: the key 'masqueradeBit' stands twice"),
]


@pytest.mark.parametrize(("text", "expected"), UNKNOWN, ids=[text for text, _ in UNKNOWN])
def test_what_is_unknown_or_doubled_is_told_and_passed_over(tmp_path: Path, text: str, expected: str) -> None:
    """As kube-proxy decodes v1alpha1 leniently when it fails strictly."""
    path = tmp_path / "config.conf"
    path.write_text(f"{HEADER}{text}\noomScoreAdj: -500\n")
    loaded = files.load(path)
    assert loaded.ignored == (expected,)
    assert loaded.config.oom_score_adj == -500


UNUSED = [
    ("portRange: many", "mode: userspace", "portRange", "mode iptables"),
    ("ipvs: {tcpTimeout: -1s}", "mode: ipvs", "ipvs.tcpTimeout", "mode iptables"),
    ("ipvs: {syncPeriod: 1s, minSyncPeriod: 2s}", "mode: ipvs", "ipvs.minSyncPeriod", "mode iptables"),
    ("mode: ipvs\nnftables: {syncPeriod: -1s}", "mode: nftables", "nftables.syncPeriod", "mode ipvs"),
    ("mode: ipvs\nnftables: {masqueradeBit: 32}", "mode: nftables", "nftables.masqueradeBit", "mode ipvs"),
    ("mode: nftables\niptables: {syncPeriod: -1s}", "mode: userspace", "iptables.syncPeriod", "mode nftables"),
    ("userspace: {drainTimeout: -1s}", "mode: userspace", "userspace.drainTimeout", "mode iptables"),
    ("detectLocalMode: NodeCIDR\nclusterCIDR: 10.0.0.0/16,10.1.0.0/16", "detectLocalMode: ClusterCIDR",
     "clusterCIDR", "detectLocalMode NodeCIDR"),
    ("detectLocal: {bridgeInterface: a b}", "detectLocalMode: BridgeInterface",
     "detectLocal.bridgeInterface", "detectLocalMode ClusterCIDR"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "using", "field", "because"), UNUSED, ids=[field for _, _, field, _ in UNUSED])
def test_what_is_wrong_and_not_used_is_told_and_only_an_error_once_it_is_used(
    tmp_path: Path, text: str, using: str, field: str, because: str
) -> None:
    """As kube-proxy looks only at the section of its mode: what it starts with must start kproxy."""
    path = tmp_path / "config.conf"
    path.write_text(f"{HEADER}{text}\n")
    (line,) = files.load(path).ignored
    assert line.startswith(f"{field}: must ")
    assert line.endswith(f"; {because} does not use it")
    path.write_text(f"{HEADER}{text}\n{using}\n")
    with pytest.raises(InvalidConfig) as caught:
        files.load(path)
    assert caught.value.problems[0].startswith(f"{path}: {field}: must ")


def test_the_last_of_two_values_counts() -> None:
    assert files.from_text(HEADER + "oomScoreAdj: 1\noomScoreAdj: 2\n").oom_score_adj == 2
    header = '"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"'
    assert files.from_text(f'{{{header}, "oomScoreAdj": 1, "oomScoreAdj": 2}}').oom_score_adj == 2


NO_HEADER = [
    ("", ["apiVersion: missing", "kind: missing"]),
    ("mode: iptables", ["apiVersion: missing", "kind: missing"]),
    ("kind: KubeProxyConfiguration", ["apiVersion: missing"]),
    ("apiVersion: kubeproxy.config.k8s.io/v1alpha1", ["kind: missing"]),
    ("apiVersion: kubeproxy.config.k8s.io/v1alpha2\nkind: KubeProxyConfiguration", ["apiVersion: must be"]),
    ("apiVersion: v1\nkind: ConfigMap\ndata: {}", ["apiVersion: must be", "kind: must be"]),
]


@pytest.mark.parametrize(("text", "expected"), NO_HEADER)
def test_a_file_without_api_version_and_kind_is_refused(text: str, expected: list[str]) -> None:
    found = problems(text, header="")
    assert len(found) == len(expected)
    assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True))


NOT_A_FILE = [
    ("[1, 2]", "must be a mapping with apiVersion and kind, is a list"),
    ("just words", 'must be a mapping with apiVersion and kind, is "just words"'),
    (HEADER + "mode: [", "not YAML or JSON"),
    (HEADER + "mode: \x00", "not YAML or JSON"),
    (HEADER + "? [a]\n: b\n", "not YAML or JSON"),
    (HEADER + "mode: !!python/object:os.system x\n", "not YAML or JSON"),
    (HEADER + "mode: *nowhere\n", "not YAML or JSON"),
    ("{" * 3000, "not YAML or JSON"),
    (HEADER + "mode: " + "[" * 3000 + "]" * 3000, "not YAML or JSON|mode: must be one of"),
]


@pytest.mark.parametrize(("text", "expected"), NOT_A_FILE, ids=range(len(NOT_A_FILE)))
def test_what_is_no_configuration_at_all_is_one_problem(text: str, expected: str) -> None:
    with pytest.raises(InvalidConfig, match=expected) as caught:
        files.from_text(text)
    assert len(caught.value.problems) == 1


def test_problems_of_a_file_begin_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text(HEADER + "mode: 1\nfoo: 2\n")
    with pytest.raises(InvalidConfig) as caught:
        files.read(path)
    assert caught.value.problems == (
        f"{path}: mode: must be one of iptables, ipvs, nftables, userspace, is 1",
        f"{path}: foo: unknown field",
    )


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file or directory"), (b"\xff\xfe", "not UTF-8 text")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "config.conf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidConfig) as caught:
        files.read(path)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{path}: {reason}")


FIELDS = st.sampled_from(
    [
        "mode",
        "iptables",
        "ipvs",
        "logging",
        "clusterCIDR",
        "nodePortAddresses",
        "conntrack",
        "featureGates",
        "bindAddress",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(FIELDS | st.text(max_size=5), VALUES, max_size=4))
def test_no_values_raise_anything_but_problems(values: dict[str, object]) -> None:
    from kproxy.config import decode, defaults, validate

    whole = {**values, "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
    config, found = decode.decode(whole)
    config = defaults.complete(config, frozenset(whole))
    for problem in (*found, *(f"{field}: {reason}" for field, reason in validate.problems(config))):
        assert ": " in problem
