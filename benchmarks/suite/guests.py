"""Runs benchmarks in a virtual machine with Debian's kernel, for modes that this host's kernel cannot do.

Without KVM its processor is emulated: compare its times with each other only. Inside it runs
python -m benchmarks.suite.guests FOLDER ARGUMENT..., which writes results and progress to FOLDER.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.suite.options import read
from benchmarks.suite.results import Progress, Run, decode, encode
from benchmarks.suite.runs import measure as measure_here
from kproxy.errors import KernelError
from tests.guest.machine import CHECKOUT, INSIDE, Machine, MachineError, unavailable

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
        found = decode(run_in_guest(folder, command, RESULT, SECONDS, look))
    kind = "virtual machine; figures of it are good for ratios only"
    return replace(found, arguments=tuple(argv), machine={**found.machine, "inside": kind})


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


def run_in_guest(
    folder: Path, argv: Sequence[str], result: str, seconds: float, look: Callable[[], None] | None = None
) -> bytes:
    """What the command `argv` wrote to the file `result` in the shared `folder`, whose path inside is INSIDE.

    look: called now and then. Raises KernelError where there is no such machine, or when the command wrote nothing or
    took longer than `seconds`.
    """
    if reason := unavailable():
        raise KernelError(reason)
    try:
        machine = Machine(folder, argv)
    except MachineError as error:
        raise KernelError(str(error)) from None
    end = time.monotonic() + seconds
    with closing(machine):
        while machine.running():
            if time.monotonic() > end:
                raise KernelError(f"the virtual machine took more than {seconds:.0f} s: {machine.tail()[-300:]}")
            time.sleep(0.2)
            if look:
                look()
        if not (folder / result).exists():
            raise KernelError(f"the virtual machine measured nothing: {machine.tail()[-300:]}")
    return (folder / result).read_bytes()


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    place, *arguments = sys.argv[1:]
    found = measure_here(read(arguments), arguments, _Lines(Path(place, LINES)))
    Path(place, RESULT).write_bytes(encode(found))
