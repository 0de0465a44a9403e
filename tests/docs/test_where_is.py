"""Every entry of the index "Where is …?" in docs/architecture.md is in the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (?P<what>.+) \| `(?P<file>[^`]+)` \| `(?P<name>[^`]+)` \|$", re.MULTILINE)
PAGE = (ROOT / "docs" / "architecture.md").read_text().partition("## Where is")[2]
ENTRIES = [(row["what"], row["file"], row["name"]) for row in ROW.finditer(PAGE)]


def defined(path: Path) -> set[str]:
    """The names that a module defines at its top level."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                names.add(node.name)
            case ast.Assign():
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names


def test_the_index_is_complete() -> None:
    assert len(ENTRIES) >= 40
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| what ")]
    assert len(rows) == len(ENTRIES), "a row has another form"


@pytest.mark.parametrize(("what", "file", "name"), ENTRIES, ids=[what for what, _, _ in ENTRIES])
def test_an_entry_is_in_the_code(what: str, file: str, name: str) -> None:
    assert name in defined(ROOT / file)
