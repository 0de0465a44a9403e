"""The pytest plugin inside the machine: runs the chosen tests only, and writes every report as a line of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

__all__: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("guest")
    group.addoption("--guest-chosen", type=Path, metavar="FILE", help="run the tests that it names, one id a line")
    group.addoption("--guest-reports", type=Path, metavar="FILE", help="write reports into it")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.guest_reports:
        config.pluginmanager.register(Reporter(config), "guest-reporter")


class Reporter:
    """Lines: {"running": id}; a test's report, as pytest serializes it; {"broken": file, "why": text}."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._file = config.option.guest_reports.open("a", buffering=1)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = set(self._config.option.guest_chosen.read_text().splitlines())
        items[:] = [item for item in items if item.nodeid in chosen]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self._write({"broken": report.nodeid, "why": report.longreprtext})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write({"running": nodeid})

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, default=str) + "\n")
