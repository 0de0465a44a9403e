"""python -m benchmarks: measure whole proxies. python -m benchmarks parts: parts of kproxy by themselves."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kproxy.errors import KproxyError

FILE = "suite.json"


def main(argv: Sequence[str]) -> int:
    """The exit status. Bad arguments end in SystemExit."""
    try:
        if argv[:1] == ["parts"]:
            from benchmarks import parts

            return parts.main(argv[1:])
        return suite(argv)
    except KproxyError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1


def suite(argv: Sequence[str]) -> int:
    """Measure whole proxies, keep the results, report. Exit status: 1 when nothing could be measured."""
    from rich.console import Console

    from benchmarks.suite import guests
    from benchmarks.suite.options import read
    from benchmarks.suite.results import encode
    from benchmarks.suite.runs import measure

    options = read(argv)
    try:  # before anything is measured, and after the arguments were checked: it takes a second
        from benchmarks import report
        from benchmarks.report.terminal import bars
    except ImportError as error:
        raise KproxyError(f"{error}; pip install 'kproxy[bench]' brings what the report needs") from error
    with bars() as progress:
        run = guests.measure(argv, progress) if options.guest else measure(options, argv, progress)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / FILE).write_bytes(encode(run))
    console = Console(width=max(140, Console().width))
    console.print(report.table(run))
    for problem in run.problems:
        size = f", {problem.services:,} Services" if problem.services else ""
        console.print(f"not measured: {problem.subject}{size}: {problem.why}", markup=False, soft_wrap=True)
    if run.measurements:
        written = report.write(run, options.out)
        console.print(f"{options.out / FILE}, {written[0]} and {len(written) - 1} plots", markup=False)
    return 0 if run.measurements else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
