"""What a process and its children cost: processor time and resident memory, from proc(5)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")  # a second


class Stat(NamedTuple):
    """Of one process. ticks: user and system, its own and that of ended children which it waited for."""

    pid: int
    parent: int
    ticks: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process and all its descendants. cpu: seconds. resident: bytes of each, by its id; a page that several share
    counts for each of them."""

    cpu: float
    resident: Mapping[int, int]


def parse_stat(text: str) -> Stat:
    """/proc/PID/stat. The name in it may hold anything, parentheses too."""
    pid, rest = text.split(" ", 1)
    fields = rest.rpartition(")")[2].split()
    return Stat(int(pid), int(fields[1]), sum(map(int, fields[11:15])))


def parse_status(text: str) -> tuple[int, int]:
    """Of /proc/PID/status: VmRSS and VmHWM in bytes; 0 for a process that has ended and is not yet waited for."""
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", text, re.MULTILINE))
    return int(found.get("VmRSS", 0)) * 1024, int(found.get("VmHWM", 0)) * 1024


def family(root: int, stats: Iterable[Stat]) -> list[Stat]:
    """The process `root`, its children, theirs, and so on. Pure."""
    children: dict[int, list[Stat]] = {}
    found = []
    for stat in stats:
        children.setdefault(stat.parent, []).append(stat)
        if stat.pid == root:
            found.append(stat)
    for stat in found:  # grows as it goes
        found += children.get(stat.pid, ())
    return found


def resident(pid: int | str) -> tuple[int, int]:
    """A process's resident memory now and at its highest, in bytes. Raises OSError when there is no such process."""
    return parse_status((PROC / str(pid) / "status").read_text())


def usage(root: int) -> Usage:
    """Of `root` and its descendants, now; nothing when it has ended."""
    found = family(root, _stats())
    return Usage(sum(stat.ticks for stat in found) / TICKS, {stat.pid: memory(stat.pid)[0] for stat in found})


def members(root: int) -> list[int]:
    """The ids of `root` and its descendants, `root` first; none when it has ended."""
    return [stat.pid for stat in family(root, _stats())]


def memory(pid: int) -> tuple[int, int]:
    """As `resident`, and zeros for a process that is gone."""
    with contextlib.suppress(OSError):
        return resident(pid)
    return 0, 0


def _stats() -> Iterator[Stat]:
    for name in os.listdir(PROC):
        if name.isdecimal():
            with contextlib.suppress(OSError, ValueError):  # it ended meanwhile
                yield parse_stat((PROC / name / "stat").read_text())
