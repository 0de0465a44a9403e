"""What pages tell to do on a node, done: the comparison of rules in docs/migrating.md, with what the kernel holds."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from kproxy.cli import main
from kproxy.lab.namespaces import Namespace, unavailable
from tests.docs.pages import ROOT

CASES = 12
TOOLS = {"ipv4": "iptables", "ipv6": "ip6tables"}


def plain_function() -> str:
    """The shell function that the page gives."""
    found = re.search(r"^plain\(\) \{.*?\}\n", (ROOT / "docs" / "migrating.md").read_text(), re.M | re.S)
    assert found
    return found[0]


def compared(one: Path, other: Path) -> tuple[str, int]:
    """What differs, and how many rules there are."""
    script = f'{plain_function()}diff <(plain "$1") <(plain "$2"); plain "$1" | wc -l'
    done = subprocess.run(["bash", "-c", script, "-", one, other], capture_output=True, text=True, check=True)
    *lines, count = done.stdout.splitlines()
    return "\n".join(lines), int(count)


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
    rules = 0
    for case in cases:
        objects = {"apiVersion": "v1", "kind": "List", "items": case["final"]}
        for name, value in (("config", case["config"]), ("host", case["host"]), ("objects", objects)):
            (tmp_path / name).write_text(json.dumps(value))
        for family, tool in TOOLS.items():
            arguments = [f"--config={tmp_path}/config", f"--host={tmp_path}/host", f"--node={case['node']}"]
            assert main.main(["render", *arguments, "-f", f"{tmp_path}/objects", f"--family={family}"]) == 0
            wanted, there = tmp_path / "wanted", tmp_path / "there"
            wanted.write_text(capsys.readouterr().out)
            with closing(Namespace("node1")) as node:
                node.run([f"{tool}-{backend}-restore"], wanted.read_text())
                there.write_text(node.run([f"{tool}-{backend}-save"]))
            differences, count = compared(wanted, there)
            assert differences == "", (case["id"], family)
            rules += count
    assert rules > 50 * CASES
