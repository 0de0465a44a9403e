"""Parts of kproxy by themselves: python -m benchmarks parts [GROUP]... prints tables and keeps the figures as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import ipvs, memory, planning, userspace
from benchmarks.cluster import Shape
from benchmarks.figures import RESULTS, Figure, show, write
from kproxy.model.plans import Family

SIZES = (100, 1_000, 10_000)
DUAL = tuple(Family)
FULL = 10_000  # the size, with 5 endpoints, for which limits were promised


def change(shapes: Sequence[Shape]) -> Iterator[Figure]:
    for shape in shapes:
        yield from planning.changes(shape)


def start(shapes: Sequence[Shape]) -> Iterator[Figure]:
    for shape in shapes:
        yield from planning.cold_start(_dual(shape), "dual-stack", _at_full(shape, 3000.0))


def hold(shapes: Sequence[Shape]) -> Iterator[Figure]:
    for shape in shapes:
        yield from memory.hold(shape, "IPv4", _at_full(shape, 150.0))
        yield from memory.hold(_dual(shape), "dual-stack")


def forward(shapes: Sequence[Shape]) -> Iterator[Figure]:
    return userspace.measure()  # one Service, whatever the size of the cluster


def virtual_servers(shapes: Sequence[Shape]) -> Iterator[Figure]:
    return ipvs.measure(shapes[0].endpoints)  # sizes of its own: in a virtual machine the large ones would take long


GROUPS: dict[str, tuple[str, Callable[[Sequence[Shape]], Iterator[Figure]]]] = {
    "change": ("One endpoint changes (without the kernel)", change),
    "start": ("A whole cluster at once (without the kernel)", start),
    "memory": ("Resident memory (without the kernel)", hold),
    "ipvs": ("IPVS by netlink beside ipvsadm, in a virtual machine unless this kernel has it", virtual_servers),
    "userspace": ("Userspace mode's forwarder beside haproxy and a direct connection", forward),
}


def main(argv: Sequence[str]) -> int:
    """Exit status: 1 when a figure is over its limit. Raises KproxyError, and SystemExit for bad arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks parts", description="Measure parts of kproxy.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"any of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of Services (default: %(default)s)")
    parser.add_argument("--endpoints", type=int, default=5, help="endpoints of each Service (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes (default: %(default)s)")
    given = parser.parse_args(argv)
    if unknown := set(given.groups) - set(GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    try:
        shapes = [Shape(int(size), given.endpoints) for size in given.sizes.split(",")]
    except ValueError:
        parser.error(f"--sizes: not numbers: {given.sizes}")
    console = Console(width=max(140, Console().width))
    over = []
    for group in given.groups or GROUPS:
        title, measure = GROUPS[group]
        figures = list(measure(shapes))
        show(title if group == "userspace" else f"{title}, {given.endpoints} endpoints a Service", figures, console)
        write(group, figures, given.out)
        over += [figure for figure in figures if not figure.kept]
    for figure in over:
        console.print(f"over its limit at {figure.services:,} Services: {figure.what}")
    return 1 if over else 0


def _dual(shape: Shape) -> Shape:
    return Shape(shape.services, shape.endpoints, DUAL)


def _at_full(shape: Shape, limit: float) -> float | None:
    return limit if shape.services == FULL and shape.endpoints == 5 else None
