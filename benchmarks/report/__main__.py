"""python -m benchmarks.report FILE [--out DIR]: make a run's report again from its JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.report.pages import write
from benchmarks.report.terminal import table
from benchmarks.suite.results import decode
from kproxy.errors import KproxyError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Make a benchmark's report again.")
    parser.add_argument("file", type=Path, metavar="FILE", help="the results, as the benchmark suite wrote them")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where page and plots go (default: beside FILE)")
    given = parser.parse_args(argv)
    try:
        run = decode(given.file.read_bytes())
        written = write(run, given.out or given.file.parent)
    except (KproxyError, OSError) as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 1
    console = Console(width=max(140, Console().width))
    console.print(table(run))
    console.print(f"{written[0]} and {len(written) - 1} plots", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
