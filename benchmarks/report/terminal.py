"""A run on the terminal: its progress while it measures, and the summary of its results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.report.summaries import Results, Size, amount, times
from benchmarks.suite.results import Progress, Quantity, Run


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
    return Group(made, *([_ratios(results)] if results.pairs else []), *problems)


def _ratios(results: Results) -> Table:
    made = Table(title="p50 over the baseline's in the same mode, at the largest common size", title_justify="left")
    made.add_column("", no_wrap=True)
    for pair in results.pairs:
        made.add_column(Text(f"{pair.subject} : {pair.baseline}"), justify="right")
    for quantity in results.quantities:
        ratios = [results.against_baseline(quantity, pair) for pair in results.pairs]
        more = " (more is better)" if quantity.more_is_better else ""
        made.add_row(Text(f"{quantity.label}{more}"), *("" if each is None else times(each) for each in ratios))
    return made


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


@contextmanager
def bars(console: Console | None = None) -> Iterator[Progress]:
    """Shows progress as bars on a terminal, as plain lines elsewhere, until the context ends."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=console, transient=True) as shown:
        yield _Bars(shown)


class _Lines:
    """Prints a line for each phase and message; steps would be too many."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, subject: str, services: int, what: str, total: int) -> None:
        self.say(_phase(subject, services, what))

    def step(self) -> None:
        pass

    def say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


class _Bars:
    """Shows the bar of the current phase below the messages."""

    def __init__(self, shown: progress.Progress) -> None:
        self._shown = shown
        self._task: progress.TaskID | None = None

    def begin(self, subject: str, services: int, what: str, total: int) -> None:
        if self._task is not None:
            self._shown.remove_task(self._task)
        self._task = self._shown.add_task(_phase(subject, services, what), total=total or None)

    def step(self) -> None:
        if self._task is not None:
            self._shown.advance(self._task)

    def say(self, line: str) -> None:
        self._shown.refresh()
        self._shown.console.print(Text(line))


def _phase(subject: str, services: int, what: str) -> str:
    return f"{subject}, {services:,} Services: {what}" if services else f"{subject}: {what}"
