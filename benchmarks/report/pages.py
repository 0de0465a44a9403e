"""The files of a report: the HTML page, which needs neither scripts nor the network, and each plot by itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.figures import number
from benchmarks.report.descriptions import DESCRIPTIONS, LIMITS
from benchmarks.report.plots import Plot, plots, png
from benchmarks.report.summaries import Results, amount, times
from benchmarks.suite.results import Quantity, Run

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


_WHOLE = ("comparison", "distribution")
"""The plots that are about several quantities, and have sections of their own."""


def write(run: Run, folder: Path) -> list[Path]:
    """Write FOLDER/suite.html and FOLDER/*.png; returns their paths, the page first. Replaces files of these names."""
    results = Results(run)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [(plot, png(plot.figure)) for plot in plots(results)]
    written = [folder / "suite.html"]
    written[0].write_text(page(run, results, drawn), encoding="utf-8")
    for plot, content in drawn:
        written.append(folder / f"{plot.name}.png")
        written[-1].write_bytes(content)
    return written


def page(run: Run, results: Results, drawn: Sequence[tuple[Plot, bytes]]) -> str:
    """The page as HTML. drawn: the plots as PNGs; each is placed at the first of its quantities."""
    return _TEMPLATES.get_template("page.html.j2").render(
        run=run,
        results=results,
        sections=_sections(results, drawn),
        **{name: next((_image(plot, data) for plot, data in drawn if plot.name == name), None) for name in _WHOLE},
        limits=LIMITS,
        amount=amount,
        number=number,
        times=times,
        took=amount(run.seconds, "s") if run.seconds < 120 else f"{run.seconds / 60:.0f} minutes",
    )


def _sections(results: Results, drawn: Sequence[tuple[Plot, bytes]]) -> list[dict[str, Any]]:
    made = []
    left = [(plot, data) for plot, data in drawn if plot.name not in _WHOLE]
    for quantity in results.quantities:
        mine = [each for each in left if quantity in each[0].quantities]
        left = [each for each in left if each not in mine]
        made.append(
            {
                "quantity": quantity,
                "description": DESCRIPTIONS[quantity],
                "images": [_image(plot, data) for plot, data in mine],
                "sizes": results.sizes(quantity),
                "rows": [_row(results, quantity, name) for name in results.measured(quantity)],
                "zero": any(
                    min(results.samples(quantity, n, s), default=1) <= 0
                    for n in results.measured(quantity)
                    for s in results.sizes(quantity)
                ),
            }
        )
    return made


def _row(results: Results, quantity: Quantity, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "growth": results.growth(quantity, name),
        "cells": [
            {
                "summary": results.summary(quantity, name, size),
                "ratio": results.ratio(quantity, name, size),
                "notes": results.notes(quantity, name, size),
            }
            for size in results.sizes(quantity)
        ],
    }


def _image(plot: Plot, data: bytes) -> dict[str, str]:
    return {"title": plot.title, "source": "data:image/png;base64," + base64.b64encode(data).decode("ascii")}
