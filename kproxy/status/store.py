"""The store of everything that the status shows, reported by the threads that know it.

Counters and recent events are kept as they are reported. The Services are asked for when somebody looks, so that their
rows cost nothing otherwise.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import NamedTuple, Protocol

from kproxy import logs
from kproxy.clocks import Clock, rfc3339
from kproxy.containment import Containment
from kproxy.errors import InvalidObject, one_line
from kproxy.healthz.proxier_health import FamilyHealth, Health, ProxierHealth
from kproxy.model.conflicts import Conflict
from kproxy.model.events import Superseded
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.status.rows import service_page
from kproxy.status.schema import (
    Conflicting,
    FamilyStatus,
    Identity,
    InternalError,
    LogLine,
    Refusal,
    Status,
    Sync,
    Unreadable,
    Unusable,
)

PAGE_SIZE = 50
"""Services a page."""
KEPT = 50
"""Syncs of a family, invalid objects, and different lines of the log that are kept, the latest."""
LONGEST_LINE = 600
"""Characters of a line of the log that are kept."""


class Programmed(Protocol):
    """The Services that are programmed. Both methods are called from any thread."""

    def plans(self) -> Sequence[ServicePlan]:
        """Return a copy of the plans of all families."""

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """Return the names by which a plan is found in the kernel."""


class StatusStore:
    """What the status shows. Every method may be called from any thread; only `status` takes noticeable time.

    identity: of this process, read at each `status`. node: this node's name. containment: whose failing stages are
    shown. Uptime counts from the creation of the store.
    """

    def __init__(self, identity: Identity, node: str, clock: Clock, containment: Containment) -> None:
        self.lines = LogLines()
        self._identity, self._node, self._clock, self._containment = identity, node, clock, containment
        self._started, self._began = clock.now(), clock.monotonic()
        self._lock = Lock()
        self._programmed: Programmed | None = None
        self._families: tuple[Family, ...] = ()
        self._syncs: dict[Family, deque[Sync]] = {family: deque(maxlen=KEPT) for family in Family}
        self._refused: dict[Family, Mapping[PortKey, str]] = {}
        self._refused_changes: dict[Family, _RefusedChanges] = {}
        self._unreadable: dict[Family, Mapping[str, str]] = {}
        self._conflicts: dict[Family, tuple[Conflict, ...]] = {}
        self._unusable: OrderedDict[str, tuple[InvalidObject, str]] = OrderedDict()

    def listening(self) -> AbstractContextManager[None]:
        """Keep the warnings and errors that kproxy logs meanwhile."""
        return logs.listening(self.lines.add)

    def show(self, programmed: Programmed, families: Iterable[Family]) -> None:
        """Show the Services of `programmed`, which programs `families`, from now on."""
        with self._lock:
            self._programmed, self._families = programmed, tuple(families)

    def synced(self, family: Family, sync: Sync) -> None:
        """Add a sync that ended."""
        with self._lock:
            self._syncs[family].appendleft(sync)

    def refused(self, family: Family, ports: Mapping[PortKey, str]) -> None:
        """Set the ports of `family` that the kernel refuses, with the reasons."""
        with self._lock:
            self._refused[family] = dict(ports)

    def refused_changes(self, family: Family, refusals: Sequence[str]) -> None:
        """Add changes of `family` that the kernel refused, a line each."""
        with self._lock:
            before = self._refused_changes.get(family, _NONE_REFUSED)
            seen = _seconds(self._clock.now())
            self._refused_changes[family] = _RefusedChanges(before.number + len(refusals), refusals[-1], seen)

    def unreadable(self, family: Family, what: Mapping[str, str]) -> None:
        """Set what full checks of `family` cannot read, with the reasons."""
        with self._lock:
            self._unreadable[family] = dict(what)

    def conflicts(self, family: Family, found: Iterable[Conflict]) -> None:
        """Set the conflicts of `family`."""
        with self._lock:
            self._conflicts[family] = tuple(found)

    def unusable(self, superseded: Superseded, found: Iterable[InvalidObject]) -> None:
        """Drop the problems in `superseded`, then add those that were found."""
        with self._lock:
            for text in [text for text, (problem, _) in self._unusable.items() if problem in superseded]:
                del self._unusable[text]
            for problem in found:
                self._unusable.pop(str(problem), None)
                self._unusable[str(problem)] = problem, _seconds(self._clock.now())
            while len(self._unusable) > KEPT:
                self._unusable.popitem(last=False)

    def status(self, health: ProxierHealth, query: str = "", page: int = 1, size: int = PAGE_SIZE) -> Status:
        """Return the status as it is now, with one page of Services; some tenths of a second for 10,000 Services."""
        with self._lock:
            programmed, families = self._programmed, self._families
            syncs = {family: tuple(self._syncs[family]) for family in families}
            changes = {family: self._refused_changes.get(family, _NONE_REFUSED) for family in families}
            refused = {(family, key): why for family, ports in self._refused.items() for key, why in ports.items()}
            unreadable = [
                Unreadable(family=family.value, what=what, reason=why)
                for family in families
                for what, why in self._unreadable.get(family, {}).items()
            ]
            conflicts = {(c.where, c.claimants): c for found in self._conflicts.values() for c in found}
            unusable = list(reversed(self._unusable.items()))
        plans: Sequence[ServicePlan] = programmed.plans() if programmed else ()
        state = health.health()
        return Status(
            program="kproxy",
            version=self._identity.version,
            emulates=self._identity.emulates,
            node=self._node,
            mode=self._identity.mode,
            started=_seconds(self._started),
            uptime_seconds=int(self._clock.monotonic() - self._began),
            now=_seconds(state.now),
            healthy=state.healthy,
            node_eligible=state.node_eligible,
            families=tuple(_family(family, state, plans, syncs[family], changes[family]) for family in families),
            services=service_page(plans, programmed.names if programmed else _nameless, refused, query, page, size),
            refused=tuple(
                Refusal(family=family.value, service=_port_name(key), reason=why)
                for (family, key), why in sorted(refused.items())
            ),
            unreadable=tuple(unreadable),
            conflicts=tuple(Conflicting(where=c.where, services=c.claimants) for _, c in sorted(conflicts.items())),
            unusable=tuple(
                Unusable(seen=seen, kind=problem.kind, object=problem.name, reason=why)
                for why, (problem, seen) in unusable
            ),
            log=self.lines.lines(),
            internal_errors=tuple(self._internal_errors()),
        )

    def _internal_errors(self) -> Iterator[InternalError]:
        now, monotonic = self._clock.now(), self._clock.monotonic()
        for stage in self._containment.failing():
            since = _seconds(now - timedelta(seconds=monotonic - stage.since))
            yield InternalError(stage=stage.stage, failures=stage.failures, error=stage.error, since=since)


class _RefusedChanges(NamedTuple):
    """Changes that the kernel refused, since the start: how many, the last one, and when that was."""

    number: int
    last: str
    at: str


_NONE_REFUSED = _RefusedChanges(0, "", "")


def _family(
    family: Family, state: Health, plans: Iterable[ServicePlan], syncs: tuple[Sync, ...], refused: _RefusedChanges
) -> FamilyStatus:
    health = state.families.get(family, FamilyHealth(None, True))
    endpoints = [plan.endpoint_count for plan in plans if plan.family is family]
    return FamilyStatus(
        family=family.value,
        healthy=health.healthy,
        last_updated=_seconds(health.last_updated) if health.last_updated else "",
        ports=len(endpoints),
        endpoints=sum(endpoints),
        refused_changes=refused.number,
        last_refused=refused.last,
        refused_at=refused.at,
        syncs=syncs,
    )


def _nameless(plan: ServicePlan) -> tuple[str, ...]:
    return ()


def _port_name(key: PortKey) -> str:
    return str(key) if key.port else f"{key} ({key.protocol})"


def _seconds(moment: datetime) -> str:
    return rfc3339(moment.replace(microsecond=0))


# ---------------------------------------------------------------- the log


class _Key(NamedTuple):
    """What is the same in two lines of which one repeats the other; numbers may differ (attempts, seconds)."""

    level: str
    part: str
    message: str
    words: str


@dataclass(slots=True)
class _Entry:
    first: float
    last: float
    text: str
    times: int = 1


class LogLines:
    """The last different warnings and errors of the log; repeats are counted. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()

    def add(self, line: logs.Line) -> None:
        """Add a line, or count it as a repeat."""
        words = {name: value for name, value in line.fields.items() if type(value) not in (int, float)}
        key = _Key(line.level, line.part, line.message, one_line(_shown(words), LONGEST_LINE))
        text = one_line(line.message + _shown(line.fields), LONGEST_LINE)
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is None:
                entry = _Entry(line.created, line.created, text)
            else:
                entry.last, entry.text, entry.times = line.created, text, entry.times + 1
            self._entries[key] = entry
            while len(self._entries) > KEPT:
                self._entries.popitem(last=False)

    def lines(self) -> tuple[LogLine, ...]:
        """Return the lines, the latest first."""
        with self._lock:
            return tuple(
                LogLine(
                    first=_moment(entry.first),
                    last=_moment(entry.last),
                    times=entry.times,
                    level=key.level,
                    part=key.part,
                    text=entry.text,
                )
                for key, entry in reversed(self._entries.items())
            )


def _shown(fields: Mapping[str, object]) -> str:
    return "".join(f" {name}={json.dumps(value, ensure_ascii=False)}" for name, value in fields.items())


def _moment(seconds: float) -> str:
    return rfc3339(datetime.fromtimestamp(int(seconds), UTC))
