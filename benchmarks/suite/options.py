"""What the suite is asked to do. Pure, but for the check of files that are named."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.cluster import Shape
from benchmarks.figures import RESULTS
from benchmarks.suite.network import MOST_ENDPOINTS
from benchmarks.suite.subjects import MODES, PLACEHOLDERS, Launch, launches

MOST_IN_A_SLICE = 1000  # the API's own limit
STARTS, CHANGES, PHASE, STORM, PACKETS = 3, 30, 60.0, 20.0, 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is measured. Times in seconds.

    starts: cold ones. changes: of each kind, and for processor time. phase: after which no further change begins (the
    first three are always made). storm: of writes at most, 0 for no storm. packets: of each of its three rounds.
    """

    starts: int = STARTS
    changes: int = CHANGES
    phase: float = PHASE
    storm: float = STORM
    packets: float = PACKETS


@dataclass(frozen=True, slots=True)
class Options:
    """Of a run. shapes: the sizes of the cluster. kubeconfig: of the API server to use; None for the stand-in."""

    launches: tuple[Launch, ...]
    shapes: tuple[Shape, ...]
    limits: Limits
    keep_periods: bool
    kubeconfig: Path | None
    out: Path
    guest: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def read(argv: Sequence[str]) -> Options:
    """Raises SystemExit, with status 2 and one line on standard error for what cannot be used."""
    parser = _parser()
    given = parser.parse_args(argv)
    modes = _list(parser, "--modes", given.modes)
    if unknown := [mode for mode in modes if mode not in MODES]:
        parser.error(f"--modes: {unknown[0]!r} is not one of {', '.join(MODES)}")
    shapes = tuple(Shape(size, given.endpoints) for size in _sizes(parser, given.services))
    if not 1 <= given.endpoints <= MOST_IN_A_SLICE:
        parser.error(f"--endpoints: must be 1 to {MOST_IN_A_SLICE}, is {given.endpoints}")
    if (most := max(shape.services for shape in shapes) * given.endpoints) > MOST_ENDPOINTS:
        parser.error(f"--services: {most:,} endpoints in all are more than the {MOST_ENDPOINTS:,} that fit")
    try:
        found = launches(modes, given.baseline, sys.executable)
    except ValueError as error:
        parser.error(f"--baseline: {error}")
    if given.kubeconfig and not given.kubeconfig.is_file():
        parser.error(f"--kubeconfig: {given.kubeconfig}: no such file")
    if given.kubeconfig and given.guest:
        parser.error("--kubeconfig: the virtual machine of --guest has no network to reach a server by")
    limits = Limits(given.starts, given.changes, given.phase_seconds, given.storm_seconds, given.packet_seconds)
    return Options(tuple(found), shapes, limits, given.keep_periods, given.kubeconfig, given.out, given.guest)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m benchmarks",
        allow_abbrev=False,
        description="Measure kproxy, mode by mode, beside any other proxy; `parts` measures some of its parts alone.",
    )
    add = parser.add_argument
    add("--modes", default="iptables,ipvs,nftables,userspace", help=f"any of {', '.join(MODES)} (default: %(default)s)")
    add("--services", default="100,1000,10000", help="sizes of the cluster (default: %(default)s)")
    add("--endpoints", type=int, default=5, help="endpoints of each Service (default: %(default)s)")
    add(
        "--baseline",
        action="append",
        default=[],
        metavar="[NAME=]CMD",
        help="another proxy, measured in the same modes; in its command these stand for what it needs: "
        + ", ".join(f"{{{name}}}" for name in PLACEHOLDERS),
    )
    add("--kubeconfig", type=Path, metavar="FILE", help="measure against this API server in place of the stand-in")
    add("--changes", type=_count, default=CHANGES, help="changes of each kind (default: %(default)s)")
    add("--starts", type=_count, default=STARTS, help="cold starts (default: %(default)s)")
    add("--phase-seconds", type=_seconds, default=PHASE, help="no further change after so long (default: %(default)s)")
    add("--storm-seconds", type=_seconds, default=STORM, help="the longest storm, 0 for none (default: %(default)s)")
    add("--packet-seconds", type=_seconds, default=PACKETS, help="a round of connections (default: %(default)s)")
    add("--keep-periods", action="store_true", help="let each proxy wait between syncs as it does by default")
    add("--guest", action="store_true", help="run in a virtual machine with Debian's kernel, which has IPVS")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="where results and report go (default: %(default)s)")
    return parser


def _list(parser: argparse.ArgumentParser, option: str, text: str) -> list[str]:
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        parser.error(f"{option}: names nothing")
    return found


def _sizes(parser: argparse.ArgumentParser, text: str) -> list[int]:
    parts = _list(parser, "--services", text)
    if bad := [part for part in parts if not part.isdecimal() or not int(part)]:
        parser.error(f"--services: must be positive numbers, has {bad[0]!r}")
    return sorted({int(part) for part in parts})


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a positive number, is {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 86_400:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, is {text!r}")
    return value
