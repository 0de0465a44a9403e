"""The support matrix names tests that there are, versions that the tests ran with, and every mode and minor."""

from __future__ import annotations

import re

from kproxy.config import minors
from kproxy.config.fields import ProxyMode
from tests.docs.pages import ROOT, Page
from tests.traffic.conftest import MODES

PAGE = Page(ROOT / "docs" / "support.md")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.text.splitlines() if line[:2] == "| "]


def test_every_minor_that_is_followed_has_a_row() -> None:
    named = [row[0] for row in ROWS if re.fullmatch(r"1\.\d+", row[0])]
    assert named == [f"1.{minor}" for minor in range(minors.OLDEST, minors.NEWEST + 1)]


def test_every_mode_and_backend_that_serves_the_scenarios_has_a_row() -> None:
    served = {parameter.values[0] for parameter in MODES}
    assert {(row[0], row[1]) for row in ROWS if row[0] in set(ProxyMode)} == served


def test_the_tests_that_it_names_exist() -> None:
    named = [word for word in PAGE.words() if word.startswith("tests/")]
    assert named
    for path in named:
        there = [ROOT / path] if path.endswith(".py") else [*(ROOT / path).glob("test_*.py")]
        assert there, path
        assert all("\ndef test_" in file.read_text() for file in there), path


def test_versions_are_those_that_the_tests_last_passed_with() -> None:
    kernel = (ROOT / "tests" / "guest" / "kernel").read_text().strip()
    assert f"`{kernel}`" in PAGE.text
    packages = (ROOT / "scripts" / "debian-packages").read_text()
    for tool, package in {
        "iptables": "iptables",
        "nft": "nftables",
        "ipset": "ipset",
        "conntrack": "conntrack",
    }.items():
        version = re.search(rf"^demo +{package} +\S+ +(?:\d+:)?([\d.]+)", packages, re.M)
        assert version
        assert f"{tool} {version[1]}" in " ".join(PAGE.text.split())
