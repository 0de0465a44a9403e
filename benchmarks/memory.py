"""How much memory a cluster takes, in a fresh process that decodes, plans and holds it as the daemon does.

python -m benchmarks.memory FOLDER is that process: it reads the pages of lists in FOLDER.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec

from benchmarks.cluster import Shape, items
from benchmarks.figures import Figure
from benchmarks.planning import Cluster
from benchmarks.processes import resident
from kproxy.model.events import Listed
from kproxy.model.objects import Kind, Object
from kproxy.sources.listing import PAGE_SIZE

KINDS = (Kind.NODE, Kind.SERVICE, Kind.ENDPOINT_SLICE)
MEGABYTE = 1e6


def hold(shape: Shape, label: str, limit: float | None = None) -> Iterator[Figure]:
    """Resident memory of that process, and what of it is the cluster rather than Python and its libraries."""
    with tempfile.TemporaryDirectory(prefix="kproxy-bench-") as folder:
        for kind in KINDS:
            write_pages(shape, kind, Path(folder))
        command = [sys.executable, "-m", "benchmarks.memory", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    told = json.loads(done.stdout)
    yield Figure(f"{label}: before the first list", shape.services, told["before"] / MEGABYTE, "MB")
    yield Figure(f"{label}: with all plans", shape.services, told["after"] / MEGABYTE, "MB", limit)
    yield Figure(f"{label}: at its highest", shape.services, told["highest"] / MEGABYTE, "MB")


def measure(folder: Path) -> dict[str, int]:
    """The process's part. Bytes."""
    import kproxy.sources.api
    import kproxy.sync.daemon  # noqa: F401  (with all that they import, as in the daemon)

    before, _ = resident("self")
    cluster = Cluster()
    for kind in KINDS:
        found: list[Object] = []
        for path in sorted(folder.glob(f"{kind}-*.json")):
            found += cluster.decoders[kind].page(path.read_bytes()).objects
        cluster.state.apply(Listed(kind, tuple(found)))
    cluster.plan()
    del found
    gc.collect()
    after, highest = resident("self")
    ports = sum(len(plans.plans) for plans in cluster.plans.families.values())
    return {"before": before, "after": after, "highest": highest, "ports": ports}


def write_pages(shape: Shape, kind: Kind, folder: Path) -> None:
    rest = items(shape, kind)
    number = 0
    while page := list(islice(rest, PAGE_SIZE)):
        content = {"kind": f"{kind}List", "metadata": {"resourceVersion": "1"}, "items": page}
        (folder / f"{kind}-{number:05}.json").write_bytes(msgspec.json.encode(content))
        number += 1


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
