"""The status of a daemon in the terminal, with the same parts and words as its page; plain when piped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kproxy.status.page import duration, size, span, time
from kproxy.status.schema import FamilyStatus, PortRow, ServicePage, Status, Sync

PIPED_WIDTH = 160
SYNCS = 10
"""Of each family; the page has more."""
LINES = 10


def show(o: Status, out: TextIO) -> None:
    """Print O to OUT."""
    if out.isatty():
        _print(Console(file=out, highlight=False), o)
        return
    console = Console(file=StringIO(), width=PIPED_WIDTH, highlight=False, color_system=None)
    with console.capture() as captured:
        _print(console, o)
    out.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _print(console: Console, o: Status) -> None:
    _head(console, o)
    _troubles(console, o)
    for family in o.families:
        _syncs(console, family)
    _services(console, o.services)
    if o.log:
        table = _table(console, "Last warnings and errors", "Last", "Level", "Part", "Times", "Line")
        for line in o.log[:LINES]:
            table.add_row(time(line.last), _tinted(line.level), line.part, str(line.times), Text(line.text))
        console.print(table)


def _head(console: Console, o: Status) -> None:
    health = Text("healthy", "bold green") if o.healthy else Text("unhealthy", "bold red")
    leaving = Text("" if o.node_eligible else ", the node is going away", "yellow")
    console.print(Text.assemble((o.node, "bold"), ": ", health, leaving))
    console.print(f"{o.program} {o.version}, in the place of kube-proxy {o.emulates}", style="dim", markup=False)
    families = ", ".join(family.family for family in o.families) or "no family yet"
    console.print(
        f"mode {o.mode}, {families}, {o.services.total:,} Services, running for {span(o.uptime_seconds)}", markup=False
    )


def _troubles(console: Console, o: Status) -> None:
    if o.refused:
        table = _table(console, f"Not programmed: {len(o.refused)}", "Service port", "Family", "Why")
        for refusal in o.refused:
            table.add_row(Text(refusal.service, "red"), refusal.family, Text(refusal.reason))
        console.print(table)
    if o.conflicts:
        table = _table(console, "Asked for by several Services; one of them gets the connections", "Where", "Services")
        for conflict in o.conflicts:
            table.add_row(Text(conflict.where, "yellow"), _lines(conflict.services))
        console.print(table)
    if o.unusable:
        table = _table(console, "Objects that cannot be used, as last seen", "Seen", "Object", "Why")
        for each in o.unusable:
            table.add_row(time(each.seen), Text(f"{each.kind} {each.object}", "yellow"), Text(each.reason))
        console.print(table)


def _syncs(console: Console, family: FamilyStatus) -> None:
    title = f"{family.family}: {_state(family)}, {family.ports:,} Service ports, {family.endpoints:,} endpoints"
    table = _table(console, title, "Ended", "Took", "Kind", "Changed", "Written", "Outcome")
    for sync in family.syncs[:SYNCS]:
        kind = "full" if sync.full else "partial"
        table.add_row(
            time(sync.ended), duration(sync.seconds), kind, str(sync.changed), size(sync.bytes), _outcome(sync)
        )
    console.print(table)


def _state(family: FamilyStatus) -> str:
    if not family.healthy:
        return "a change is overdue"
    if not family.syncs:
        return "waiting for the cluster, nothing written yet"
    return "failing, tried again" if family.syncs[0].error else "up to date"


def _outcome(sync: Sync) -> Text:
    if sync.error:
        return Text(f"failed: {sync.error}", "red")
    notes = ["put others' changes right"] if sync.repaired else []
    notes += [f"{sync.refused} refused"] if sync.refused else []
    return Text("; ".join(("done", *notes)), "yellow" if notes else "green")


def _services(console: Console, page: ServicePage) -> None:
    found = f"{page.matching:,} of {page.total:,}" if page.query else f"{page.total:,}"
    place = f", page {page.page} of {page.pages}" if page.pages > 1 else ""
    table = _table(console, f"Services: {found}{place}", "Service port", "Addresses", "Endpoints", "In the kernel")
    for service in page.items:
        for port in service.ports:
            name = f"{service.namespace}/{service.name}{':' if port.port else ''}{port.port}"
            table.add_row(
                Text.assemble(name, (f"\n{port.protocol} {port.family}", "dim")),
                _lines((*port.addresses, *port.notes)),
                _endpoints(port),
                _lines((f"refused: {port.refused}",) if port.refused else port.names),
            )
    console.print(table)


def _endpoints(port: PortRow) -> Text:
    if not port.serving:
        return Text(f"none of {port.known}" if port.known else "none", "yellow")
    more = port.serving - len(port.endpoints)
    return _lines((*port.endpoints, *((f"and {more} more",) if more else ())))


def _table(console: Console, title: str, *columns: str) -> Table:
    """A table without lines; its title is printed at once, since a table would fold it to its own width."""
    console.print(Text(f"\n{title}", "bold"))
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, header_style="dim", overflow="fold")
    return table


def _lines(items: Sequence[str] | Iterable[str]) -> Text:
    return Text("\n".join(items))


def _tinted(level: str) -> Text:
    return Text(level, "red" if level == "error" else "yellow")
