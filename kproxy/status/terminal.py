"""The status in a terminal: `kproxy.status.view` drawn with rich, in plain text when it is piped."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kproxy.status import view as views
from kproxy.status.schema import Status
from kproxy.status.view import Cell, Line, Row, Section, Span, Tone, View

PIPED_WIDTH = 160
_STYLES = {Tone.PLAIN: "", Tone.DIM: "dim", Tone.GOOD: "green", Tone.WARN: "yellow", Tone.BAD: "red"}


def show(status: Status, out: TextIO) -> None:
    """Print `status` to `out`."""
    view = views.view(status)
    if out.isatty():
        _print(Console(file=out, highlight=False), view)
        return
    console = Console(file=StringIO(), width=PIPED_WIDTH, highlight=False, color_system=None)
    with console.capture() as captured:
        _print(console, view)
    out.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _print(console: Console, view: View) -> None:
    tags = Text(", ").join(Text(tag.text, f"bold {_STYLES[tag.tone]}") for tag in view.tags)
    console.print(Text.assemble((view.node, "bold"), ": ", tags))
    console.print(Text(view.program, "dim"))
    console.print(Text(", ".join(fact.phrase for fact in view.facts if fact.phrase)))
    for section in view.troubles:
        _section(console, section)
    for family in view.families:
        state = Text(family.state.text, _STYLES[family.state.tone])
        title = Text.assemble(f"{family.name}: ", state, "".join(f", {detail}" for detail in family.details))
        _table(console, title, family.syncs)
    if not view.families:
        console.print(f"\n{view.no_family}")
    services = view.services
    place = f", {services.place}" if services.place else ""
    _section(console, Section(f"{services.title}: {services.found}{place}", services.table))
    _section(console, view.log)


def _section(console: Console, section: Section) -> None:
    _table(console, Text(section.title), section.table)


def _table(console: Console, title: Text, table: views.Table) -> None:
    """Print a table without lines, below its title, which rich would fold to the table's own width."""
    title.stylize_before("bold")
    console.print(Text.assemble("\n", title))
    if not table.rows:
        if table.empty:
            console.print(table.empty)
        return
    drawn = Table(box=None, pad_edge=False)
    for column in table.columns:
        justify = "right" if column.number else "left"
        drawn.add_column(column.title, header_style="dim", overflow="fold", justify=justify)  # type: ignore[arg-type]
    for row in table.rows[: table.terminal_rows]:
        drawn.add_row(*_cells(row))
    console.print(drawn)
    if table.more:
        console.print(f"and {table.more:,} more")


def _cells(row: Row) -> Iterator[Text]:
    first, *others = row.cells
    name = _cell(first)
    if row.group:
        # The port stands behind its Service's name, unless it has no name itself.
        separator = ":" if len(first) > 1 else "\n"
        name = Text.assemble(row.group, separator, name)
    yield name
    yield from map(_cell, others)


def _cell(cell: Cell) -> Text:
    return Text("\n").join(_line(line) for line in cell)


def _line(line: Line) -> Text:
    if line.listed:
        return Text("\n").join(_span(span) for span in line.spans)
    text = Text()
    for before, span in zip((None, *line.spans), line.spans, strict=False):
        if before is not None:
            text.append("; " if before.tag and span.tag else ": " if before.tag else " ")
        text.append(_span(span))
    return text


def _span(span: Span) -> Text:
    return Text(span.text, _STYLES[span.tone])
