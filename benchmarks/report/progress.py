"""How far a run is: bars where somebody looks at a terminal, lines where a file keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console
from rich.text import Text

from benchmarks.suite.progress import Progress


@contextmanager
def bars(console: Console | None = None) -> Iterator[Progress]:
    """Bars on a terminal, plain lines elsewhere. They stop with the context, however it ends."""
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
    """A line for each phase and for what is said; steps would be too many."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, subject: str, services: int, what: str, total: int) -> None:
        self.say(_phase(subject, services, what))

    def step(self) -> None:
        pass

    def say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


class _Bars:
    """The bar of the phase in hand, under what was said so far."""

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
