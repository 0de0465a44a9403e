"""python -m benchmarks [GROUP]...: measure, print tables, keep the figures as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import ipvs, memory, planning, programming, userspace
from benchmarks.cluster import Shape
from benchmarks.figures import RESULTS, Figure, show, write
from kproxy.errors import KproxyError
from kproxy.lab.namespaces import unavailable
from kproxy.model.plans import Family

SIZES = (100, 1_000, 10_000)
DUAL = tuple(Family)
FULL = 10_000  # the size, with 5 endpoints, for which limits were promised
RUNS = 3
START_SECONDS = {"nft": 8.0, "legacy": 4.0, "nftables": 3.0}


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


def kernel(shapes: Sequence[Shape]) -> Iterator[Figure]:
    if reason := unavailable(("iptables-nft-restore", "iptables-legacy-restore")):
        raise SystemExit(f"benchmarks: the kernel cannot be measured here: {reason}")
    for shape in shapes:
        for backend, seconds in START_SECONDS.items():
            limits = _at_full(shape, seconds), _at_full(shape, 150.0)
            yield from programming.fastest([list(programming.cold_start(shape, backend, *limits)) for _ in range(RUNS)])
            dual = _dual(shape)
            yield from programming.fastest([list(programming.cold_start(dual, backend)) for _ in range(RUNS)])


def forward(shapes: Sequence[Shape]) -> Iterator[Figure]:
    return userspace.measure()  # one Service, whatever the size of the cluster


def virtual_servers(shapes: Sequence[Shape]) -> Iterator[Figure]:
    return ipvs.measure(shapes[0].endpoints)  # sizes of its own: in a virtual machine the large ones would take long


GROUPS: dict[str, tuple[str, Callable[[Sequence[Shape]], Iterator[Figure]]]] = {
    "change": ("One endpoint changes (without the kernel)", change),
    "start": ("A whole cluster at once (without the kernel)", start),
    "memory": ("Resident memory (without the kernel)", hold),
    "kernel": ("kproxy run against an API server, in a network namespace", kernel),
    "ipvs": ("IPVS by netlink beside ipvsadm, in a virtual machine unless this kernel has it", virtual_servers),
    "userspace": ("Userspace mode's forwarder beside haproxy and a direct connection", forward),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure kproxy.")
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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KproxyError as error:
        sys.exit(f"benchmarks: {error}")
