"""The suite in a virtual machine with Debian's kernel, for the modes that this host's kernel cannot do.

python -m benchmarks.suite.guests FOLDER ARGUMENT... is what runs inside of it: results and progress go to FOLDER.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import guest
from benchmarks.suite.options import read
from benchmarks.suite.progress import Progress
from benchmarks.suite.results import Run, decode, encode
from benchmarks.suite.runs import measure as measure_here
from tests.guest.machine import CHECKOUT, INSIDE

RESULT, LINES = "suite.json", "progress"
SECONDS = 3500.0  # the machine itself lasts an hour at most


def measure(argv: Sequence[str], progress: Progress) -> Run:
    """What `runs.measure` finds in there. Raises KernelError."""
    told = 0
    with TemporaryDirectory(prefix="kproxy-bench-") as name:
        folder = Path(name)

        def look() -> None:
            nonlocal told
            text = (folder / LINES).read_text() if (folder / LINES).exists() else ""
            for line in text[told : text.rfind("\n") + 1].splitlines():
                progress.say(f"virtual machine: {line}")
            told = text.rfind("\n") + 1

        inner = [argument for argument in argv if argument != "--guest"]
        command = [sys.executable, "-m", "benchmarks.suite.guests", str(INSIDE), *inner]
        run = decode(guest.run(folder, command, RESULT, SECONDS, look))
    kind = "virtual machine; figures of it are good for ratios only"
    return replace(run, arguments=tuple(argv), machine={**run.machine, "inside": kind})


class _Lines:
    """Progress into a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, subject: str, services: int, what: str, total: int) -> None:
        self.say(f"{subject}, {services:,} Services: {what}")

    def step(self) -> None:
        pass

    def say(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(f"{line}\n")


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    place, *arguments = sys.argv[1:]
    found = measure_here(read(arguments), arguments, _Lines(Path(place, LINES)))
    Path(place, RESULT).write_bytes(encode(found))
