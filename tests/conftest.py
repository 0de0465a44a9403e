"""What all tests share: hypothesis profiles, the marks that `make check` reads, and no skipped test in CI."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["tests.guest.bridge", "tests.network_namespaces"]

IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

# What needs root (network namespaces, iptables, netlink): whole folders, files and what these fixtures give.
ROOT_FOLDERS = frozenset(
    {
        "cleanup",
        "demo",
        "dropin",
        "faults",
        "guest",
        "heal",
        "ipvs",
        "lab",
        "restart",
        "switching",
        "takeover",
        "traffic",
        "userload",
    }
)
# Folders that wait for real servers or start a process for each test: minutes that the quick loop does without.
SLOW_FOLDERS = frozenset({"badinput", "packaging", "sources"})
# Hundreds of cluster states step by step, and long random histories: more than a third of all the rest together.
SLOW_FILES = frozenset(
    {
        "test_cases_of_kube_proxy.py",
        "test_dataplane_after_random_trouble.py",
        "test_driving_the_steps.py",
        "test_random_changes.py",
    }
)
ROOT_FILES = frozenset({"test_host_tables.py", "test_real_kernel.py"})
ROOT_FIXTURES = frozenset({"namespaces", "netns", "real"})

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if IN_CI else "dev"))


@pytest.fixture(autouse=True)
def _leave_logging_as_found() -> Iterator[None]:
    """Commands that are called in this process set up logging to a standard error that ends with the test."""
    root, ours = logging.getLogger(), logging.getLogger("kproxy")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def needs_root(item: pytest.Item) -> bool:
    fixtures = ROOT_FIXTURES.intersection(getattr(item, "fixturenames", ()))
    named = item.path.parent.name in ROOT_FOLDERS or item.path.name in ROOT_FILES
    return named or bool(fixtures) or item.get_closest_marker("ipvs_kernel") is not None


@cache
def named_for_the_machine(path: Path) -> bool:
    """Whether scripts/run-tests gives this file to the session that runs the virtual machine."""
    return any("ipvs_kernel" in each.read_text() for each in (path, path.with_name("conftest.py")) if each.exists())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("ipvs_kernel") and not named_for_the_machine(item.path):
            raise pytest.UsageError(f"{item.path} must have the word ipvs_kernel, or make test would not run all of it")
        if needs_root(item):
            item.add_marker(pytest.mark.root)
        if item.path.parent.name in SLOW_FOLDERS or item.path.name in SLOW_FILES:
            item.add_marker(pytest.mark.slow)


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI a skipped test is a failed one: the machine lacks something that the Makefile should have installed."""
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"CI skips no test, but this one said: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_skip(report)
    return report
