"""What follows a successful sync: stale flows go, health check node ports answer for what is now programmed, and what
another mode left goes."""

from __future__ import annotations

from collections.abc import Mapping

from kproxy import logs
from kproxy.conntrack.reconciler import Reconciler
from kproxy.errors import KernelError
from kproxy.healthz.service_checks import HealthCheck
from kproxy.metrics.registry import Metrics
from kproxy.model.plan_store import PlanStore
from kproxy.model.plans import Family
from kproxy.modes.drivers import Driver
from kproxy.status.servers import Servers
from kproxy.sync.node_info import NodeSurroundings
from kproxy.sync.proxier import Report
from kproxy.sync.schedule import Work
from kproxy.sync.stale_rules import StaleRules

_log = logs.get("conntrack")


class PostSync:
    """The loop's Afterwork."""

    def __init__(
        self,
        reconcilers: Mapping[Family, Reconciler],
        servers: Servers,
        surroundings: NodeSurroundings,
        metrics: Metrics,
        driver: Driver,
        leftovers: StaleRules,
    ) -> None:
        self._reconcilers = reconcilers
        self._servers = servers
        self._surroundings = surroundings
        self._metrics = metrics
        self._driver = driver
        self._leftovers = leftovers

    def __call__(self, report: Report, book: PlanStore) -> None:
        self._end_stale_flows(report, book)
        checks = {
            port: HealthCheck(name.namespace, name.name, count) for port, (name, count) in book.health_checks().items()
        }
        self._servers.update_health_checks(checks, self._surroundings.health_check_ips())
        self._leftovers.synced(report)

    def _end_stale_flows(self, report: Report, book: PlanStore) -> None:
        """After the rules, never before: a packet in between would make the stale entry anew."""
        plans = self._driver.answering(report.family, book.pages[report.family].plans)
        touched = None if report.work is Work.EVERYTHING else report.touched.keys()
        abandoned = report.outcome.abandoned if report.outcome else ()
        ips = self._surroundings.node_port_ips(report.family)
        try:
            done = self._reconcilers[report.family].reconcile(plans, touched, ips, abandoned)
        except KernelError as error:
            _log.error(
                "Stale flows could not be removed; until the next sync tries again, UDP clients may talk to endpoints "
                "that left",
                error,
                family=report.family,
            )
            return
        if done.ran:
            self._metrics.conntrack(report.family, done.seconds, done.deleted)
        if done.deleted:
            _log.v(1).info("Removed stale flows", family=report.family, deleted=done.deleted, seen=done.seen)
