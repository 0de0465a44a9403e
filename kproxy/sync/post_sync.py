"""What follows a successful sync of one family: stale flows are deleted, health check node ports answer for what is now
programmed, and what another mode left is removed.

Each of these costs only itself when it fails, and is tried again with growing waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Protocol

from kproxy import logs
from kproxy.clocks import Clock
from kproxy.config.fields import KubeProxyConfiguration
from kproxy.conntrack.reconciler import Reconciled, Reconciler
from kproxy.containment import Containment
from kproxy.errors import KernelError
from kproxy.healthz.service_checks import HealthCheck
from kproxy.model.node_info import NodeInfo
from kproxy.model.plan_store import FamilyPlans, HealthChecks, checks_by_port, health_checks
from kproxy.model.plans import Family, Frontend, PortKey, ServicePlan
from kproxy.model.state import ServiceName
from kproxy.modes.settings import health_check_ips, node_port_ips
from kproxy.rate_limit import Backoff
from kproxy.sync.proxier import Report
from kproxy.sync.schedule import Work

_log = logs.get("conntrack")


class Servers(Protocol):
    """Answers health checks (see kproxy.status.servers)."""

    def update_health_checks(self, checks: Mapping[int, HealthCheck]) -> object:
        """Answer these from now on. Returns at once."""


class HealthCheckPorts:
    """Merges the health check node ports of both families, which the same servers answer. From any thread."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._lock = threading.Lock()
        self._families: dict[Family, HealthChecks] = {}
        self._owners: dict[int, ServiceName] = {}

    def update(self, family: Family, checks: HealthChecks, ips: Callable[[Collection[Family]], frozenset[str]]) -> None:
        """Replace the health checks of one family. ips: where those of a Service of some families listen."""
        with self._lock:
            self._families[family] = checks
            found = checks_by_port(self._families, self._owners)
            self._owners = {port: check.service for port, check in found.items()}
            self._servers.update_health_checks(
                {
                    port: HealthCheck(service.namespace, service.name, endpoints, ips(families))
                    for port, (service, endpoints, families) in found.items()
                }
            )


class Metrics(Protocol):
    """Counts deleted flows."""

    def conntrack(self, family: Family, seconds: float, deleted: int) -> None: ...


class StaleRules(Protocol):
    """Removes what another mode left, once this mode has programmed every family."""

    def synced(self, family: Family) -> None: ...


class FamilyPostSync:
    """The PostSync of one family, used by its proxier's thread.

    config: returns the configuration in force. answering: see Driver.answering.
    """

    def __init__(
        self,
        family: Family,
        reconciler: Reconciler,
        answering: Callable[[Family, Mapping[PortKey, ServicePlan], NodeInfo], Mapping[PortKey, ServicePlan]],
        config: Callable[[], KubeProxyConfiguration],
        health_check_ports: HealthCheckPorts,
        stale_rules: StaleRules,
        metrics: Metrics,
        clock: Clock,
        containment: Containment,
    ) -> None:
        self._family, self._reconciler, self._answering, self._config = family, reconciler, answering, config
        self._ports, self._stale_rules, self._metrics, self._clock = health_check_ports, stale_rules, metrics, clock
        self._conntrack_stage = containment.stage("conntrack", f"stale {family} flows stay until the next try")
        self._ports_stage = containment.stage("health-checks", "health check node ports answer as before")
        self._rules_stage = containment.stage("stale-rules", "what another mode left stays until the next full sync")
        self._backoff = Backoff()
        self._retry_at: float | None = None
        self._touched: set[PortKey] | None = set()
        self._abandoned: set[Frontend] = set()

    def synced(self, report: Report, plans: FamilyPlans, node: NodeInfo) -> None:
        """See PostSync.synced."""
        if report.work is Work.EVERYTHING:
            self._touched = None
        elif self._touched is not None:
            self._touched.update(report.changes)
        self._abandoned.update(report.outcome.abandoned if report.outcome else ())
        self._delete_stale_flows(plans, node)
        self._ports_stage.attempt(lambda: self._update_health_checks(plans, node), None)
        if report.work is Work.EVERYTHING:
            self._rules_stage.attempt(lambda: self._stale_rules.synced(self._family), None)

    def retry(self, plans: FamilyPlans, node: NodeInfo) -> None:
        """See PostSync.retry."""
        if self._retry_at is not None and self._clock.monotonic() >= self._retry_at:
            self._delete_stale_flows(plans, node)
        if self._ports_stage.failures and self._ports_stage.ready:
            self._ports_stage.attempt(lambda: self._update_health_checks(plans, node), None)

    def _update_health_checks(self, plans: FamilyPlans, node: NodeInfo) -> None:
        self._ports.update(self._family, health_checks(plans), partial(health_check_ips, self._config(), node))

    def _delete_stale_flows(self, plans: FamilyPlans, node: NodeInfo) -> None:
        """Delete stale flows, after the rules and never before: a packet in between would create the entry again."""
        try:
            done = self._conntrack_stage.attempt(lambda: self._reconcile(plans, node, self._abandoned), None)
        except KernelError as error:
            if not self._backoff.failures:
                _log.error(
                    "Stale flows could not be deleted; until that works, UDP clients may talk to endpoints that are "
                    "gone",
                    error,
                    family=self._family,
                )
            done = None
        else:
            if done is None:  # how far it came is unknown
                self._touched = None
        if done is None:
            self._retry_at = self._clock.monotonic() + self._backoff.next()
            return
        self._retry_at, self._touched = None, set()
        self._abandoned.clear()
        self._backoff.reset()
        if done.ran:
            self._metrics.conntrack(self._family, done.seconds, done.deleted)
        if done.deleted:
            _log.v(1).info("Deleted stale flows", family=self._family, deleted=done.deleted, seen=done.seen)

    def _reconcile(self, plans: FamilyPlans, node: NodeInfo, abandoned: Collection[Frontend]) -> Reconciled:
        wanted = self._answering(self._family, plans.plans, node)
        ips = node_port_ips(self._config(), self._family, node)
        return self._reconciler.reconcile(wanted, self._touched, ips, abandoned)
