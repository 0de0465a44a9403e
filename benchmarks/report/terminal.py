"""A run's summary for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.report.summaries import Results, Size, amount, times
from benchmarks.suite.results import Quantity, Run


def table(run: Run) -> RenderableType:
    """A section for each quantity: p50 and p99 of each subject at each size, growth, and the ratio to the reference."""
    results = Results(run)
    sizes = results.sizes()
    made = Table(title="p50 / p99, by Services × endpoints of each", title_justify="left")
    made.add_column("", no_wrap=True)
    for size in sizes:
        made.add_column(str(size), justify="right")
    made.add_column("growth", justify="right", no_wrap=True)
    made.add_column(Text(f"{results.reference} = 1.00"), justify="right")
    for quantity in results.quantities:
        made.add_section()
        made.add_row(Text(quantity.label, style="bold"))
        for name in results.measured(quantity):
            made.add_row(*_row(results, quantity, name, sizes))
    problems = [
        Text(f"{p.subject}{f' at {p.services:,} Services' if p.services else ''}: {p.why}") for p in run.problems
    ]
    return Group(made, *problems)


def _row(results: Results, quantity: Quantity, name: str, sizes: list[Size]) -> list[Text]:
    growth = results.growth(quantity, name)
    largest = results.sizes(quantity, name)[-1]
    ratio = results.ratio(quantity, name, largest)
    return [
        Text(f"  {name}"),
        *(Text(_cell(results, quantity, name, size)) for size in sizes),
        Text(f"x {times(growth.ratio)}" if growth else ""),
        Text("" if ratio is None else times(ratio)),
    ]


def _cell(results: Results, quantity: Quantity, name: str, size: Size) -> str:
    summary = results.summary(quantity, name, size)
    if summary is None:
        return ""
    p50, p99 = amount(summary.p50, quantity.unit), amount(summary.p99, quantity.unit)
    return p50 if summary.count == 1 or p50 == p99 else f"{p50} / {p99}"
