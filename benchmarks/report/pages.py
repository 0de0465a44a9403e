"""The page of a report: one HTML file that needs nothing else, neither scripts nor the network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.figures import number
from benchmarks.report.meanings import LIMITS, MEANINGS
from benchmarks.report.plots import Plot
from benchmarks.report.summaries import Results, amount, times
from benchmarks.suite.results import Quantity, Run

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(run: Run, results: Results, drawn: Sequence[tuple[Plot, bytes]]) -> str:
    """As HTML. drawn: the plots as PNGs; each stands where its quantity is first spoken of."""
    return _TEMPLATES.get_template("page.html.j2").render(
        run=run,
        results=results,
        sections=_sections(results, drawn),
        distribution=next((_image(plot, png) for plot, png in drawn if plot.name == "distribution"), None),
        limits=LIMITS,
        amount=amount,
        number=number,
        times=times,
        took=amount(run.seconds, "s") if run.seconds < 120 else f"{run.seconds / 60:.0f} minutes",
    )


def _sections(results: Results, drawn: Sequence[tuple[Plot, bytes]]) -> list[dict[str, Any]]:
    made = []
    left = [(plot, png) for plot, png in drawn if plot.name != "distribution"]
    for quantity in results.quantities:
        mine = [each for each in left if quantity in each[0].quantities]
        left = [each for each in left if each not in mine]
        made.append(
            {
                "quantity": quantity,
                "meaning": MEANINGS[quantity],
                "images": [_image(plot, png) for plot, png in mine],
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


def _image(plot: Plot, png: bytes) -> dict[str, str]:
    return {"title": plot.title, "source": "data:image/png;base64," + base64.b64encode(png).decode("ascii")}
