"""Everything that the status page tells, collected from the threads that know it. Built when somebody looks."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Protocol

from kproxy import logs
from kproxy.errors import InvalidObject
from kproxy.health.clocks import Clock, rfc3339
from kproxy.health.identity import Identity
from kproxy.health.overview import Conflicting, FamilyStatus, Overview, Refusal, Sync, Unusable
from kproxy.health.proxier_health import FamilyHealth, Health, ProxierHealth
from kproxy.health.recent import KEPT, Latest, RecentLines
from kproxy.health.service_rows import service_page
from kproxy.health.zpages import EMULATED
from kproxy.model.conflicts import Conflict
from kproxy.model.plans import Family, PortKey, ServicePlan

__all__ = ["PAGE", "Board", "Programmed"]

PAGE = 50
"""Services a page."""


class Programmed(Protocol):
    """What is programmed, as the sync loop knows it. Called from any thread."""

    def plans(self) -> Sequence[ServicePlan]:
        """A copy of the plans of all families."""

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """By which names a plan is found in the kernel."""


class Board:
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

    def overview(self, health: ProxierHealth, query: str = "", page: int = 1, size: int = PAGE) -> Overview:
        """All of it as it is now, with one page of Services. With 10,000 Services it takes tenths of a second."""
        programmed = self._programmed
        plans: Sequence[ServicePlan] = programmed.plans() if programmed else ()
        with self._lock:
            refused = {(family, key): why for family, ports in self._refused.items() for key, why in ports.items()}
            conflicts = {(c.where, c.claimants): c for found in self._conflicts.values() for c in found}
            unusable = [(*key, seen) for key, seen in reversed(self._unusable.items())]
        state = health.health()
        return Overview(
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
