"""What becomes of tests that run in the virtual machine; one start of it, with a run of samples/outcomes.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.guest.machine import CHECKOUT, unavailable

SAMPLES = "tests/guest/samples/outcomes.py"


def run(folder: Path, environment: Mapping[str, str]) -> dict[str, ElementTree.Element]:
    """Every sample's entry in pytest's XML, by name."""
    results = folder / "results.xml"
    options = ["-p", "no:cacheprovider", "--in-guest", f"--junitxml={results}", "-o", "junit_logging=all"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", SAMPLES, *options],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    return {case.attrib["name"]: case for case in ElementTree.parse(results).iter("testcase")}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ElementTree.Element]:
    if reason := unavailable():
        pytest.skip(reason)
    return run(tmp_path_factory.mktemp("outcomes"), {"CI": "true"})


def text(case: ElementTree.Element, kind: str) -> str:
    """What the case's one outcome says; KIND: failure, error or skipped."""
    (outcome,) = unhappy(case)
    assert outcome.tag == kind
    return f"{outcome.attrib['message']}\n{outcome.text}"


def unhappy(case: ElementTree.Element) -> list[ElementTree.Element]:
    return [child for child in case if child.tag in {"failure", "error", "skipped"}]


@pytest.mark.parametrize("name", ["test_passes", "test_sees_what_is_passed_on", "test_fails_in_one_case[one]"])
def test_a_test_that_passes_there_passes(cases: Mapping[str, ElementTree.Element], name: str) -> None:
    assert unhappy(cases[name]) == []


def test_it_ran_in_debians_kernel_with_its_output_kept(cases: Mapping[str, ElementTree.Element]) -> None:
    assert f"on {_release()}" in (cases["test_passes"].findtext("system-out") or "")


def test_its_clock_is_as_fast_as_ours(cases: Mapping[str, ElementTree.Element]) -> None:
    """Also on a busy host, where its kernel cannot measure that."""
    theirs, ours = (cases["test_passes"].findtext("system-out") or ""), Path("/proc/cpuinfo").read_text()
    found = [float(line.split(":")[1]) for text in (theirs, ours) for line in text.splitlines() if "bogomips" in line]
    assert found[0] == pytest.approx(found[-1], rel=0.01)


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("test_fails_in_one_case[a name: with [brackets]]", "failure", "assert 2 == 1"),
        ("test_has_a_broken_fixture", "error", "RuntimeError: no such luck"),
        ("test_has_an_untidy_fixture", "error", "RuntimeError: left behind"),
        ("test_warns", "failure", "UserWarning: beware"),
        ("test_fails_as_known", "skipped", "known"),
        ("test_skips", "failure", "CI skips no test, but this one said: Skipped: not today"),
        ("test_crashes_the_kernel", "failure", "the virtual machine ended, during tests/guest/samples/outcomes.py::"),
        ("test_crashes_the_kernel", "failure", "Kernel panic"),
        ("test_comes_too_late", "error", "the virtual machine ended: see tests/guest/samples/outcomes.py::"),
    ],
)
def test_any_other_outcome_arrives_with_its_text(
    cases: Mapping[str, ElementTree.Element], name: str, kind: str, says: str
) -> None:
    assert says in text(cases[name], kind)


def test_without_the_tools_each_test_says_what_is_missing(tmp_path: Path) -> None:
    cases = run(tmp_path, {"CI": "true", "PATH": str(tmp_path)})
    assert cases
    for case in cases.values():
        assert "missing: qemu-system-x86, kmod, busybox-static" in ElementTree.tostring(case, "unicode")


def test_the_kernel_is_fetched_once() -> None:
    before = _image()
    status = os.stat(before)
    assert _image() == before
    assert os.stat(before) == status


def _image() -> str:
    return subprocess.run(
        [CHECKOUT / "scripts/debian-kernel"], capture_output=True, text=True, check=True
    ).stdout.strip()


def _release() -> str:
    return Path(_image()).name.removeprefix("vmlinuz-")
