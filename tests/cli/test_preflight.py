"""`kproxy preflight`: differences of modes as text and JSON, and arguments."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kproxy.cli import main
from kproxy.lab.namespaces import Namespace
from tests.cli.test_trace import FIREWALL, ROOT, inputs

__all__ = ["inputs"]
ROOT_FOLDER = Path(__file__).parents[2]
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


def test_the_documented_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = {"nodeIPs": ["172.18.0.2"], "interfaces": [{"name": "eth0", "addresses": ["172.18.0.2/16"]}]}
    (tmp_path / "host.json").write_text(json.dumps(host))
    inputs = ["-f", str(ROOT_FOLDER / "examples"), "--host", str(tmp_path / "host.json"), "--node", "node1"]
    assert main.main(["preflight", "--from", "iptables", "--to", "nftables", *inputs]) == 1
    told = [line for line in capsys.readouterr().out.splitlines() if line[:1] not in ("", " ")]
    assert "\n".join(told) in (ROOT_FOLDER / "docs" / "debugging.md").read_text()


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


FOREIGN = "*filter\n-A FORWARD -d 10.244.2.7/32 -j DROP\n-A OUTPUT -p tcp -m owner --uid-owner 7 -j DROP\nCOMMIT\n"


@ROOT
@pytest.mark.root
@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_the_rules_of_this_node(backend: str, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """kube-proxy's rules, another program's behind them, and a table of nf_tables that is not compared."""
    rules = {}
    for family in ("ipv4", "ipv6"):
        assert main.main(["render", "--mode", "iptables", "--family", family, *inputs]) == 0
        rules[family] = capsys.readouterr().out
    with closing(Namespace("preflight")) as space:
        for words in ("link set lo up", "link add eth0 type veth peer name other", "addr add 172.18.0.2/16 dev eth0",
                      "addr add fd00:18::2/64 dev eth0 nodad"):  # fmt: skip
            space.run(["ip", *words.split()])
        space.run([f"iptables-{backend}-restore", "--noflush"], rules["ipv4"])
        space.run([f"ip6tables-{backend}-restore", "--noflush"], rules["ipv6"])
        space.run([f"iptables-{backend}-restore", "--noflush"], FOREIGN)
        space.run(["nft", "-f", "-"], FIREWALL)

        def report(mode: str) -> tuple[int, Any]:
            status = space.call(main.main, ["preflight", "--to", mode, *inputs, "--format", "json"])
            return status, json.loads(capsys.readouterr().out)

        status, same = report("iptables")
        assert [each["summary"] for each in same["differences"]] == []
        assert status == 0
        needs = {each["what"]: each for each in same["requirements"]}
        assert "another program's" in needs["table inet other, chain forwarding"]["detail"]
        assert "--uid-owner 7" in needs["a rule of table filter"]["detail"]
        status, other = report("nftables")
        assert status == 1
        summaries = [each["summary"] for each in other["differences"]]
        assert [each for each in EXPECTED if not any(each in s for s in summaries)] == [], summaries
        # What is masqueraded has a mark that iptables mode accepts before the other program's rule.
        blocked = next(
            each for each in other["differences"] if "forwarded (2/3) or dropped (1/3) then" in each["summary"]
        )
        assert "forwarded today" in blocked["summary"]
        assert {o["fate"] for o in blocked["after"]["outcomes"]} == {"forwarded", "dropped"}
        space.run(["nft", "add", "table", "ip", "kube-proxy"])
        space.run(["nft", "add chain ip kube-proxy p { type nat hook prerouting priority -100; }"])
        assert space.call(main.main, ["preflight", "--to", "nftables", *inputs]) == 2
        assert "Services are in table kube-proxy of nf_tables" in capsys.readouterr().err
