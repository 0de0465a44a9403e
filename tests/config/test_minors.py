"""The minor version that is followed, and the feature gates by minor."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from kproxy.cli import settings
from kproxy.config import files, gates, minors, validate
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.config.minors import KubernetesMinor
from kproxy.errors import InvalidConfig
from kproxy.sync import node_events

HEADER = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
ALLOWED, IPVS, LOCALHOST = "AllowServiceExternalIPs", "KubeProxyIPVS", "KubeProxyNFTablesLocalhostNodePorts"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.35", "1.35"),
        ("v1.37.2", "1.37"),
        (" 1.38 ", "1.38"),
        ("1.41", "1.41"),
        ("1.34", "must be 1.35 or newer"),
        *((wrong, "must be a minor version") for wrong in ("", "37", "2.37", "1.37.x", "1.037", "1.370", "1.37-alpha")),
    ],
)
def test_a_minor_is_read_from_text(text: str, expected: str) -> None:
    try:
        found = str(minors.parse(text))
    except ValueError as error:
        found = str(error)
    assert found.startswith(expected)


@pytest.mark.parametrize("value", ["1.36", "'1.36'", "v1.36.2"])
def test_a_file_names_the_minor_and_the_caller_overrides_it(value: str) -> None:
    config = files.from_text(f"{HEADER}emulateVersion: {value}\n")
    assert (config.emulate_version, files.to_values(config)["emulateVersion"]) == (36, "1.36")
    assert files.from_text(files.to_yaml(config)) == config
    assert files.from_text(f"{HEADER}emulateVersion: {value}\n", KubernetesMinor(38)).emulate_version == 38
    assert "emulateVersion" not in files.to_values(files.from_text(HEADER))


# ---------------------------------------------------------------- gates

STATES = [
    # gates given, the gate, the minors of 1.35 to 1.40 in which it is on
    ({}, LOCALHOST, "38 39 40"),
    ({"AllAlpha": True}, LOCALHOST, "37 38 39 40"),
    ({"AllBeta": True}, LOCALHOST, "38 39 40"),
    ({"AllBeta": False}, LOCALHOST, ""),
    ({"AllBeta": False, LOCALHOST: True}, LOCALHOST, "35 36 37 38 39 40"),
    ({"AllAlpha": True, LOCALHOST: False}, LOCALHOST, ""),
    ({}, IPVS, "35 36 37 38 39 40"),
    ({"AllAlpha": False, "AllBeta": False}, IPVS, "35 36 37 38 39 40"),
    ({IPVS: False}, IPVS, ""),
    ({}, ALLOWED, "35 36 37 38 39 40"),
    ({ALLOWED: False}, ALLOWED, ""),
]


@pytest.mark.parametrize(("given", "gate", "on_in"), STATES)
def test_gates_are_on_by_their_stage_in_the_minor(given: dict[str, bool], gate: str, on_in: str) -> None:
    found = [
        m
        for m in range(35, 41)
        if KubeProxyConfiguration(feature_gates=given, emulate_version=KubernetesMinor(m)).gate_enabled(gate)
    ]
    assert found == [int(minor) for minor in on_in.split()]


def gate_problems(gate: str, minor: int) -> str:
    """The problem of GATE, written name=value, in a file; then what is said of it as a warning."""
    name, _, value = gate.partition("=")
    config = KubeProxyConfiguration(
        feature_gates={name: value == "true"}, emulate_version=KubernetesMinor(minor), mode=ProxyMode.IPTABLES
    )
    wrong = [reason for field, reason in validate.problems(config) if field == f"featureGates.{name}"]
    harmless = [f"(ignored) {reason}" for field, reason in validate.passed_over(config) if field.startswith("feature")]
    return "; ".join(wrong + harmless)


GATES = [
    # of any minor from 1.30 on, whichever is followed
    ("SkipReadOnlyValidationGCE=true", 38, ""),
    ("WorkloadControlledSwap=true", 35, ""),
    ("NFTablesNetlink=false", 36, ""),
    # locked in the minor that is followed, or in the last that knew it
    ("HPAConfigurableTolerance=false", 36, ""),
    ("HPAConfigurableTolerance=false", 37, "cannot be set to false, the feature is locked to true"),
    ("AllowOverwriteTerminationGracePeriodSeconds=true", 35, "cannot be set to true, the feature is locked to false"),
    ("CloudDualStackNodeIPs=false", 37, "cannot be set to false, the feature is locked to true"),
    ("NFTablesProxyMode=true", 37, ""),
    # unknown
    ("Nope=true", 37, "unrecognized feature gate"),
    ("KubeProxyIPV=true", 38, "unrecognized feature gate (is KubeProxyIPVS meant?)"),
    ("nftablesproxymode=true", 37, "unrecognized feature gate (is NFTablesProxyMode meant?)"),
    ("Nope=true", 39, "(ignored) unrecognized feature gate; the gates of Kubernetes 1.38 and older are known"),
    ("NFTablesProxyMode=false", 39, "cannot be set to false, the feature is locked to true"),
]


@pytest.mark.parametrize(("gate", "minor", "expected"), GATES)
def test_a_gate_that_any_minor_knows_is_accepted(gate: str, minor: int, expected: str) -> None:
    assert gate_problems(gate, minor) == expected


def test_a_minor_that_is_not_known_is_a_warning() -> None:
    flags = {"emulate-version": ["1.39"], "feature-gates": ["Nope=true"]}
    assert settings.read(flags).options.warnings == (
        "ignored: --feature-gates: Nope: unrecognized feature gate; the gates of Kubernetes 1.38 and older are known",
        "Kubernetes 1.39 is not known here: 1.38 is followed",
    )


def test_the_table_of_gates_is_consistent() -> None:
    for name, gate in gates.GATES.items():
        assert 30 <= gate.first <= gate.last <= minors.NEWEST, name
        assert gate.locked is None or gate.first <= gate.locked_since <= gate.last, name
    assert gates.EFFECTIVE.keys() <= gates.GATES.keys()


@pytest.mark.parametrize("mode", list(ProxyMode))
@pytest.mark.parametrize("on", [True, False])
def test_only_ipvs_mode_needs_its_gate(mode: ProxyMode, on: bool) -> None:
    text = f"{HEADER}mode: {mode}\nfeatureGates: {{KubeProxyIPVS: {str(on).lower()}}}\n"
    if mode is ProxyMode.IPVS and not on:
        with pytest.raises(InvalidConfig, match='must not be "ipvs" while the feature gate KubeProxyIPVS is off'):
            files.from_text(text)
    else:
        assert files.from_text(text).mode is mode


EVENTS = [
    # mode, whether it is given, minor, reasons
    (ProxyMode.IPTABLES, True, 37, []),
    (ProxyMode.IPTABLES, False, 36, []),
    (ProxyMode.IPTABLES, False, 37, ["ProxyModeUnset"]),
    (ProxyMode.IPTABLES, False, 39, ["ProxyModeUnset"]),
    (ProxyMode.NFTABLES, True, 38, []),
    (ProxyMode.IPVS, True, 35, ["IPVSDeprecation"]),
    (ProxyMode.IPVS, True, 38, ["IPVSDeprecation"]),
]


@pytest.mark.parametrize(("mode", "given", "minor", "reasons"), EVENTS)
def test_a_start_warns_of_its_mode_as_the_minor_does(
    mode: ProxyMode, given: bool, minor: int, reasons: list[str]
) -> None:
    config = KubeProxyConfiguration(mode=mode, emulate_version=KubernetesMinor(minor))
    found = list(node_events.mode_warnings("node1", config, given))
    assert [notice.reason for notice in found] == reasons
    assert {(n.kind, n.name, n.action, n.type) for n in found} <= {("Node", "node1", "StartKubeProxy", "Warning")}


@pytest.mark.parametrize(
    ("file", "flags", "given"),
    [
        (None, {}, False),
        (None, {"proxy-mode": [""]}, False),
        (None, {"proxy-mode": ["iptables"]}, True),
        ("", {}, False),
        ("mode: ''\n", {}, False),
        ("mode: null\n", {"proxy-mode": ["nftables"]}, False),
        ("mode: iptables\n", {}, True),
    ],
)
def test_the_mode_is_given_by_what_decides_it(
    tmp_path: Path, file: str | None, flags: dict[str, list[str]], given: bool
) -> None:
    if file is not None:
        (tmp_path / "config.yaml").write_text(HEADER + file)
        flags = flags | {"config": [str(tmp_path / "config.yaml")]}
    assert settings.read(flags).options.mode_given is given


# ---------------------------------------------------------------- nodePortAddresses

WORDS = ("primary", "localhost", "all", "10.0.0.0/8", "010.0.0.0/8", "fd00::/64")


def test_keywords_and_cidrs_go_together_from_1_37_on() -> None:
    for size, minor in itertools.product(range(4), range(35, 39)):
        for words in itertools.combinations(WORDS, size):
            valid = minor >= 37 or words == ("primary",) or not {"primary", "localhost", "all"} & set(words)
            config = KubeProxyConfiguration(node_port_addresses=words, emulate_version=KubernetesMinor(minor))
            wrong = [field for field, _ in validate.problems(config) if field.startswith("nodePortAddresses")]
            assert bool(wrong) is not valid, (minor, words)
