"""The report of a run of the benchmark suite: one page, plots, and a summary for the terminal.

Everything here is made of a `benchmarks.suite.results.Run` and nothing else, so a report can be made again from
its JSON.
"""

from benchmarks.report.pages import write
from benchmarks.report.terminal import table

__all__ = ["table", "write"]
