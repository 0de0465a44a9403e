"""What docs/conformance.md says of the end-to-end tests is what their outcomes come to."""

from __future__ import annotations

import re
import subprocess
from collections import Counter

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/conformance.md").read_text()
LINES = (ROOT / "tests/docs/data/e2e-sig-network-1.36.2.txt").read_text().splitlines()
OUTCOMES = {
    "passed": "pass",
    "failed, then passed when it was repeated": "FAIL/pass",
    "skipped, then passed on more nodes": "skip/pass",
    "skipped": "skip",
    "failed": "FAIL",
    "not run": "-",
}


def test_the_table_adds_up() -> None:
    head, *rows = [line.split(" | ") for line in LINES if line and not line.startswith("#")]
    assert len(rows) == 150
    counts = {name: Counter(row[place] for row in rows) for place, name in enumerate(head) if place}
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"]
    proxies = [name.replace(" ", "-") for name in cells[0][1:]]
    assert set(proxies) == set(counts)
    said = {row[0]: dict(zip(proxies, map(int, row[1:]), strict=True)) for row in cells[2 : 2 + len(OUTCOMES)]}
    assert said == {text: {name: counts[name][word] for name in proxies} for text, word in OUTCOMES.items()}


def test_the_focus_selects_every_test() -> None:
    groups = "".join(re.findall(r"^FOCUS=.*\n", PAGE, re.M))
    done = subprocess.run(["bash", "-c", f'{groups}printf %s "$FOCUS"'], capture_output=True, text=True, check=True)
    focus, skip = re.compile(rf"\[sig-network\] ({done.stdout})"), re.search(r"--ginkgo.skip '(.*)'", PAGE)
    assert skip
    names = [line.split(" | ")[0] for line in LINES[1:] if line and not line.startswith("#")]
    assert [name for name in names if not focus.match(name) or re.search(skip[1], name)] == []
