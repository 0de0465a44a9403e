"""IPVS's virtual servers by our netlink beside `ipvsadm -R`, in one run of one kernel.

Where the host's kernel has no IPVS, all of it runs in a virtual machine with Debian's (`python -m benchmarks.ipvs FILE`
inside of it), with an emulated processor: compare its times with each other, and with nothing else. Each round measures
both sides, so that whatever else the machine does meets both; a figure is the median of the rounds.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure
from benchmarks.suite.guests import run_in_guest
from kproxy.errors import KernelError
from kproxy.kernel.ipvs import KernelIpvs
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.kernel.virtual_servers import RealKey, RealServer, ServerKey, VirtualServer
from kproxy.lab.namespaces import Namespace
from kproxy.model.plans import Family, Protocol
from tests.guest.machine import CHECKOUT, INSIDE, kernel_has_ipvs

SIZES = (10, 100, 1_000)
ROUNDS = 5
CHANGES = 200
HALF = 0.5  # of ipvsadm's time, promised for the largest size
MACHINE_SECONDS = 900.0

Cluster = list[tuple[VirtualServer, list[RealServer]]]


def measure(endpoints: int = 5, sizes: Sequence[int] = SIZES, rounds: int = ROUNDS) -> Iterator[Figure]:
    """Load so many virtual servers with so many real ones each, list them, and change one real server.

    Raises KernelError where there is no IPVS and no virtual machine that has it.
    """
    if kernel_has_ipvs():
        return _measure(endpoints, sizes, rounds)
    return iter(_in_machine(endpoints, sizes, rounds))


def _measure(endpoints: int, sizes: Sequence[int], rounds: int) -> Iterator[Figure]:
    note = f"Linux {platform.release()}, median of {rounds} rounds"
    for size in sizes:
        with closing(Namespace("bench")) as space, space.call(KernelIpvs) as ipvs:
            space.run(["ip", "link", "set", "lo", "up"])  # without it, no address is good enough for a real server
            yield from _size(space, ipvs, _cluster(size, endpoints), rounds, note, size == max(SIZES))


def _size(
    space: Namespace, ipvs: KernelIpvs, cluster: Cluster, rounds: int, note: str, promised: bool
) -> Iterator[Figure]:
    text, size = _saved(cluster), len(cluster)
    theirs, ours, lists, starts = [], [], [], []
    for _ in range(rounds):
        starts.append(_seconds(lambda: space.run(["ipvsadm", "-C"])))
        theirs.append(_seconds(lambda: space.run(["ipvsadm", "-R"], text, timeout=300)))
        _expect(ipvs, cluster)
        space.run(["ipvsadm", "-C"])
        ours.append(_seconds(lambda: _load(ipvs, cluster)))
        lists.append(_seconds(lambda: _expect(ipvs, cluster)))
    shares = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    yield Figure("load by ipvsadm -R", size, statistics.median(theirs), "s", note=note)
    yield Figure("of that, the start of a command", size, statistics.median(starts), "s", note=note)
    yield Figure("load by KernelIpvs", size, statistics.median(ours), "s", note=note)
    limit = HALF if promised else None
    yield Figure("KernelIpvs : ipvsadm -R", size, statistics.median(shares), "", limit=limit, note=note)
    yield Figure("list by KernelIpvs", size, statistics.median(lists), "s", note=note)
    yield Figure("change of one real server", size, _change(ipvs, cluster), "µs", note=f"median of {CHANGES}")


def _cluster(size: int, endpoints: int) -> Cluster:
    def server(i: int) -> VirtualServer:
        return VirtualServer(ServerKey(Protocol.TCP, f"10.96.{i >> 8}.{i & 255}", 80), "rr")

    def real(i: int, n: int) -> RealServer:
        return RealServer(RealKey(f"10.{n}.{i >> 8}.{i & 255}", 8080))

    return [(server(i), [real(i, n) for n in range(endpoints)]) for i in range(size)]


def _saved(cluster: Cluster) -> str:
    """As `ipvsadm -Sn` writes it."""
    lines = []
    for server, reals in cluster:
        name = f"-t {server.key.address}:{server.key.port}"
        lines.append(f"-A {name} -s {server.scheduler}\n")
        lines += [f"-a {name} -r {real.key} -m -w {real.weight}\n" for real in reals]
    return "".join(lines)


def _load(ipvs: KernelIpvs, cluster: Cluster) -> None:
    operations = []
    for server, reals in cluster:
        operations.append(Operation(Verb.ADD_SERVER, server))
        operations += [Operation(Verb.ADD_REAL, server, real) for real in reals]
    if errors := ipvs.apply(operations):
        raise KernelError(f"benchmark: {len(errors)} operations were refused, the first: {next(iter(errors.values()))}")


def _expect(ipvs: KernelIpvs, cluster: Cluster) -> None:
    held = ipvs.servers(Family.IPV4)
    if {server.key: {real.key for real in reals} for server, reals in cluster} != {
        k: set(v.reals) for k, v in held.items()
    }:
        raise KernelError("benchmark: IPVS does not hold what was loaded")


def _change(ipvs: KernelIpvs, cluster: Cluster) -> float:
    """Microseconds that a change of a weight takes, each of another virtual server."""
    took = []
    for i in range(CHANGES):
        server, reals = cluster[i * 7 % len(cluster)]
        operation = Operation(Verb.EDIT_REAL, server, reals[i % len(reals)]._replace(weight=2 + i))
        took.append(_seconds(lambda operation=operation: ipvs.apply([operation])))  # type: ignore[misc]
    return statistics.median(took) * 1e6


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _in_machine(endpoints: int, sizes: Sequence[int], rounds: int) -> list[Figure]:
    with TemporaryDirectory(prefix="kproxy-bench-") as folder:
        asked = json.dumps({"endpoints": endpoints, "sizes": list(sizes), "rounds": rounds})
        command = [sys.executable, "-m", "benchmarks.ipvs", f"{INSIDE}/figures", asked]
        found = run_in_guest(Path(folder), command, "figures", MACHINE_SECONDS)
    return [Figure(**figure) for figure in json.loads(found)]


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    path, wanted = sys.argv[1:]
    Path(path).write_text(json.dumps([asdict(figure) for figure in _measure(**json.loads(wanted))]))
