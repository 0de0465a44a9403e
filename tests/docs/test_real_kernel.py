"""What pages tell to do on a node, done: the comparison of rules in docs/migrating.md, by `kproxy diff`."""

from __future__ import annotations

import gzip
import json
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from kproxy.cli import main
from kproxy.lab.namespaces import Namespace, unavailable
from tests.docs.pages import ROOT

CASES = 12
TOOLS = {"ipv4": "iptables", "ipv6": "ip6tables"}


@pytest.fixture(params=["nft", "legacy"])
def backend(request: pytest.FixtureRequest) -> str:
    tools = [f"{tool}-{request.param}-{end}" for tool in TOOLS.values() for end in ("restore", "save")]
    if reason := unavailable(tools):
        pytest.skip(reason)
    return str(request.param)


def test_rules_compare_as_equal_whatever_iptables_save_makes_of_them(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gzip.open(ROOT / "tests" / "parity" / "cases.jsonl.gz", "rt") as lines:
        cases = [json.loads(line) for line in islice(lines, CASES)]
    assert (
        "kproxy diff --kubeconfig kubeconfig --config config.conf --node NODE"
        in (ROOT / "docs/migrating.md").read_text()
    )
    rules = 0
    for case in cases:
        objects = {"apiVersion": "v1", "kind": "List", "items": case["final"]}
        for name, value in (("config", case["config"]), ("host", case["host"]), ("objects", objects)):
            (tmp_path / name).write_text(json.dumps(value))
        named = [f"--config={tmp_path}/config", f"--host={tmp_path}/host", f"--node={case['node']}"]
        words = [*named, "-f", f"{tmp_path}/objects"]
        with closing(Namespace("node1")) as node:
            for family, tool in TOOLS.items():
                assert main.main(["render", *words, f"--family={family}"]) == 0
                wanted = capsys.readouterr().out
                rules += wanted.count("\n-A KUBE-")
                node.run([f"{tool}-{backend}-restore"], wanted)
            status = node.call(main.main, ["diff", *words, f"--iptables-backend={backend}"])
            assert (status, capsys.readouterr().out.count("would write nothing")) == (0, 1), case["id"]
    assert rules > 50 * CASES
