"""A report as files: the page with everything in it, and each plot by itself."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report.pages import page
from benchmarks.report.plots import plots, png
from benchmarks.report.summaries import Results
from benchmarks.suite.results import Run


def write(run: Run, folder: Path) -> list[Path]:
    """FOLDER/suite.html and FOLDER/*.png, the page first. Makes the folder; replaces files of these names."""
    results = Results(run)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [(plot, png(plot.figure)) for plot in plots(results)]
    written = [folder / "suite.html"]
    written[0].write_text(page(run, results, drawn), encoding="utf-8")
    for plot, content in drawn:
        written.append(folder / f"{plot.name}.png")
        written[-1].write_bytes(content)
    return written
