"""The suite in a virtual machine with Debian's kernel, for the modes that this host's kernel cannot do."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.suite.progress import Progress
from benchmarks.suite.results import Run

__all__ = ["measure"]


def measure(argv: Sequence[str], progress: Progress) -> Run:
    raise NotImplementedError
