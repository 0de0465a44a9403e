"""The view of a status: which sections, tables, columns and words are shown, for the page and the terminal alike. Pure.

`view` turns a Status into values that say what is shown and leave open how: `kproxy.status.page` renders them as HTML,
`kproxy.status.terminal` as text. Times, durations and sizes are formatted here as people read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple, TypeVar

from kproxy.status.schema import FamilyStatus, PortRow, ServicePage, Status, Sync

TROUBLES_SHOWN = 100
"""Rows of one kind of trouble; the JSON has them all."""
TERMINAL_ROWS = 10
"""Syncs of a family and lines of the log that a terminal shows; the page has them all."""


class Tone(StrEnum):
    """What a text means, for its colour. The page uses these as CSS classes."""

    PLAIN = ""
    DIM = "dim"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


class Span(NamedTuple):
    """A piece of text. code: something to copy, such as an address. tag: a word that judges what follows it."""

    text: str
    tone: Tone = Tone.PLAIN
    code: bool = False
    tag: bool = False


class Line(NamedTuple):
    """Spans of one line. listed: they are items of a list, which a terminal writes below each other."""

    spans: tuple[Span, ...]
    listed: bool = False


Cell = tuple[Line, ...]


class Column(NamedTuple):
    """A column. number: aligned to the right. narrow: not wrapped. labelled: says nothing without its title."""

    title: str
    number: bool = False
    narrow: bool = False
    labelled: bool = False


class Row(NamedTuple):
    """A row, one cell for each column. group: what it belongs to; rows of one group follow each other."""

    cells: tuple[Cell, ...]
    group: str = ""


class Table(NamedTuple):
    """A table. empty: the text in place of no rows. terminal_rows: how many of the rows a terminal shows."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    empty: str = ""
    more: int = 0
    terminal_rows: int | None = None


class Fact(NamedTuple):
    """A property of the daemon. phrase: the same as a part of a sentence, "" to leave it out there."""

    name: str
    value: str
    phrase: str = ""


class Section(NamedTuple):
    """A table with a title."""

    title: str
    table: Table


class FamilySection(NamedTuple):
    """The syncs of one IP family. attention: something is wrong with it."""

    name: str
    state: Span
    details: tuple[str, ...]
    attention: bool
    syncs: Table


class ServiceSection(NamedTuple):
    """One page of the Services. found: how many of them the search found, in words."""

    title: str
    found: str
    place: str
    page: ServicePage
    table: Table


class View(NamedTuple):
    """All that is shown of a Status, in order. tags: the state of the node and of the daemon."""

    node: str
    tags: tuple[Span, ...]
    program: str
    facts: tuple[Fact, ...]
    attention: str
    troubles: tuple[Section, ...]
    families: tuple[FamilySection, ...]
    no_family: str
    services: ServiceSection
    log: Section


def view(status: Status) -> View:
    """Return what is shown of `status`."""
    troubles = tuple(_troubles(status))
    number = sum(len(trouble.table.rows) + trouble.table.more for trouble in troubles)
    return View(
        node=status.node,
        tags=tuple(_tags(status)),
        program=f"{status.program} {status.version}, in place of kube-proxy {status.emulates}",
        facts=tuple(_facts(status)),
        attention=f"{number} {'thing needs' if number == 1 else 'things need'} attention" if number else "",
        troubles=troubles,
        families=tuple(map(_family, status.families)),
        no_family="No family is programmed yet.",
        services=_services(status.services),
        log=Section("Last warnings and errors", _log(status)),
    )


def _tags(status: Status) -> Iterator[Span]:
    yield Span("healthy", Tone.GOOD, tag=True) if status.healthy else Span("unhealthy", Tone.BAD, tag=True)
    if not status.node_eligible:
        yield Span("the node is being removed", Tone.WARN, tag=True)


def _facts(status: Status) -> Iterator[Fact]:
    families = ", ".join(family.family for family in status.families) or "no family yet"
    services = f"{status.services.total:,}"
    running = span(status.uptime_seconds)
    yield Fact("Mode", status.mode, f"mode {status.mode}")
    yield Fact("IP families", families, families)
    yield Fact("Services", services, f"{services} Services")
    yield Fact("Running for", running, f"running for {running}")
    yield Fact("Started", time(status.started))
    yield Fact("State of", time(status.now))


# ---------------------------------------------------------------- troubles

T = TypeVar("T")


def _troubles(status: Status) -> Iterator[Section]:
    if status.refused:
        yield _trouble(
            f"Not programmed: {len(status.refused):,}",
            (Column("Service port"), Column("Family", narrow=True), Column("Why")),
            status.refused,
            lambda each: (_code(each.service, Tone.BAD), _text(each.family), _text(each.reason)),
        )
    if status.unreadable:
        yield _trouble(
            "Degraded: cannot be checked, but Services are programmed",
            (Column("What"), Column("Family", narrow=True), Column("Why")),
            status.unreadable,
            lambda each: (_code(each.what, Tone.WARN), _text(each.family), _text(each.reason)),
        )
    if status.conflicts:
        yield _trouble(
            "Asked for by several Services; one of them gets the connections",
            (Column("Where"), Column("Services")),
            status.conflicts,
            lambda each: (
                _code(each.where, Tone.WARN),
                tuple(Line((Span(service, code=True),)) for service in each.services),
            ),
        )
    if status.unusable:
        yield _trouble(
            "Objects that cannot be used, as last seen",
            (Column("Seen", narrow=True), Column("Object"), Column("Why")),
            status.unusable,
            lambda each: (
                _text(time(each.seen)),
                (Line((Span(each.kind), Span(each.object, Tone.WARN, code=True))),),
                _text(each.reason),
            ),
        )
    if status.internal_errors:
        yield _trouble(
            "Parts of kproxy that fail unexpectedly and are retried; this is a bug, the log has the traceback",
            (Column("Part"), Column("Since", narrow=True), Column("Failures", number=True), Column("Last error")),
            status.internal_errors,
            lambda each: (
                _code(each.stage, Tone.BAD),
                _text(time(each.since)),
                _text(f"{each.failures:,}"),
                _text(each.error),
            ),
        )


def _trouble(
    title: str, columns: tuple[Column, ...], items: Sequence[T], cells: Callable[[T], tuple[Cell, ...]]
) -> Section:
    rows = tuple(Row(cells(item)) for item in items[:TROUBLES_SHOWN])
    return Section(title, Table(columns, rows, more=len(items) - len(rows)))


# ---------------------------------------------------------------- syncs

_SYNC_COLUMNS = (
    Column("Ended", narrow=True),
    Column("Took", number=True),
    Column("Kind", narrow=True),
    Column("Changed ports", number=True),
    Column("Written", number=True),
    Column("Transactions", number=True),
    Column("Outcome"),
)


def _family(family: FamilyStatus) -> FamilySection:
    failed = bool(family.syncs) and family.syncs[0].error != ""
    details = [f"{family.ports:,} Service ports", f"{family.endpoints:,} endpoints"]
    if family.last_updated:
        details.append(f"last written {time(family.last_updated)}")
    else:
        details.insert(0, "nothing written yet")
    if family.syncs:
        details.append(f"the last sync took {duration(family.syncs[0].seconds)}{' and failed' if failed else ''}")
    if family.refused_changes:
        number = f"{family.refused_changes:,} change{'s' if family.refused_changes > 1 else ''}"
        details.append(f"the kernel refused {number}, last {time(family.refused_at)}: {family.last_refused}")
    syncs = Table(
        _SYNC_COLUMNS, tuple(Row(_sync(sync)) for sync in family.syncs), terminal_rows=TERMINAL_ROWS
    )  # fmt: skip
    return FamilySection(family.family, _state(family, failed), tuple(details), failed or not family.healthy, syncs)


def _state(family: FamilyStatus, failed: bool) -> Span:
    if not family.healthy:
        return Span("a change is overdue", Tone.BAD, tag=True)
    if not family.syncs:
        return Span("waiting for the cluster", Tone.WARN, tag=True)
    if failed:
        return Span("failing, tried again", Tone.WARN, tag=True)
    return Span("up to date", Tone.GOOD, tag=True)


def _sync(sync: Sync) -> tuple[Cell, ...]:
    return (
        _text(time(sync.ended)),
        _text(duration(sync.seconds)),
        _text("full" if sync.full else "partial"),
        _text(f"{sync.changed:,}"),
        _text(size(sync.bytes)),
        _text(f"{sync.transactions:,}"),
        (Line(tuple(_outcome(sync))),),
    )


def _outcome(sync: Sync) -> Iterator[Span]:
    if sync.error:
        yield Span("failed", Tone.BAD, tag=True)
        yield Span(sync.error)
        return
    yield Span("done", Tone.GOOD, tag=True)
    if sync.repaired:
        yield Span("put others' changes right", Tone.WARN, tag=True)
    if sync.refused:
        yield Span(f"{sync.refused} refused", Tone.WARN, tag=True)
    elif sync.refused_changes:
        yield Span("a change was refused", Tone.WARN, tag=True)


# ---------------------------------------------------------------- Services

_SERVICE_COLUMNS = (
    Column("Port"),
    Column("Addresses"),
    Column("Endpoints that serve here", labelled=True),
    Column("In the kernel"),
)


def _services(page: ServicePage) -> ServiceSection:
    rows = tuple(
        Row(tuple(tuple(cell) for cell in _port(port)), f"{service.namespace}/{service.name}")
        for service in page.items
        for port in service.ports
    )
    return ServiceSection(
        title="Services",
        found=f"{page.matching:,} of {page.total:,}" if page.query else f"{page.total:,}",
        place=f"page {page.page} of {page.pages}" if page.pages > 1 else "",
        page=page,
        table=Table(_SERVICE_COLUMNS, rows, "No Service has this." if page.query else "No Service is known."),
    )


def _port(port: PortRow) -> Iterator[Iterable[Line]]:
    kind = Line((Span(f"{port.protocol} {port.family}", Tone.DIM),))
    yield (Line((Span(port.port),)), kind) if port.port else (kind,)
    addresses = (Line((Span(address, code=True),)) for address in port.addresses)
    yield (*addresses, *(Line((Span(note, Tone.DIM),)) for note in port.notes))
    yield _endpoints(port)
    yield _in_kernel(port)


def _endpoints(port: PortRow) -> Iterator[Line]:
    known = f" of {port.known}" if port.known > port.serving else ""
    if not port.serving:
        yield Line((Span(f"none{known}", Tone.WARN, tag=True),))
        return
    yield Line((Span(f"{port.serving}{known}"),))
    more = port.serving - len(port.endpoints)
    items = tuple(Span(endpoint, code=True) for endpoint in port.endpoints)
    yield Line((*items, Span(f"and {more} more")) if more else items, listed=True)


def _in_kernel(port: PortRow) -> Iterator[Line]:
    if port.refused:
        yield Line((Span("refused", Tone.BAD, tag=True), Span(port.refused)))
    yield from (Line((Span(name, code=True),)) for name in port.names)


# ---------------------------------------------------------------- log

_LOG_COLUMNS = (
    Column("Last", narrow=True),
    Column("Level", narrow=True),
    Column("Part", narrow=True),
    Column("Times", number=True),
    Column("Line"),
)


def _log(status: Status) -> Table:
    rows = tuple(
        Row(
            (
                _text(time(line.last)),
                (Line((Span(line.level, Tone.BAD if line.level == "error" else Tone.WARN, tag=True),)),),
                _text(line.part),
                _text(f"{line.times:,}"),
                _text(line.text),
            )
        )
        for line in status.log
    )
    return Table(_LOG_COLUMNS, rows, "None since the start.", terminal_rows=TERMINAL_ROWS)


# ---------------------------------------------------------------- formats


def _text(text: str) -> Cell:
    return (Line((Span(text),)),)


def _code(text: str, tone: Tone) -> Cell:
    return (Line((Span(text, tone, code=True),)),)


def time(moment: str) -> str:
    """Format a time: 2026-01-02T03:04:05Z as 2026-01-02 03:04:05 UTC."""
    return moment.replace("T", " ").replace("Z", " UTC")


def span(seconds: int) -> str:
    """Format whole seconds in two units: 3 d 4 h, 4 h 5 min, 5 min 6 s, 6 s."""
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            return f"{seconds // length} {unit} {seconds % length // part} {smaller}"
    return f"{seconds} s"


def duration(seconds: float) -> str:
    """Format seconds: 12.3 s, 45 ms."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def size(number: int) -> str:
    """Format a number of bytes: 512 B, 3.4 KiB, 12 MiB."""
    value = float(number)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024 or unit == "MiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
