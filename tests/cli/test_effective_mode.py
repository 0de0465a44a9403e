"""Defaults that differ by mode are those of the mode in force, wherever it comes from: a flag, or the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kproxy.cli import main, settings
from kproxy.config import files
from kproxy.config.defaults import PRIMARY, SYNC_PERIOD
from kproxy.config.fields import ProxyMode
from tests.cli.test_render import HEADER, HOST, SERVICE

NETWORK = "172.19.0.0/16"
EVERYWHERE: tuple[str, ...] = ()
# An address beside the node's own, so that rules show whether node ports are accepted there.
OTHER = {"name": "eth1", "addresses": ["172.19.0.2/16"]}


def written(folder: Path, name: str, value: object) -> Path:
    path = folder / name
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(
    ("file", "flags", "expected"),
    [
        (None, {}, EVERYWHERE),
        *((None, {"proxy-mode": [mode]}, EVERYWHERE) for mode in ("iptables", "ipvs", "userspace")),
        (None, {"proxy-mode": ["nftables"]}, PRIMARY),
        (None, {"proxy-mode": ["nftables"], "nodeport-addresses": [""]}, PRIMARY),
        (None, {"proxy-mode": ["nftables"], "nodeport-addresses": [NETWORK]}, (NETWORK,)),
        ({}, {}, EVERYWHERE),
        ({"mode": "nftables"}, {}, PRIMARY),
        ({"mode": "ipvs"}, {}, EVERYWHERE),
        ({}, {"proxy-mode": ["nftables"]}, EVERYWHERE),  # the file wins over the flag, as in kube-proxy, with its mode
        ({"mode": "nftables"}, {"proxy-mode": ["iptables"]}, PRIMARY),
        ({"mode": "nftables", "nodePortAddresses": [NETWORK]}, {}, (NETWORK,)),
    ],
)
def test_the_daemon_takes_node_ports_where_its_mode_does(
    tmp_path: Path, file: dict[str, Any] | None, flags: dict[str, list[str]], expected: tuple[str, ...]
) -> None:
    config = {} if file is None else {"config": [str(written(tmp_path, "config.json", HEADER | file))]}
    given = flags | config
    assert settings.read(given).options.config.node_port_addresses == expected


def rendered(folder: Path, capsys: pytest.CaptureFixture[str], mode: str, file: dict[str, Any] | None) -> str:
    """Render the IPv4 rules, with `mode` as a flag unless it is "", and with `file` unless it is None."""
    host = HOST | {"interfaces": [*HOST["interfaces"], OTHER]}
    args = ["render", "--node=node1", "--family=ipv4", f"--host={written(folder, 'host.json', host)}"]
    args += ["-f", str(written(folder, "objects.json", SERVICE))]
    args += [f"--mode={mode}"] if mode else []
    args += [f"--config={written(folder, 'config.json', HEADER | file)}"] if file is not None else []
    assert main.main(args) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize(
    ("mode", "file", "same"),
    [
        ("nftables", None, {"mode": "nftables", "nodePortAddresses": ["primary"]}),
        ("nftables", {}, {"mode": "nftables", "nodePortAddresses": ["primary"]}),
        ("nftables", {"mode": "iptables"}, {"mode": "nftables", "nodePortAddresses": ["primary"]}),
        ("", {"mode": "nftables"}, {"mode": "nftables", "nodePortAddresses": ["primary"]}),
        ("nftables", {"nodePortAddresses": [NETWORK]}, {"mode": "nftables", "nodePortAddresses": [NETWORK]}),
        ("iptables", None, {"mode": "iptables", "nodePortAddresses": ["0.0.0.0/0"]}),
        ("iptables", {"mode": "nftables"}, {"mode": "iptables", "nodePortAddresses": ["0.0.0.0/0"]}),
        ("userspace", {"mode": "nftables"}, {"mode": "userspace", "nodePortAddresses": ["0.0.0.0/0"]}),
        ("ipvs", {"mode": "nftables"}, {"mode": "ipvs", "nodePortAddresses": ["0.0.0.0/0"]}),
        (
            "iptables",
            {"mode": "nftables", "nodePortAddresses": ["primary"]},
            {"mode": "iptables", "nodePortAddresses": ["primary"]},
        ),
    ],
)
def test_render_takes_node_ports_where_the_rendered_mode_does(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    file: dict[str, Any] | None,
    same: dict[str, Any],
) -> None:
    assert rendered(tmp_path, capsys, mode, file) == rendered(tmp_path, capsys, "", same)


def test_the_rules_show_the_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise the comparison above would prove nothing."""
    for mode in ("iptables", "nftables"):
        everywhere, primary = (
            rendered(tmp_path, capsys, mode, {"nodePortAddresses": addresses})
            for addresses in (["0.0.0.0/0"], ["primary"])
        )
        assert everywhere != primary


def test_sync_periods_are_completed_for_the_mode_that_takes_the_files_place(tmp_path: Path) -> None:
    path = written(tmp_path, "config.json", HEADER | {"mode": "iptables", "iptables": {"syncPeriod": "7s"}})
    config = files.load(path, ProxyMode.IPVS).config
    assert (config.mode, config.ipvs.sync_period) == (ProxyMode.IPVS, SYNC_PERIOD)
