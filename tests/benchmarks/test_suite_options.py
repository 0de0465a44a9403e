"""What the suite's command line takes, and the commands that come of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.__main__ import main
from benchmarks.suite.options import read
from benchmarks.suite.subjects import MODES, configuration, launches, words
from kproxy.config import files

VALUES = {"config": "/tmp/a b/config", "kubeconfig": "/k", "node": "node-000", "mode": "iptables"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--modes", "iptable"], "--modes: 'iptable' is not one of iptables, iptables-nft"),
        (["--modes", ","], "--modes: names nothing"),
        (["--services", "10,x"], "--services: must be positive numbers, has 'x'"),
        (["--services", "0"], "--services: must be positive numbers, has '0'"),
        (["--services", "100000", "--endpoints", "50"], "--services: 5,000,000 endpoints in all are more than the"),
        (["--endpoints", "0"], "--endpoints: must be 1 to 1000, is 0"),
        (["--endpoints", "many"], "argument --endpoints: invalid int value"),
        (["--changes", "0"], "argument --changes: must be a positive number, is '0'"),
        (["--storm-seconds", "-1"], "argument --storm-seconds: must be a number of seconds, is '-1'"),
        (["--baseline", "x {pid}"], "--baseline: {pid} means nothing; known are {config}"),
        (["--baseline", "x {"], "--baseline: "),
        (["--baseline", "x '"], "--baseline: No closing quotation"),
        (["--baseline", "name="], "--baseline: it is empty"),
        (["--kubeconfig", "/nowhere"], "--kubeconfig: /nowhere: no such file"),
        (["--kubeconfig", __file__, "--guest"], "--kubeconfig: the virtual machine of --guest has no network"),
        (["nonsense"], "unrecognized arguments: nonsense"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m benchmarks: ")
    assert said in line


def test_sizes_and_modes_are_taken_once_and_sizes_in_order() -> None:
    options = read(["--modes", "nftables,iptables,nftables", "--services", "1000,10,1000", "--endpoints", "2"])
    assert [launch.subject.mode for launch in options.launches] == ["nftables", "iptables"]
    assert [(shape.services, shape.endpoints) for shape in options.shapes] == [(10, 2), (1000, 2)]
    assert options.out.name == "results"


def test_every_subject_has_a_name_of_its_own() -> None:
    found = launches(
        ["iptables", "nftables"], ["/usr/bin/kube-proxy --config {config}", "kube-proxy", "kproxy=x"], "py"
    )
    names = [launch.subject.name for launch in found]
    assert names == [
        *("kproxy iptables", "kproxy nftables", "kube-proxy iptables", "kube-proxy nftables"),
        *("kube-proxy 2 iptables", "kube-proxy 2 nftables", "kproxy 2 iptables", "kproxy 2 nftables"),
    ]
    assert [launch.subject.baseline for launch in found] == [False] * 2 + [True] * 6


def test_a_baselines_words_stay_words_whatever_their_values() -> None:
    (_, launch) = launches(["iptables-legacy"], ["run --config={config} -m {mode} 'two words'"], "py")
    assert words(launch.template, VALUES) == ["run", "--config=/tmp/a b/config", "-m", "iptables", "two words"]
    assert launch.subject.mode == "iptables-legacy"


@pytest.mark.parametrize("mode", MODES)
def test_every_proxy_gets_the_same_configuration(mode: str, tmp_path: Path) -> None:
    content = configuration(mode, "/k", keep_periods=False)
    assert content["mode"] == mode.partition("-")[0]
    kept = configuration(mode, "/k", keep_periods=True)
    assert {key: value for key, value in content.items() if key not in ("iptables", "ipvs", "nftables")} == kept
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    read = files.read(path)
    assert read.mode == content["mode"]
    assert read.conntrack.max_per_core == 0
