"""The output of `kproxy demo`: rich tables on a terminal, plain text elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kproxy.lab.probes import Answered, Ask, Outcome

WIDTH = 120  # of plain output, and the most that a terminal is filled
COLOURS = {"web-1": "green", "web-2": "cyan", "web-3": "yellow", "dns-1": "magenta"}
MAP = """\
   outside                       node1, where kproxy runs                    node2
   client 172.30.0.100 ───────── 172.30.0.11 ─────────────────────────────── 172.30.0.12
                                  ├─ web-1  10.244.1.11                       ├─ web-3  10.244.2.11
                                  ├─ web-2  10.244.1.12                       └─ dns-1  10.244.2.12
                                  └─ shell  10.244.1.13 (asks, serves nothing)"""


@dataclass(slots=True)
class Way:
    """One address of a Service, as one client uses it, and the answers so far."""

    source: str
    name: str
    function: Ask
    ip: str
    port: int
    answers: Counter[str] = field(default_factory=Counter)
    seen: str = ""

    def note(self, outcome: Outcome) -> None:
        """Count an answer."""
        self.answers[name_of(outcome)] += 1
        if isinstance(outcome, Answered):
            self.seen = outcome.source


@dataclass(slots=True)
class Step:
    """One edit of the manifest. before, after: answers by pod. delay: seconds until the first `proof`."""

    edit: str
    proof: str
    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    delay: float | None = None


def console() -> Console:
    """Return the console of standard output: as wide as the terminal within reason, or plain text of a fixed width."""
    if sys.stdout.isatty():
        found = Console(highlight=False)
        return Console(highlight=False, width=min(found.width, WIDTH))
    return Console(highlight=False, width=WIDTH, no_color=True)


def name_of(outcome: Outcome) -> str:
    """Return the pod that answered, or how no answer came."""
    return outcome.pod if isinstance(outcome, Answered) else outcome.value


def introduce(out: Console, mode: str, examples: Path) -> None:
    """Print the map of the cluster."""
    out.print(f"\n[bold]kproxy demo[/] · {mode} mode · a cluster of network namespaces, gone when this ends\n")
    out.print(MAP, markup=False)
    out.print(f"\nOn node1: kproxy run --proxy-mode {mode} --manifests (a copy of {examples})", markup=False)


def show_rules(out: Console, command: str, rules: Sequence[str]) -> None:
    """Print the rules of one Service, as `command` lists them."""
    out.print(f"[bold]1. What one Service has in the kernel[/], shop/web: {len(rules)} lines of {command}")
    for rule in rules:
        if out.is_terminal:
            out.print(Text("   " + rule, style="dim"), no_wrap=True, overflow="ellipsis")
        else:
            out.print(Text("   " + rule), soft_wrap=True)
    out.print("\n[bold]2. Every address of a Service[/], and whose address the pod saw")


def ways_table(ways: Sequence[Way], owner: Callable[[str], str]) -> Table:
    """Return the table of answers by address."""
    table = _table("from", "by", "to", "answered by", "the pod saw")
    for way in ways:
        address = f"[{way.ip}]:{way.port}" if ":" in way.ip else f"{way.ip}:{way.port}"
        seen = f"{way.seen} ({owner(way.seen)})" if way.seen else ""
        table.add_row(way.source, way.name, Text(address), _tally(way.answers), Text(seen))
    return table


def steps_table(steps: Sequence[Step]) -> Table:
    """Return the table of edits, and how long traffic took to follow."""
    table = _table("edit of web.yaml", "answered before", "answers now", "first proof")
    for step in steps:
        proven = "" if step.delay is None else f"{step.proof}, {step.delay * 1000:.0f} ms"
        table.add_row(step.edit, _tally(step.before), _tally(step.after), proven)
    return table


def summarise(out: Console, steps: Sequence[Step], seconds: float) -> None:
    """Print the summary."""
    slowest = max((step.delay for step in steps if step.delay is not None), default=0)
    out.print(f"\nFrom an edit to the first packet that proves it: {slowest * 1000:.0f} ms at most.", highlight=False)
    out.print(f"Namespaces, rules and processes are removed again. The demo took {seconds:.0f} s.")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _tally(answers: Counter[str]) -> Text:
    parts = [Text(f"{name} {count}", style=COLOURS.get(name, "red")) for name, count in sorted(answers.items())]
    return Text("  ").join(parts)
