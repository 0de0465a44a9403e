"""`kproxy lint`: files in, findings out, and the exit status. The checks themselves are tested in tests/lint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kproxy.cli import main
from kproxy.lint.findings import CHECKS

ROOT = Path(__file__).resolve().parents[2]
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, externalIPs: [203.0.113.1], ports: [{port: 80}]}
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.5]}]
"""


def test_findings_as_text_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "web.yaml").write_text(SERVICE)
    assert main.main(["lint", "-f", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert text.startswith("Service shop/web\n  error no-endpoints\n    it has no endpoints: connections are refused\n")
    assert text.endswith("1 Service: 1 of severity error, 1 of severity info\n")
    assert max(map(len, text.splitlines())) <= 100

    assert main.main(["lint", "--format", "json", str(tmp_path / "web.yaml")]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [(each["id"], each["severity"], each["object"], each["field"]) for each in findings] == [
        ("no-endpoints", "error", "Service shop/web", ""),
        ("external-ips", "info", "Service shop/web", "spec.externalIPs"),
    ]
    assert all(set(each) == {"id", "severity", "object", "field", "message", "fix"} for each in findings)


def test_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "web.yaml").write_text(SERVICE + "---" + SLICE)
    assert main.main(["lint", "--severity", "warning", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 Service: nothing found\n"
    (tmp_path / "broken.yaml").write_text("{")
    assert main.main(["lint", "--severity", "warning", str(tmp_path)]) == 2
    out, errors = capsys.readouterr()
    assert out == "1 Service: nothing found\n"
    assert errors.startswith(f"kproxy: error: manifest {tmp_path}/broken.yaml: ")


def test_the_page_lists_every_check_as_the_code_has_it() -> None:
    page = (ROOT / "docs" / "lint.md").read_text()
    rows = [f"| `{c.id}` | {c.severity} | {c.title} | {c.fix} |" for c in CHECKS.values()]
    assert "\n".join(rows) in page


def test_the_hook_for_pre_commit_runs_it() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert (hook["id"], hook["entry"], hook["language"]) == ("kproxy-lint", "kproxy lint", "python")
