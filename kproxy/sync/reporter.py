"""Tells operators what the loop does: metrics, health, log lines, Kubernetes Events, the status page."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

from kproxy import logs
from kproxy.clocks import rfc3339
from kproxy.config.fields import ProxyMode
from kproxy.errors import InvalidObject, KernelError, RestoreError, UnusedObject
from kproxy.events.series import Notice
from kproxy.healthz.proxier_health import ProxierHealth
from kproxy.metrics.registry import Metrics
from kproxy.model.conflicts import Conflict, Conflicts
from kproxy.model.events import Event, Superseded
from kproxy.model.node_info import NodeInfo
from kproxy.model.plan_store import FamilyPlans
from kproxy.model.plans import Family, PortKey
from kproxy.modes.base import Outcome
from kproxy.status.schema import Sync
from kproxy.status.store import StatusStore
from kproxy.sync.proxier import Report
from kproxy.sync.schedule import Work

_log = logs.get("sync")
REMEMBERED_PROBLEMS = 4096
MOST_TOLD = 20
"""Conflicts of one sync, and Services of one conflict, that the log and Events tell; the status page has them all."""
MOST_NAMED = 5
"""Services that one line names."""


class Reporter:
    """The Observer of the plan queue, the controller and the proxiers. Every method may be called from any thread.

    mode: the mode that works at first, for no family until `serves` is called.
    """

    def __init__(
        self,
        metrics: Metrics,
        health: ProxierHealth,
        status: StatusStore,
        notify: Callable[[Notice], None],
        node_name: str,
        mode: ProxyMode = ProxyMode.IPTABLES,
    ) -> None:
        self._metrics = metrics
        self._mode = mode
        self._lock = threading.RLock()
        self._health = health
        self._status = status
        self._notify = notify
        self._node_name = node_name
        self._problems: OrderedDict[str, InvalidObject] = OrderedDict()
        self._refused: dict[Family, dict[PortKey, str]] = {}
        self._unreadable: dict[Family, dict[str, str]] = {}
        self._conflicts: dict[Family, Conflicts] = {family: Conflicts() for family in Family}
        self._pending = (0, 0)
        self._synced: set[Family] = set()
        self._families: tuple[Family, ...] = ()

    def serves(self, mode: ProxyMode, families: Collection[Family]) -> None:
        """Another mode works from now on, for these families."""
        with self._lock:
            self._mode, self._families = mode, tuple(families)
            self._synced.clear()
            for family in Family:  # another mode reads other things
                self._report_unreadable(family, {})

    def applied(self, events: Collection[Event], problems: Collection[InvalidObject]) -> None:
        """Count each problem; log and post each text once, since a relist brings the same objects again."""
        if not (problems or self._problems):
            return
        with self._lock:
            superseded = Superseded(events)
            self._status.unusable(superseded, [p for p in problems if not isinstance(p, UnusedObject)])
            for told in [told for told, problem in self._problems.items() if superseded.gone(problem)]:
                del self._problems[told]
            for problem in problems:
                text, unused = str(problem), isinstance(problem, UnusedObject)
                if not unused:
                    self._metrics.invalid_object(problem.kind)
                if text not in self._problems:
                    self._problems[text] = problem
                    if len(self._problems) > REMEMBERED_PROBLEMS:
                        self._problems.popitem(last=False)
                    self._report_problem(problem, text)

    def _report_problem(self, problem: InvalidObject, text: str) -> None:
        if isinstance(problem, UnusedObject):
            _log.v(2).info("Object is not used", kind=problem.kind, object=problem.name, why=text)
            return
        _log.warning("Object cannot be used", kind=problem.kind, object=problem.name, err=text)
        namespace, _, name = problem.name.rpartition("/")
        if problem.kind in ("Service", "EndpointSlice"):
            api = "v1" if problem.kind == "Service" else "discovery.k8s.io/v1"
            self._notify(Notice(problem.kind, namespace, name, "Unusable", "Sync", text, api_version=api))

    def queued(self, service_changes: int, endpoint_changes: int) -> None:
        with self._lock:
            services, endpoints = self._pending
            self._pending = (service_changes, endpoint_changes)
            new_services, new_endpoints = max(0, service_changes - services), max(0, endpoint_changes - endpoints)
            if services or endpoints:
                self._metrics.coalesced(new_services + new_endpoints)
            self._metrics.service_changes(new_services, service_changes)
            self._metrics.endpoint_changes(new_endpoints, endpoint_changes)
            now = time.time()
            for family in self._families:
                self._metrics.queued(family, now)
                self._health.queued_update(family)

    def planned(self) -> None:
        with self._lock:
            self._pending = (0, 0)
            self._metrics.service_changes(0, 0)
            self._metrics.endpoint_changes(0, 0)

    def drifted(self, family: Family) -> None:
        _log.v(2).info("Another program changed the rules; checking all of them", family=family)

    def starting(self, family: Family) -> None:
        self._metrics.sync_started(family)

    def node(self, node: NodeInfo | None) -> None:
        self._health.node_changed(node)

    def finished(self, report: Report, plans: FamilyPlans) -> None:
        full = report.work is Work.EVERYTHING
        source = report.outcome or report.error
        refusals = tuple(source.refusals) if source else ()
        with self._lock:
            if report.error is not None:
                self._failed(report, report.error, full)
            elif report.outcome is not None:
                self._succeeded(report, report.outcome, plans, full)
            if refusals:
                self._metrics.refused(report.family, len(refusals))
                self._status.refused_changes(report.family, refusals)
        self._status.synced(report.family, _record(report, full, refusals))

    def _failed(self, report: Report, error: KernelError, full: bool) -> None:
        family = report.family
        self._metrics.sync_failed(family, report.seconds, full=full)
        if isinstance(error, RestoreError):
            self._metrics.restore_failed(family, partial=not full)
        elif self._mode is ProxyMode.NFTABLES:
            self._metrics.nftables_failed(family, cleanup=False)
        _log.error(
            "Sync failed, will be retried; what was programmed before stays in place",
            error,
            family=family,
            full=full,
            failures=report.failures,
            retry_in=round(report.retry_in, 1),
        )
        note = f"{family} rules could not be programmed: {error}"
        self._notify(Notice("Node", "", self._node_name, "SyncFailed", "Sync", note))

    def _succeeded(self, report: Report, outcome: Outcome, plans: FamilyPlans, full: bool) -> None:
        family, now = report.family, time.time()
        self._metrics.sync_finished(family, report.seconds, full=full, at=now)
        self._health.updated(family)
        for table, total in outcome.rules_total.items():
            self._metrics.rules(family, table, total, outcome.rules_written.get(table, 0))
        self._metrics.no_local_endpoints("internal", family, plans.no_internal)
        self._metrics.no_local_endpoints("external", family, plans.no_external)
        for when in report.triggers:
            self._metrics.network_programming(family, max(0.0, now - when))
        self._report_refused(family, outcome.rejected)
        self._report_unreadable(family, outcome.unreadable)
        self._report_conflicts(family, self._conflicts[family].update(report.changes))
        if outcome.repaired and family in self._synced:
            self._metrics.repaired(family)
            _log.warning(
                "Repaired what another program had changed; if this recurs, find the program that writes there",
                family=family,
                mode=self._mode.value,
                seconds=round(report.seconds, 4),
            )
        if report.failures:
            _log.info("Synced again", family=family, failures=report.failures)
        line = _log.v(0) if family not in self._synced else _log.v(2)
        self._synced.add(family)
        line.info(
            "Synced",
            family=family,
            full=full,
            services=len(plans.plans),
            endpoints=plans.endpoints,
            changed=len(report.changes),
            bytes=outcome.bytes_written,
            transactions=outcome.transactions,
            seconds=round(report.seconds, 4),
        )

    def _report_refused(self, family: Family, refused: dict[PortKey, str]) -> None:
        """Say it once for each port and reason, and once when a port is taken at last."""
        before = self._refused.get(family, {})
        for key, why in refused.items():
            if before.get(key) != why:
                _log.error(
                    "The kernel refused a Service port; the next syncs retry it, and the others are programmed",
                    family=family,
                    service=str(key),
                    protocol=key.protocol.value,
                    err=why,
                )
                note = f"{family} port {key.port or key.protocol} was refused: {why}"
                self._notify(Notice("Service", key.namespace, key.name, "NotProgrammed", "Sync", note))
                self._count_refusal(family)
        for key in before.keys() - refused.keys():
            _log.info(
                "A Service port that had been refused is now programmed or deleted", family=family, service=str(key)
            )
        if before or refused:
            self._status.refused(family, refused)
        self._refused[family] = dict(refused)
        self._metrics.rejected(family, len(refused))

    def _report_unreadable(self, family: Family, unreadable: dict[str, str]) -> None:
        """Say it once for each part and reason, and once when it can be read again."""
        before, self._unreadable[family] = self._unreadable.get(family, {}), dict(unreadable)
        if before == unreadable:
            return
        for what, why in unreadable.items() - before.items():
            _log.warning(
                "Degraded: this cannot be checked because of what another program has in it; Services are programmed "
                "all the same. Move that to a table of its own, or install what reads it; it is looked at again",
                family=family,
                what=what,
                why=why,
            )
            note = f"{family} {what} cannot be checked, Services are programmed all the same: {why}"
            self._notify(Notice("Node", "", self._node_name, "Degraded", "Sync", note))
        for what in before.keys() - unreadable.keys():
            _log.info("Can be read again", family=family, what=what)
        self._status.unreadable(family, unreadable)
        self._metrics.unreadable(family, len(unreadable))
        self._health.degraded(family, tuple(f"{what}: {why}" for what, why in unreadable.items()))

    def _report_conflicts(self, family: Family, news: Collection[Conflict]) -> None:
        found = self._conflicts[family].found
        self._metrics.conflicts(family, len(found))
        self._status.conflicts(family, found)
        for conflict in list(news)[:MOST_TOLD]:
            services = _few(conflict.claimants)
            _log.warning(
                "Several Services claim the same address and port; only one gets its connections, change the others",
                where=conflict.where,
                services=services,
            )
            for namespace, name in sorted({_service(claimant) for claimant in conflict.claimants})[:MOST_TOLD]:
                note = f"{conflict.where} is asked for by {services}; only one of them gets it"
                self._notify(Notice("Service", namespace, name, "Conflict", "Sync", note))

    def _count_refusal(self, family: Family) -> None:
        """In the counter of the mode; IPVS mode has none for its virtual servers."""
        if self._mode is ProxyMode.NFTABLES:
            self._metrics.nftables_failed(family, cleanup=False)
        elif self._mode is not ProxyMode.IPVS:
            self._metrics.restore_failed(family, partial=True)


def _few(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _service(claimant: str) -> tuple[str, str]:
    """Namespace and name of a claimant, which may name a port as well."""
    namespace, _, rest = claimant.partition("/")
    return namespace, rest.split(" ", 1)[0].split(":", 1)[0]


def _record(report: Report, full: bool, refusals: Sequence[str]) -> Sync:
    outcome = report.outcome or Outcome()
    return Sync(
        ended=rfc3339(datetime.now(UTC).replace(microsecond=0)),
        seconds=round(report.seconds, 4),
        full=full,
        changed=len(report.changes),
        bytes=outcome.bytes_written,
        transactions=outcome.transactions,
        refused=len(outcome.rejected),
        refused_changes=len(refusals),
        repaired=outcome.repaired,
        error=str(report.error) if report.error else "",
    )
