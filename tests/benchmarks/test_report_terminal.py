"""How a run shows itself: bars on a terminal, lines in a file, a table at the end."""

from __future__ import annotations

import io

from rich.console import Console

from benchmarks.report.terminal import bars, table
from benchmarks.suite.results import Measurement, Problem, Quantity, Run, Subject

RUN = Run(
    "2025-06-01T10:00:00Z",
    60.0,
    {},
    (),
    (Subject("kproxy [red]", "nftables", "kproxy"), Subject("other", "nftables", "other", baseline=True)),
    (
        Measurement("kproxy [red]", 100, 5, Quantity.NEW_SERVICE, (0.010, 0.012, 0.020)),
        Measurement("kproxy [red]", 10_000, 5, Quantity.NEW_SERVICE, (0.012,)),
        Measurement("other", 10_000, 5, Quantity.NEW_SERVICE, (1.2,)),
    ),
    (Problem("other", 100, "gave [up]"), Problem("third", 0, "not here")),
)


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=160, force_terminal=terminal, color_system=None), text


def test_the_table_has_p50_p99_growth_and_ratio_of_every_subject() -> None:
    to, text = console(False)
    to.print(table(RUN))
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.getvalue().splitlines()]
    assert ["kproxy [red]", "12 ms / 20 ms", "12 ms", "x 1.00", "0.010"] in lines
    assert ["other", "", "1.20 s", "", "1.00"] in lines
    assert ["other at 100 Services: gave [up]"] in lines
    assert ["third: not here"] in lines


def test_a_file_gets_a_line_for_each_phase_and_none_for_a_step() -> None:
    to, text = console(False)
    with bars(to) as progress:
        progress.begin("kproxy [red]", 1_000, "cold start", 2)
        progress.step()
        progress.step()
        progress.say("one [bold]line[/] " + "x" * 200)
        progress.begin("all", 0, "report", 1)
    expected = ["kproxy [red], 1,000 Services: cold start", "one [bold]line[/] " + "x" * 200, "all: report"]
    assert text.getvalue().splitlines() == expected
