"""Figures become a table with ratios, and JSON that says where they come from."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.figures import Figure, number, ratio, show, write

FAST = Figure("planning", 100, 120.0, "µs")
SLOW = Figure("planning", 10_000, 150.0, "µs", limit=140.0)


def shown(*figures: Figure) -> str:
    text = io.StringIO()
    show("title", figures, Console(file=text, width=120, color_system=None))
    return text.getvalue()


def test_the_ratio_is_the_largest_cluster_over_the_smallest_whatever_their_order() -> None:
    assert ratio([SLOW, FAST]) == ratio([FAST, SLOW]) == "x 1.25"


@pytest.mark.parametrize("figures", [[], [FAST], [Figure("bytes", 1, 0.0, "B"), Figure("bytes", 2, 3.0, "B")]])
def test_no_ratio_without_two_sizes_or_of_nothing(figures: list[Figure]) -> None:
    assert ratio(figures) == ""


def test_a_row_holds_every_size_the_ratio_and_the_limit() -> None:
    row = next(line for line in shown(SLOW, FAST).splitlines() if "planning" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["planning", "120 µs", "150 µs", "x 1.25", "140 µs"]


def test_a_size_that_was_not_measured_leaves_its_cell_empty() -> None:
    other = Figure("memory", 100, 1.5, "MB")
    row = next(line for line in shown(FAST, SLOW, other).splitlines() if "memory" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["memory", "1.50 MB", "", "", ""]


@pytest.mark.parametrize(("limit", "kept"), [(None, True), (150.0, True), (149.9, False)])
def test_a_limit_is_kept_up_to_its_value(limit: float | None, kept: bool) -> None:
    assert Figure("x", 1, 150.0, "s", limit).kept is kept


@pytest.mark.parametrize(
    ("value", "text"), [(0.125, "0.12"), (3.0, "3"), (12.34, "12.3"), (672, "672"), (12345.6, "12,346")]
)
def test_numbers_show_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_the_file_has_the_machine_and_every_figure(tmp_path: Path) -> None:
    path = write("change", [FAST, SLOW], tmp_path / "new", about=lambda: {"cores": 2})
    content = json.loads(path.read_text())
    assert content["machine"] == {"cores": 2}
    assert [Figure(**figure) for figure in content["figures"]] == [FAST, SLOW]
