"""Every flag of kube-proxy 1.36, in every spelling that Go's pflag takes."""

from __future__ import annotations

from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.cli import flags, pflags, settings
from kproxy.cli.flags import BY_NAME
from kproxy.config import files
from kproxy.config.durations import SECOND, parse
from kproxy.config.fields import DetectLocalMode, LoggingFormat, ProxyMode, VModule
from kproxy.errors import InvalidConfig

TABLE = Path(__file__).parent.parent / "config" / "kube-proxy-flags.tsv"
KUBE_PROXYS = [row for row in (line.split("\t") for line in TABLE.read_text().splitlines()) if row[0] != "help"]
OURS = {
    "emulate-version",
    "manifests",
    "hand-over-at-end",
    "iptables-backend",
    "proxy-port-range",
    "userspace-drain-timeout",
    "userspace-udp-idle-timeout",
}


def texts(*args: str) -> dict[str, tuple[str, ...]]:
    """Return the texts that click parses, by the names of the flags."""
    command = pflags.PflagCommand("run", params=pflags.options())
    with command.make_context("kube-proxy", list(args)) as context:
        return {name: context.params[name.replace("-", "_")] for name in BY_NAME}


def unknown(*args: str) -> tuple[str, ...]:
    """Return the lines about unknown flags."""
    command = pflags.PflagCommand("run", params=pflags.options())
    with command.make_context("kube-proxy", list(args)) as context:
        return pflags.unknown_flags(context)


def read(*args: str) -> settings.Request:
    return settings.read(texts(*args))


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize(("name", "kind", "default"), KUBE_PROXYS, ids=[row[0] for row in KUBE_PROXYS])
def test_each_flag_of_kube_proxy_is_taken(name: str, kind: str, default: str) -> None:
    flag = BY_NAME[name]
    assert flag.default == default.strip('"')
    # kube-proxy takes any text here and refuses all but two of them later.
    assert flag.type == ("format" if name == "logging-format" else kind)


def test_there_are_no_other_flags_than_kube_proxys_and_ours() -> None:
    assert BY_NAME.keys() == {row[0] for row in KUBE_PROXYS} | OURS


@pytest.mark.parametrize("flag", [f for f in flags.FLAGS if f.field], ids=attrgetter("name"))
def test_a_flags_default_is_its_fields_default(flag: flags.Flag) -> None:
    mode = ProxyMode.IPVS if flag.name.startswith("ipvs-") else ProxyMode.IPTABLES
    value = attrgetter(".".join(flag.field))(read(f"--proxy-mode={mode}").options.config)
    if flag.default:
        assert str(value).lower() == flag.default or float(value) == float(flag.default)
    else:
        assert not value or str(value) in ("0", "iptables", "ClusterCIDR")


SET = {
    "bind-address": ("10.0.0.7", "10.0.0.7"),
    "bind-address-hard-fail": ("true", True),
    "cluster-cidr": ("10.0.0.0/8,fd00::/64", "10.0.0.0/8,fd00::/64"),
    "config-sync-period": ("1m", parse("1m")),
    "conntrack-max-per-core": ("0", 0),
    "conntrack-min": ("0x10", 16),
    "conntrack-tcp-be-liberal": ("T", True),
    "conntrack-tcp-timeout-close-wait": ("1s", SECOND),
    "conntrack-tcp-timeout-established": ("0", 0),
    "conntrack-udp-timeout": ("2s", 2 * SECOND),
    "conntrack-udp-timeout-stream": ("3s", 3 * SECOND),
    "detect-local-mode": ("NodeCIDR", DetectLocalMode.NODE_CIDR),
    "emulate-version": ("v1.36.2", 36),
    "feature-gates": ("AllAlpha=true,AllBeta=false", {"AllAlpha": True, "AllBeta": False}),
    "healthz-bind-address": ("10.0.0.7", "10.0.0.7:10256"),
    "hostname-override": ("Node-1", "Node-1"),
    "iptables-localhost-nodeports": ("false", False),
    "iptables-masquerade-bit": ("0", 0),
    "iptables-min-sync-period": ("0", 0),
    "iptables-sync-period": ("1h", parse("1h")),
    "ipvs-exclude-cidrs": ("10.0.0.0/8,fd00::/64", ("10.0.0.0/8", "fd00::/64")),
    "ipvs-min-sync-period": ("0s", 0),
    "ipvs-scheduler": ("mh", "mh"),
    "ipvs-strict-arp": ("1", True),
    "ipvs-sync-period": ("5s", 5 * SECOND),
    "ipvs-tcp-timeout": ("1s", SECOND),
    "ipvs-tcpfin-timeout": ("2s", 2 * SECOND),
    "ipvs-udp-timeout": ("3s", 3 * SECOND),
    "kube-api-burst": ("50", 50),
    "kube-api-content-type": ("application/json", "application/json"),
    "kube-api-qps": ("2.5", 2.5),
    "kubeconfig": ("/etc/k", "/etc/k"),
    "log-flush-frequency": ("1s", SECOND),
    "log-json-info-buffer-size": ("64Ki", "64Ki"),
    "log-json-split-stream": ("true", True),
    "log-text-info-buffer-size": ("1M", "1M"),
    "log-text-split-stream": ("true", True),
    "logging-format": ("json", LoggingFormat.JSON),
    "masquerade-all": ("true", True),
    "metrics-bind-address": ("", ""),
    "nodeport-addresses": ("primary", ("primary",)),
    "oom-score-adj": ("-1000", -1000),
    "pod-bridge-interface": ("cbr0", "cbr0"),
    "pod-interface-name-prefix": ("veth", "veth"),
    "profiling": ("true", True),
    "proxy-mode": ("nftables", ProxyMode.NFTABLES),
    "proxy-port-range": ("6000-6100", "6000-6100"),
    "show-hidden-metrics-for-version": ("1.35", "1.35"),
    "userspace-drain-timeout": ("0s", 0),
    "userspace-udp-idle-timeout": ("5s", 5 * SECOND),
    "v": ("4", 4),
    "vmodule": ("sync=4,source=2", (VModule("sync", 4), VModule("source", 2))),
}
BARE = {"bool", "version[=true]"}


def test_every_flag_with_a_field_is_in_the_table_below() -> None:
    assert SET.keys() == {flag.name for flag in flags.FLAGS if flag.field}


@pytest.mark.parametrize("name", SET)
def test_each_flag_sets_its_field_and_no_other(name: str) -> None:
    text, value = SET[name]
    # Elsewhere these have no effect.
    modes = {"ipvs": "ipvs", "proxy": "userspace"} if name != "proxy-mode" else {}
    mode = [f"--proxy-mode={modes[first]}"] if (first := name.split("-")[0]) in modes else []
    expected = attrgetter(".".join(BY_NAME[name].field))
    before, after = read(*mode).options.config, read(*mode, f"--{name}={text}").options.config
    assert expected(after) == value
    assert expected(before) != value
    if name != "proxy-mode":  # which brings the sync periods of its mode
        assert len(changed(files.to_values(before), files.to_values(after))) == 1


def changed(a: Any, b: Any, path: str = "") -> set[str]:
    if isinstance(a, dict) and isinstance(b, dict) and path not in ("featureGates",):
        return {p for k in {*a, *b} for p in changed(a.get(k), b.get(k), f"{path}.{k}".lstrip("."))}
    return {path} if a != b else set()


@pytest.mark.parametrize("name", [n for n in SET if BY_NAME[n].type not in BARE])
def test_a_value_may_follow_as_a_word_of_its_own(name: str) -> None:
    text, _ = SET[name]
    assert texts(f"--{name}", text)[name] == texts(f"--{name}={text}")[name] == (text,)


@pytest.mark.parametrize("name", [f.name for f in flags.FLAGS if f.type in BARE])
def test_a_switch_needs_no_value_and_takes_one_only_behind_an_equals_sign(name: str) -> None:
    assert texts(f"--{name}")[name] == ("true",)
    assert texts(f"--{name}=false")[name] == ("false",)
    with pytest.raises(click.UsageError, match="false"):
        texts(f"--{name}", "false")


SPELLINGS = [
    (["-v2"], "v", "2"),
    (["-v=2"], "v", "2"),
    (["-v", "2"], "v", "2"),
    (["--v=2"], "v", "2"),
    (["--v", "2"], "v", "2"),
    (["--proxy_mode=ipvs"], "proxy-mode", "ipvs"),
    (["--proxy_mode", "ipvs"], "proxy-mode", "ipvs"),
    (["--oom-score-adj", "-5"], "oom-score-adj", "-5"),
    (["--master", "--looks-like-a-flag"], "master", "--looks-like-a-flag"),
    (["--hostname-override="], "hostname-override", ""),
    (["--cluster-cidr=a=b"], "cluster-cidr", "a=b"),
]


@pytest.mark.parametrize(("args", "name", "text"), SPELLINGS, ids=[" ".join(a) for a, _, _ in SPELLINGS])
def test_pflags_other_spellings(args: list[str], name: str, text: str) -> None:
    assert texts(*args)[name] == (text,)


REFUSED_BY_CLICK = [
    (["word"], "word"),
    (["--config"], "--config"),
    (["-v"], "-v"),
    (["--", "--v=2"], "--v=2"),
]


@pytest.mark.parametrize(("args", "named"), REFUSED_BY_CLICK, ids=[" ".join(a) for a, _ in REFUSED_BY_CLICK])
def test_words_and_flags_without_their_value_are_refused(args: list[str], named: str) -> None:
    with pytest.raises(click.UsageError, match=named):
        texts(*args)


UNKNOWN = [
    (["--no-such-flag", "value", "--v=2"], ["'--no-such-flag'."]),
    (["--no_such=a", "--no_such=b"], ["'--no_such'."]),
    (["-x"], ["'-x'."]),
    (["-x=3", "-yz"], ["'-x'.", "'-y'."]),
    (["--="], ["'--'. Did you mean '--v'?"]),
    (["--cleanups"], ["'--cleanups'. Did you mean '--cleanup'?"]),
    (["--master", "--looks-like-a-flag", "-v", "-3"], []),
]


@pytest.mark.parametrize(("args", "expected"), UNKNOWN, ids=[" ".join(a) for a, _ in UNKNOWN])
def test_every_unknown_flag_is_reported_once(args: list[str], expected: list[str]) -> None:
    assert [line.removeprefix("No such option ") for line in unknown(*args)] == expected


def test_a_word_after_a_known_flag_is_nobodys_value() -> None:
    with pytest.raises(click.UsageError, match="word"):
        unknown("--no-such-flag=1", "--cleanup", "word")


@given(
    st.lists(
        st.sampled_from(["--v", "-v", "--", "--config", "--cleanup", "=", "2", "--x=1", "-", ""]) | st.text(max_size=5)
    )
)
def test_no_arguments_raise_anything_but_a_usage_error(args: list[str]) -> None:
    found: dict[str, tuple[str, ...]] | None = None
    with suppress(click.UsageError, click.exceptions.Exit):
        found = texts(*args)
    assert found is None or found.keys() == BY_NAME.keys()


# ---------------------------------------------------------------- values


WRONG = [
    ("bind-address=x", 'must be an IP address, is "x"'),
    ("bind-address-hard-fail=yes", 'must be true or false, is "yes"'),
    ("cluster-cidr=10.0.0.0", 'must be a CIDR such as 10.0.0.0/8 or fd00::/64, is "10.0.0.0"'),
    ("config-sync-period=0", "must be greater than 0, is 0s"),
    ("conntrack-min=many", 'must be a whole number, is "many"'),
    ("conntrack-min=4294967296", 'must be a 32-bit whole number, is "4294967296"'),
    ("conntrack-max-per-core=-1", "must not be negative, is -1"),
    ("conntrack-udp-timeout=5", 'needs a unit, as in "30s", is "5"'),
    ("conntrack-udp-timeout=-5s", "must not be negative, is -5s"),
    ("detect-local-mode=pods",
     'must be one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix, is "pods"'),
    ("feature-gates=A", 'must be comma separated name=value pairs, is "A"'),
    ("feature-gates=A=maybe", 'must be true or false, is "A=maybe"'),
    ("healthz-bind-address=:1",
     'must be IP:port, such as "0.0.0.0:10256" or "[::]:10256", is ":1"'),
    ("hostname-override=  ", "must not be blank"),
    ("iptables-masquerade-bit=32", "must be from 0 to 31, is 32"),
    ("iptables-sync-period=0", "must be greater than 0, is 0s"),
    ("iptables-min-sync-period=1m", "must not be longer than iptables.syncPeriod (30s), is 1m0s"),
    ("iptables-backend=ebtables", 'must be one of auto, nft, legacy, is "ebtables"'),
    ("emulate-version=1.34", 'must be 1.35 or newer, is "1.34"'),
    ("feature-gates=KubeProxyIPV=true", "KubeProxyIPV: unrecognized feature gate (is KubeProxyIPVS meant?)"),
    ("feature-gates=KubeProxyIPVS=yes", 'must be true or false, is "KubeProxyIPVS=yes"'),
    ("proxy-mode=ipvs --feature-gates=KubeProxyIPVS=false",
     'must not be "ipvs" while the feature gate KubeProxyIPVS is off'),
    ("ipvs-tcp-timeout=-1s --proxy-mode=ipvs", "must not be negative, is -1s"),
    ('ipvs-exclude-cidrs="10.0.0.0/8', 'must be a comma separated list, is ""10.0.0.0/8"'),
    ("kube-api-qps=fast", 'must be a number, is "fast"'),
    ("kube-api-qps=nan", 'must be a finite number, is "nan"'),
    ("kube-api-burst=-1", "must not be negative, is -1"),
    ("log-json-info-buffer-size=big", 'must be a quantity such as 0, 64Ki or 1M, is "big"'),
    ("logging-format=xml", 'must be one of text, json, is "xml"'),
    ("manifests=/no/such/folder", "/no/such/folder: no such folder"),
    ("oom-score-adj=2000", "must be from -1000 to 1000, is 2000"),
    ("pod-bridge-interface=a b --detect-local-mode=BridgeInterface", 'must be the name of an interface, is "a b"'),
    ("proxy-mode=kernelspace", 'must be one of iptables, ipvs, nftables, userspace, is "kernelspace"'),
    ("v=-1", 'must not be negative, is "-1"'),
    ("vmodule=sync", 'must be comma separated name=value pairs, is "sync"'),
    ("vmodule=sync=x", 'must be a whole number, is "sync=x"'),
    ("version=maybe", 'must be true or false, is "maybe"'),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "reason"), WRONG, ids=[a for a, _ in WRONG])
def test_a_wrong_value_is_reported_with_the_flags_name(argument: str, reason: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        read(*f"--{argument}".replace(" --", "\n--").split("\n"))
    assert caught.value.problems == (f"--{argument.split('=')[0]}: {reason}",)


def test_an_item_of_a_list_is_reported_with_its_index() -> None:
    with pytest.raises(InvalidConfig, match=r"^--nodeport-addresses\[1\]: must be"):
        read("--nodeport-addresses=10.0.0.0/8,x")


def reported(*args: str) -> list[str]:
    """Return the flag or the file of each problem."""
    with pytest.raises(InvalidConfig) as caught:
        read(*args)
    return [problem.split(": ")[0] for problem in caught.value.problems]


def test_all_wrong_flags_are_reported_at_once() -> None:
    wrong = ("proxy-mode=x", "v=x", "conntrack-min=x", "bind-address=x", "cluster-cidr=x", "oom-score-adj=2000")
    assert sorted(reported(*(f"--{flag}" for flag in wrong))) == sorted(f"--{flag.split('=')[0]}" for flag in wrong)


def test_wrong_flags_and_a_wrong_file_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text(HEADER + "mode: ebpf\nclusterCIDR: x\n")
    assert reported("--v=x", f"--config={path}", "--iptables-backend=x") == [
        "--v",
        "--iptables-backend",
        *[str(path)] * 2,
    ]


def test_a_wrong_value_that_the_mode_does_not_use_is_a_warning() -> None:
    assert any(
        line.startswith("ignored: --ipvs-tcp-timeout: must not be negative")
        and line.endswith("; mode iptables does not use it")
        for line in read("--ipvs-tcp-timeout=-1s").options.warnings
    )


REPEATED = [
    (["--nodeport-addresses=10.0.0.0/8,11.0.0.0/8", "--nodeport-addresses", "fd00::/8"],
     "node_port_addresses", ("10.0.0.0/8", "11.0.0.0/8", "fd00::/8")),
    (["--feature-gates=AllAlpha=true,AllBeta=true", "--feature-gates=AllBeta=false"],
     "feature_gates", {"AllAlpha": True, "AllBeta": False}),
    (["--cluster-cidr=10.0.0.0/8", "--cluster-cidr=11.0.0.0/8"], "cluster_cidr", "11.0.0.0/8"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "field", "value"), REPEATED, ids=[field for _, field, _ in REPEATED])
def test_lists_are_added_up_and_of_other_flags_the_last_one_counts(args: list[str], field: str, value: object) -> None:
    assert getattr(read(*args).options.config, field) == value


def test_a_wrong_value_is_wrong_even_when_another_follows() -> None:
    with pytest.raises(InvalidConfig):
        read("--v=x", "--v=2")


@pytest.mark.parametrize("mode", ProxyMode)
def test_masquerade_all_holds_for_the_mode_in_use(mode: ProxyMode) -> None:
    config = read("--masquerade-all", f"--proxy-mode={mode}").options.config
    nftables = mode is ProxyMode.NFTABLES
    assert (config.iptables.masquerade_all, config.nftables.masquerade_all) == (not nftables, nftables)
    assert config.masquerade_all


@pytest.mark.parametrize(("mode", "seconds"), [("iptables", 7), ("nftables", 7), ("userspace", 7), ("ipvs", 9)])
def test_sync_periods_are_those_of_the_mode_in_use(mode: str, seconds: int) -> None:
    config = read("--iptables-sync-period=7s", "--ipvs-sync-period=9s", f"--proxy-mode={mode}").options.config
    assert config.sync_period == seconds * SECOND


# ---------------------------------------------------------------- with a configuration file

HEADER = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.conf"
    path.write_text(
        HEADER
        + "mode: ipvs\nclusterCIDR: 10.1.0.0/16\nhostnameOverride: from-file\n"
        + "logging: {verbosity: 1, vmodule: [{filePattern: sync, verbosity: 1}]}\n"
    )
    return path


LOSING = sorted(name for name in SET if not BY_NAME[name].kept)


@pytest.mark.parametrize("name", LOSING)
def test_the_file_wins_over_a_flag(name: str, config_file: Path) -> None:
    wish = read(f"--config={config_file}", f"--{name}={SET[name][0]}")
    assert wish.options.config == files.read(config_file)
    assert f"these flags are ignored because --config is given: --{name}" in wish.options.warnings


def test_flags_that_win_are_those_of_kube_proxy_and_the_minor() -> None:
    kept = {name for name in SET if BY_NAME[name].kept}
    assert kept == {"emulate-version", "hostname-override", "v", "vmodule"} | {
        name for name in SET if name.startswith("log")
    }


def test_these_flags_win_over_the_file(config_file: Path) -> None:
    wish = read(
        f"--config={config_file}",
        "--hostname-override= From-Flag ",
        "-v=4",
        "--logging-format=json",
        "--vmodule=source=3",
        "--cleanup",
        "--init-only",
        "--write-config-to=/tmp/out",
        "--master=https://10.0.0.1",
    )
    assert wish.options.node_name == "from-flag"
    assert wish.options.config.logging.verbosity == 4
    assert wish.options.config.logging.format is LoggingFormat.JSON
    assert wish.options.config.logging.vmodule == (VModule("source", 3), VModule("sync", 1))
    assert wish.options.master == "https://10.0.0.1"
    assert wish.options.config_file == config_file
    assert (wish.cleanup, wish.options.init_only, wish.write_config_to) == (True, True, Path("/tmp/out"))
    assert wish.options.warnings == ()


def test_an_ignored_flag_with_a_wrong_value_is_still_refused(config_file: Path) -> None:
    with pytest.raises(InvalidConfig, match="--conntrack-min"):
        read(f"--config={config_file}", "--conntrack-min=x")


# ---------------------------------------------------------------- options


def test_the_node_is_named_after_the_host_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Node-A.Example ")
    assert read().options.node_name == "node-a.example"
    assert read("--hostname-override=").options.node_name == "node-a.example"
    assert read("--hostname-override= Other ").options.node_name == "other"


def test_a_host_without_a_name_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "")
    with pytest.raises(InvalidConfig, match="hostnameOverride: must be set"):
        read()


def test_manifests_are_folders_to_follow(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    wish = read(f"--manifests={tmp_path}", "--manifests", str(tmp_path / "b"))
    assert wish.options.manifests == (tmp_path, tmp_path / "b")


def test_each_part_of_a_file_without_an_effect_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
        "foo: 1\nwinkernel: {networkName: x}\nmode: ipvs\nmode: nftables\n"
    )
    wish = read(f"--config={path}", "--masquerade-all")
    assert wish.options.config.mode is ProxyMode.NFTABLES
    assert wish.options.warnings == (
        f"ignored in {path}: line 6: the key 'mode' stands twice",
        f"ignored in {path}: foo: unknown field",
        "these flags are ignored because --config is given: --masquerade-all",
        "these settings have no meaning here and are ignored: winkernel.networkName",
    )


def test_settings_without_meaning_come_as_one_warning() -> None:
    wish = read("--profiling", "--feature-gates=AllBeta=true", "--machine-id-file=/x", "--log-json-split-stream")
    assert wish.options.warnings == (
        "these settings have no meaning here and are ignored: "
        "enableProfiling, featureGates.AllBeta, logging.options.json.splitStream, --machine-id-file",
    )
