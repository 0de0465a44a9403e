"""Everything that the status page tells, collected from the threads that know it. Built when somebody looks.

What happened lately, kept in memory for the status page: syncs and the like, and the log's warnings and errors.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import Generic, NamedTuple, Protocol, TypeVar

from kproxy import logs
from kproxy.clocks import Clock, rfc3339
from kproxy.errors import InvalidObject, one_line
from kproxy.healthz.proxier_health import FamilyHealth, Health, ProxierHealth
from kproxy.model.conflicts import Conflict
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.status.rows import service_page
from kproxy.status.schema import Conflicting, FamilyStatus, Identity, LogLine, Refusal, Status, Sync, Unusable
from kproxy.status.zpages import EMULATED

PAGE = 50
"""Services a page."""


class Programmed(Protocol):
    """What is programmed, as the sync loop knows it. Called from any thread."""

    def plans(self) -> Sequence[ServicePlan]:
        """A copy of the plans of all families."""

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """By which names a plan is found in the kernel."""


class StatusStore:
    """Every method may be called from any thread, and none waits for long but `overview`.

    identity: looked at each time. node: this node's name. CLOCK's time now counts as the process's start.
    """

    def __init__(self, identity: Identity, node: str, clock: Clock) -> None:
        self.lines = RecentLines()
        self._identity, self._node, self._clock = identity, node, clock
        self._started, self._began = clock.now(), clock.monotonic()
        self._lock = Lock()
        self._programmed: Programmed | None = None
        self._families: tuple[Family, ...] = ()
        self._syncs: dict[Family, Latest[Sync]] = {family: Latest() for family in Family}
        self._refused: dict[Family, Mapping[PortKey, str]] = {}
        self._conflicts: dict[Family, tuple[Conflict, ...]] = {}
        self._unusable: OrderedDict[tuple[str, str, str], str] = OrderedDict()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep the warnings and errors that kproxy logs meanwhile."""
        log = logging.getLogger(logs.ROOT)
        log.addHandler(self.lines)
        try:
            yield
        finally:
            log.removeHandler(self.lines)

    def show(self, programmed: Programmed, families: Iterable[Family]) -> None:
        """From now on Services are asked of PROGRAMMED, which programs FAMILIES."""
        self._programmed, self._families = programmed, tuple(families)

    def synced(self, family: Family, sync: Sync) -> None:
        """A sync of FAMILY ended."""
        self._syncs[family].add(sync)

    def refused(self, family: Family, ports: Mapping[PortKey, str]) -> None:
        """The ports of FAMILY that the kernel refuses at present, with why."""
        with self._lock:
            self._refused[family] = dict(ports)

    def conflicts(self, family: Family, found: Iterable[Conflict]) -> None:
        """The conflicts of FAMILY that exist at present."""
        with self._lock:
            self._conflicts[family] = tuple(found)

    def unusable(self, problem: InvalidObject) -> None:
        """An object cannot be used."""
        key = (problem.kind, problem.name, str(problem))
        with self._lock:
            self._unusable.pop(key, None)
            self._unusable[key] = rfc3339(self._clock.now().replace(microsecond=0))
            while len(self._unusable) > KEPT:
                self._unusable.popitem(last=False)

    def overview(self, health: ProxierHealth, query: str = "", page: int = 1, size: int = PAGE) -> Status:
        """All of it as it is now, with one page of Services. With 10,000 Services it takes tenths of a second."""
        programmed = self._programmed
        plans: Sequence[ServicePlan] = programmed.plans() if programmed else ()
        with self._lock:
            refused = {(family, key): why for family, ports in self._refused.items() for key, why in ports.items()}
            conflicts = {(c.where, c.claimants): c for found in self._conflicts.values() for c in found}
            unusable = [(*key, seen) for key, seen in reversed(self._unusable.items())]
        state = health.health()
        return Status(
            program="kproxy",
            version=self._identity.version,
            emulates=EMULATED,
            node=self._node,
            mode=self._identity.mode,
            started=rfc3339(self._started.replace(microsecond=0)),
            uptime_seconds=int(self._clock.monotonic() - self._began),
            now=rfc3339(state.now.replace(microsecond=0)),
            healthy=state.healthy,
            node_eligible=state.node_eligible,
            families=tuple(self._family(family, state, plans) for family in self._families),
            services=service_page(plans, programmed.names if programmed else _nameless, refused, query, page, size),
            refused=tuple(
                Refusal(family=family.value, service=_port_name(key), reason=why)
                for (family, key), why in sorted(refused.items())
            ),
            conflicts=tuple(Conflicting(where=c.where, services=c.claimants) for _, c in sorted(conflicts.items())),
            unusable=tuple(
                Unusable(seen=seen, kind=kind, object=name, reason=why) for kind, name, why, seen in unusable
            ),
            log=self.lines.lines(),
        )

    def _family(self, family: Family, state: Health, plans: Iterable[ServicePlan]) -> FamilyStatus:
        found = state.families.get(family, FamilyHealth(None, True))
        mine = [plan.endpoint_count for plan in plans if plan.family is family]
        return FamilyStatus(
            family=family.value,
            healthy=found.healthy,
            last_updated=rfc3339(found.last_updated.replace(microsecond=0)) if found.last_updated else "",
            ports=len(mine),
            endpoints=sum(mine),
            syncs=self._syncs[family].items(),
        )


def _nameless(plan: ServicePlan) -> tuple[str, ...]:
    return ()


def _port_name(key: PortKey) -> str:
    return str(key) if key.port else f"{key} ({key.protocol})"


KEPT = 50
LONGEST = 600  # characters of a line

T = TypeVar("T")


class Latest(Generic[T]):
    """The last KEPT things, latest first. From any thread."""

    def __init__(self, kept: int = KEPT) -> None:
        self._lock = threading.Lock()
        self._held: deque[T] = deque(maxlen=kept)

    def add(self, item: T) -> None:
        with self._lock:
            self._held.appendleft(item)

    def items(self) -> tuple[T, ...]:
        with self._lock:
            return tuple(self._held)


class _Line(NamedTuple):
    """What makes two lines the same: numbers in it may differ (how often, when again)."""

    level: str
    part: str
    message: str
    words: str


@dataclass(slots=True)
class _Said:
    first: float
    last: float
    text: str
    times: int = 1


class RecentLines(logging.Handler):
    """A handler that keeps the last KEPT different warnings and errors; the same again is only counted."""

    def __init__(self, kept: int = KEPT) -> None:
        super().__init__(logging.WARNING)
        self._kept = kept
        self._held: OrderedDict[_Line, _Said] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        """As logging.Handler.emit, which holds the lock."""
        part, message, fields = logs.told(record)
        level = "error" if record.levelno >= logging.ERROR else "warning"
        words = {name: value for name, value in fields.items() if type(value) not in (int, float)}
        line = _Line(level, part, message, one_line(_shown(words), LONGEST))
        text = one_line(message + _shown(fields), LONGEST)
        said = self._held.pop(line, None)
        if said is None:
            said = _Said(record.created, record.created, text)
        else:
            said.last, said.text, said.times = record.created, text, said.times + 1
        self._held[line] = said
        while len(self._held) > self._kept:
            self._held.popitem(last=False)

    def lines(self) -> tuple[LogLine, ...]:
        """What is kept, latest first. From any thread."""
        self.acquire()
        try:
            held = [(line, said.first, said.last, said.text, said.times) for line, said in reversed(self._held.items())]
        finally:
            self.release()
        return tuple(
            LogLine(first=_time(first), last=_time(last), times=times, level=line.level, part=line.part, text=text)
            for line, first, last, text, times in held
        )


def _shown(fields: Mapping[str, object]) -> str:
    return "".join(f" {name}={json.dumps(value, ensure_ascii=False)}" for name, value in fields.items())


def _time(seconds: float) -> str:
    return rfc3339(datetime.fromtimestamp(int(seconds), UTC))
