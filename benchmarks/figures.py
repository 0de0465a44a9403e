"""What a benchmark returns, and how figures become a table and a file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement. what: the row it belongs to; services: the size of the cluster; unit: of `value`.

    limit: what the value must not exceed at this size, None where nothing was promised. note: anything a reader needs.
    """

    what: str
    services: int
    value: float
    unit: str
    limit: float | None = None
    note: str = ""

    @property
    def kept(self) -> bool:
        return self.limit is None or self.value <= self.limit


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
    }


def table(title: str, figures: Iterable[Figure]) -> Table:
    """A row for each thing measured, a column for each size, and how the largest size compares with the smallest."""
    rows: dict[str, dict[int, Figure]] = {}
    for figure in figures:
        rows.setdefault(figure.what, {})[figure.services] = figure
    sizes = sorted({size for row in rows.values() for size in row})
    made = Table(title=title, title_justify="left")
    made.add_column("", no_wrap=True)
    for size in sizes:
        made.add_column(f"{size:,}", justify="right", no_wrap=True)
    made.add_column("ratio", justify="right", no_wrap=True)
    made.add_column("limit", justify="right", no_wrap=True)
    for what, row in rows.items():
        made.add_row(what, *(_cell(row.get(size)) for size in sizes), ratio(list(row.values())), _limit(row.values()))
    return made


def ratio(figures: Sequence[Figure]) -> str:
    """The value at the largest size over that at the smallest; "" when there are no two."""
    ordered = sorted(figures, key=lambda figure: figure.services)
    if len(ordered) < 2 or not ordered[0].value:
        return ""
    return f"x {ordered[-1].value / ordered[0].value:.2f}"


def show(title: str, figures: Iterable[Figure], console: Console | None = None) -> None:
    (console or Console()).print(table(title, figures))


def write(
    name: str, figures: Iterable[Figure], folder: Path = RESULTS, about: Callable[[], dict[str, Any]] = machine
) -> Path:
    """Figures as JSON, with the machine that they come from, in `folder`/`name`.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {"machine": about(), "figures": [asdict(figure) for figure in figures]}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    text = number(figure.value) + f" {figure.unit}"
    return text if figure.kept else f"[bold red]{text}[/]"


def _limit(figures: Iterable[Figure]) -> str:
    limits = {f"{number(f.limit)} {f.unit}" for f in figures if f.limit is not None}
    return ", ".join(sorted(limits))


def number(value: float) -> str:
    """Three digits that matter, no more."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
