"""Plots of a run: cost, memory and connections against the size of the cluster, and how latencies are distributed.

The same run always gives the same pixels: nothing is read from a matplotlibrc, and a PNG says neither when nor by which
version it was drawn. Subjects differ by colour, by marker and by line, in an order that colour-blind readers can tell
apart (after M. Okabe and K. Ito, "Color Universal Design", 2008).
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator, PercentFormatter

from benchmarks.report.summaries import Results, Size, amount, times
from benchmarks.suite.results import Quantity

MEMORY = (Quantity.MEMORY, Quantity.MEMORY_PEAK)
COSTS = tuple(each for each in Quantity if each not in (*MEMORY, Quantity.CONNECTIONS))
LATENCIES = (
    Quantity.ENDPOINT_CHANGE,
    Quantity.NEW_SERVICE,
    Quantity.DELETED_SERVICE,
    Quantity.STORM,
    Quantity.FIRST_PACKET,
)

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_MARKERS = "osD^vPX*<>"
_LINES = ("-", "--", "-.", ":")
_PANEL = (4.9, 3.3)  # inches
_DPI = 120
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """name: of its file, without the suffix. title: what it shows, in words. quantities: those that it shows."""

    name: str
    title: str
    quantities: tuple[Quantity, ...]
    figure: Figure


def plots(results: Results) -> Iterator[Plot]:
    """All that the run has samples for."""
    if shown := [quantity for quantity in results.quantities if any(_ratios(results, quantity))]:
        yield Plot("comparison", "Beside the baseline", tuple(shown), comparison(results, shown))
    for quantity in COSTS:
        if quantity in results.quantities:
            yield Plot(
                f"cost-{quantity}", f"{_upper(quantity.label)}, by cluster size", (quantity,), cost(results, quantity)
            )
    if shown := [quantity for quantity in LATENCIES if quantity in results.quantities]:
        yield Plot("distribution", "How latencies are distributed", tuple(shown), distribution(results))
    if set(MEMORY) & set(results.quantities):
        yield Plot("memory", "Memory, by cluster size", MEMORY, memory(results))
    if Quantity.CONNECTIONS in results.quantities:
        yield Plot(
            "connections", "New connections a second, by cluster size", (Quantity.CONNECTIONS,), connections(results)
        )


def comparison(results: Results, quantities: Sequence[Quantity]) -> Figure:
    """A row for each quantity, a mark for each subject with a baseline in its mode: their ratio, 1.00 in the middle.

    Of what is better when there is more of it the inverse is shown, so that left is always better.
    """
    with matplotlib.rc_context(matplotlib.rcParamsDefault), matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 1.2 + 0.4 * len(quantities)), layout="constrained")
        axes = figure.subplots()
        every = []
        for pair in results.pairs:
            found = [(results.against_baseline(quantity, pair), place) for place, quantity in enumerate(quantities)]
            shown = [(1 / x if quantities[y].more_is_better else x, y) for x, y in found if x]
            every += [x for x, _ in shown]
            axes.plot([x for x, _ in shown], [y for _, y in shown], **_style(results, pair.subject) | {"ls": ""})
        axes.axvline(1, color="#666666", lw=1)
        reach = 10 ** math.ceil(max((abs(math.log10(x)) for x in every), default=1) + 1e-9)
        axes.set_xlim(1 / reach, reach)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"× {times(value)}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(len(quantities) - 0.5, -0.5)
        axes.set_yticks(range(len(quantities)))
        axes.set_yticklabels([f"{each.label}{' (inverse)' if each.more_is_better else ''}" for each in quantities])
        axes.set_xlabel("p50 over the baseline's in the same mode; left of the line is better")
        _legend(figure, results, quantities, [], only=[pair.subject for pair in results.pairs])
    return figure


def _ratios(results: Results, quantity: Quantity) -> Iterator[float | None]:
    return (results.against_baseline(quantity, pair) for pair in results.pairs)


def cost(results: Results, quantity: Quantity) -> Figure:
    """A line for each subject: the p50 at each size, a whisker to the p99. The thin one grows with the cluster."""
    return _against_size(results, quantity, guide=True)


def memory(results: Results) -> Figure:
    """At rest as filled marks and lines; at its highest as hollow marks."""
    figure, axes = _one()
    present = [quantity for quantity in MEMORY if quantity in results.quantities]
    with matplotlib.rc_context(_STYLE):
        for quantity in present:
            _lines(axes, results, quantity, hollow=quantity is Quantity.MEMORY_PEAK)
        _scales(axes, results, present)
        extra = [Line2D([], [], color="#666666", marker="o", mfc="white", ls="", label="at its highest")]
        _legend(figure, results, present, extra if Quantity.MEMORY_PEAK in present else [])
    return figure


def connections(results: Results) -> Figure:
    """A line for each subject; more is better."""
    return _against_size(results, Quantity.CONNECTIONS, guide=False)


def distribution(results: Results) -> Figure:
    """A panel for each latency, at the largest size that most subjects share: what part took at most how long."""
    shown = [quantity for quantity in LATENCIES if quantity in results.quantities]
    columns = min(2, len(shown))
    rows = math.ceil(len(shown) / columns)
    with matplotlib.rc_context(matplotlib.rcParamsDefault), matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_PANEL[0] * max(columns, 1.4), _PANEL[1] * rows + 0.6), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, quantity in zip(panels, shown, strict=False):
            _distribution(axes, results, quantity)
        for axes in panels[len(shown) :]:
            axes.remove()
        _legend(figure, results, shown, [], markers=False)
    return figure


def png(figure: Figure) -> bytes:
    """The same bytes for the same figure."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph", UserWarning
        )  # a name in a script that the font lacks: boxes are shown
        figure.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
    return content.getvalue()


def _against_size(results: Results, quantity: Quantity, guide: bool) -> Figure:
    figure, axes = _one()
    with matplotlib.rc_context(_STYLE):
        _lines(axes, results, quantity)
        _scales(axes, results, [quantity])
        extra = _guide(axes, results, quantity) if guide else []
        whisker = Line2D([], [], color="#666666", marker="|", markersize=12, ls="", label="to the p99")
        _legend(figure, results, [quantity], [*extra, whisker])
    return figure


def _one() -> tuple[Figure, Axes]:
    with matplotlib.rc_context(matplotlib.rcParamsDefault), matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        return figure, figure.subplots()


def _lines(axes: Axes, results: Results, quantity: Quantity, hollow: bool = False) -> None:
    """Each subject's points, those of one number of endpoints joined; moved aside a little, so that none is hidden."""
    names = results.measured(quantity)
    for place, name in enumerate(names):
        aside = 1.03 ** (place - (len(names) - 1) / 2)
        spans: dict[int, list[Size]] = {}
        for size in results.sizes(quantity, name):
            spans.setdefault(size.endpoints, []).append(size)
        for sizes in spans.values():
            points = [(size, summary) for size in sizes if (summary := results.summary(quantity, name, size))]
            points = [(size, summary) for size, summary in points if summary.p50 > 0 and size.services > 0]
            across = [size.services * aside for size, _ in points]
            style = _style(results, name) | ({"mfc": "white", "ls": ""} if hollow else {})
            axes.plot(across, [summary.p50 for _, summary in points], **style)
            for x, (_, summary) in zip(across, points, strict=True):
                if summary.p99 != summary.p50 and summary.p99 > 0 and not hollow:
                    axes.plot([x, x], [summary.p50, summary.p99], color=style["color"], lw=1, marker="_", markevery=[1])


def _scales(axes: Axes, results: Results, quantities: Sequence[Quantity]) -> None:
    """Both logarithmic; across a tick at each size, upwards whole decades that hold every p50 and p99."""
    unit = quantities[0].unit
    sizes = sorted({size.services for quantity in quantities for size in results.sizes(quantity) if size.services > 0})
    sizes = sizes or [1]
    axes.set_xlim(sizes[0] / 1.5, sizes[-1] * 1.5)
    values = [value for quantity in quantities for value in _shown(results, quantity) if value > 0]
    axes.set_ylim(*_decades(values))
    axes.set_xscale("log")  # after the limits: there may be no point to take them from
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    endpoints = sorted({size.endpoints for quantity in quantities for size in results.sizes(quantity)})
    axes.set_xlabel(f"Services ({' or '.join(map(str, endpoints))} endpoints each)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value, unit)))
    axes.yaxis.set_minor_locator(LogLocator(subs=range(2, 10)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(_upper(quantities[0].label) + ("" if not quantities[0].more_is_better else " (more is better)"))


def _shown(results: Results, quantity: Quantity) -> Iterator[float]:
    for name in results.measured(quantity):
        for size in results.sizes(quantity, name):
            if summary := results.summary(quantity, name, size):
                yield summary.p50
                yield summary.p99


def _guide(axes: Axes, results: Results, quantity: Quantity) -> list[Line2D]:
    """From the cheapest subject at the smallest size: what a cost that follows the cluster's size would be."""
    sizes = [size for size in results.sizes(quantity) if size.services > 0]
    if len({size.services for size in sizes}) < 2:
        return []
    summaries = [results.summary(quantity, name, sizes[0]) for name in results.measured(quantity)]
    start = min((summary.p50 for summary in summaries if summary and summary.p50 > 0), default=None)
    if start is None:
        return []
    ends = [sizes[0].services, sizes[-1].services]
    limits = axes.get_ylim()
    (line,) = axes.plot(ends, [start, start * ends[1] / ends[0]], color="#999999", lw=1, ls=(0, (1, 3)), zorder=1)
    axes.set_ylim(limits)
    line.set_label("grows as the cluster")
    return [line]


def _distribution(axes: Axes, results: Results, quantity: Quantity) -> None:
    size = results.common(quantity)
    axes.set_title(_upper(quantity.label))
    if size is None:
        return
    for name in results.measured(quantity):
        samples = sorted(value for value in results.samples(quantity, name, size) if value > 0)
        if samples:
            parts = [place / len(samples) for place in range(len(samples) + 1)]
            style = _style(results, name) | {"marker": ""}
            axes.plot([samples[0], *samples], parts, drawstyle="steps-post", **style)
    every = [
        value for name in results.measured(quantity) for value in results.samples(quantity, name, size) if value > 0
    ]
    axes.set_xlim(*_decades(every))
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"{size.services:,} Services of {size.endpoints:,} endpoints")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value, quantity.unit)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Whole ones that hold all values, at least one; some decade where there is no value."""
    low = math.floor(math.log10(min(values, default=1.0)) + 1e-9)
    high = math.ceil(math.log10(max(values, default=1.0)) - 1e-9)
    return 10.0**low, 10.0 ** max(high, low + 1)


def _legend(
    figure: Figure,
    results: Results,
    quantities: Sequence[Quantity],
    extra: Iterable[Line2D],
    markers: bool = True,
    only: Sequence[str] | None = None,
) -> None:
    """Beside the plot, in the subjects' order. only: these, None for all."""
    names = [name for name in results.subjects if any(name in results.measured(quantity) for quantity in quantities)]
    names = [name for name in names if only is None or name in only]
    handles = [Line2D([], [], **_style(results, name) | ({} if markers else {"marker": ""})) for name in names]
    extra = list(extra)
    labels = [_plain(name) for name in names] + [str(line.get_label()) for line in extra]
    place = {"loc": "outside right upper"} if markers else {"loc": "outside lower center", "ncols": 3}
    legend = figure.legend([*handles, *extra], labels, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name is no formula


def _style(results: Results, name: str) -> dict[str, Any]:
    place = results.subjects.index(name)
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "ls": _LINES[place % len(_LINES)],
    }


def _plain(name: str) -> str:
    """On one line, not too long, and not with the underscore by which matplotlib knows what to leave out."""
    text = "".join(letter if letter.isprintable() else " " for letter in name)
    text = text if len(text) <= 30 else text[:29] + "…"
    return f" {text}" if text.startswith("_") else text


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
