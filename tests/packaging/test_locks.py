"""What `make` installs is locked: one version of everything, within the ranges that pyproject.toml promises."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def pins(name: str) -> dict[str, list[str]]:
    """Each package of a lock, and its line and those of its hashes."""
    blocks = re.split(r"\n(?=\S)", (LOCKS / f"{name}.txt").read_text().strip())
    return {block.partition("==")[0]: block.split("\n") for block in blocks if "==" in block.split("\n")[0]}


def version(lines: list[str]) -> str:
    found = re.match(r"[a-z0-9-]+==(\S+)", lines[0])
    assert found, lines[0]
    return found[1]


DAEMON, BUILD, TESTS, COMPILED = (pins(name) for name in ("daemon", "build", "tests", "compiled"))
ALL = {**TESTS, **COMPILED, **BUILD, **DAEMON}
WANTED = {
    "daemon": (PROJECT["project"]["dependencies"], DAEMON),
    "build": (PROJECT["build-system"]["requires"], BUILD),
    "tests": ([text for text in (*EXTRAS["dev"], *EXTRAS["bench"]) if not text.startswith("kproxy[")], ALL),
}


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_has_what_the_project_asks_for(name: str) -> None:
    """When this fails, run `make lock`."""
    texts, locked = WANTED[name]
    for wanted in map(Requirement, texts):
        assert wanted.specifier.contains(version(locked[canonicalize_name(wanted.name)])), wanted


@pytest.mark.parametrize("name", WANTED)
def test_every_range_has_a_lower_bound(name: str) -> None:
    for wanted in map(Requirement, WANTED[name][0]):
        assert [each.operator for each in wanted.specifier] == [">="], wanted


def test_every_pin_has_hashes() -> None:
    for name, lines in ALL.items():
        assert len(lines) > 1, name
        assert all(re.fullmatch(r" {4}--hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines[1:]), name


def test_each_package_is_locked_once() -> None:
    """The lock of the tests includes the others; only those two may have a package in common, and then alike."""
    assert TESTS.keys().isdisjoint({*DAEMON, *BUILD, *COMPILED})
    assert COMPILED.keys().isdisjoint({*DAEMON, *BUILD})
    for name in DAEMON.keys() & BUILD.keys():
        assert DAEMON[name] == BUILD[name]
    heads = [line for line in (LOCKS / "tests.txt").read_text().splitlines() if line.startswith("-")]
    assert heads == ["-r daemon.txt", "-r build.txt"]


def test_the_image_is_built_from_the_daemons_lock() -> None:
    """By the same file, not by a copy."""
    lock = "requirements/daemon.txt"
    assert f"COPY {lock} /build/" in (ROOT / "manifests/Containerfile").read_text()
    assert f"!{lock}\n" in (ROOT / ".containerignore").read_text()
    assert [path.name for path in (ROOT / "manifests/image").glob("*.txt")] == []


def test_the_environment_of_the_demo_has_no_tool_of_the_tests() -> None:
    tools = {
        "pytest",
        "mypy",
        "ruff",
        "matplotlib",
        "hypothesis",
        "virtme-ng",
        "gnlpy",
        "python-iptables",
        "setuptools",
    }
    assert DAEMON.keys().isdisjoint(tools)
    packages = [line.split() for line in (ROOT / "scripts/debian-packages").read_text().splitlines() if line[0] != "#"]
    assert {package for group, package, *_ in packages if group == "tests"} > {"tcc", "libc6-dev", "chromium"}


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(folder / "scripts/prepare"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)


def test_a_folder_that_no_environment_can_lie_in_is_told_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts/prepare").write_bytes((ROOT / "scripts/prepare").read_bytes())
    done = make(folder, "demo")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "a colon" in done.stderr
