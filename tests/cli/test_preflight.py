"""`kproxy preflight`: differences of modes as text and JSON, and arguments."""

from __future__ import annotations

import json

import pytest

from kproxy.cli import main
from tests.cli.test_trace import inputs

__all__ = ["inputs"]
EXPECTED = [
    "node ports 30080 on loopback: forwarded today, left to the node's own programs then",
    "ping and other ports of cluster IPs 10.96.0.10, fd00:96::10: routed on today, refused then",
]


def test_differences_of_two_modes(inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["preflight", "--from", "iptables", "--to", "nftables", *inputs]
    assert main.main([*asked, "--format", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    summaries = [each["summary"] for each in report["differences"]]
    assert [each for each in EXPECTED if not any(each in summary for summary in summaries)] == []
    ping = report["differences"][summaries.index(EXPECTED[1])]
    assert ping["example"]["to"].startswith("10.96.0.10:")
    assert [o["fate"] for o in ping["before"]["outcomes"]] == ["unclaimed"]
    assert [o["fate"] for o in ping["after"]["outcomes"]] == ["rejected"]
    assert main.main(asked) == 1
    text = capsys.readouterr().out
    assert text.splitlines()[0] == report["verdict"]
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "⇒ rejected by kproxy services" in text


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (
            ["--from", "nftables", "--to", "nftables"],
            0,
            "nftables mode and nftables mode treat every first packet alike",
        ),
        (
            ["--from", "iptables", "--to", "ipvs"],
            2,
            "--to: mode ipvs is not supported yet: there are iptables, nftables",
        ),
        (["--from", "userspace", "--to", "nftables"], 2, "--from: mode userspace is not supported yet"),
    ],
)
def test_nothing_to_report(
    inputs: list[str], arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["preflight", *arguments, *inputs]) == status
    assert said in "".join(capsys.readouterr())
