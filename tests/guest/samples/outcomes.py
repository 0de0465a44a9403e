"""Tests for test_bridge.py to have run in the machine, one of each outcome. Not collected otherwise."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.ipvs_kernel


@pytest.fixture
def broken() -> None:
    raise RuntimeError("no such luck")


@pytest.fixture
def untidy() -> Iterator[None]:
    yield
    raise RuntimeError("left behind")


def test_passes(tmp_path: Path) -> None:
    print("on", os.uname().release)
    print(Path("/proc/cpuinfo").read_text())
    (tmp_path / "file").write_text("")


def test_sees_what_is_passed_on() -> None:
    assert os.environ["CI"] == "true"


@pytest.mark.parametrize("value", [1, 2], ids=["one", "a name: with [brackets]"])
def test_fails_in_one_case(value: int) -> None:
    print("about to compare")
    assert value == 1


def test_has_a_broken_fixture(broken: None) -> None:
    pass


def test_has_an_untidy_fixture(untidy: None) -> None:
    pass


def test_warns() -> None:
    warnings.warn("beware", UserWarning, stacklevel=1)


@pytest.mark.xfail(reason="known")
def test_fails_as_known() -> None:
    raise AssertionError


def test_skips() -> None:
    pytest.skip("not today")


def test_crashes_the_kernel(request: pytest.FixtureRequest) -> None:
    assert request.config.pluginmanager.has_plugin("guest-reporter"), "never in a kernel that somebody needs"
    Path("/proc/sysrq-trigger").write_text("c")


def test_comes_too_late() -> None:
    pass
