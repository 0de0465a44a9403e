"""The metrics that kproxy exports: kube-proxy's by name, type, labels and buckets, and its own under kproxy_.

The rest of kproxy uses `Metrics`, whose narrow methods each record one kind of occurrence. They cost a dictionary
look-up and an addition, and may be called from any thread.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Collection
from typing import Generic, Literal, NamedTuple, TypeVar

from prometheus_client import (
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from kproxy.containment import Containment
from kproxy.metrics.collectors import (
    ClientMetrics,
    ContainedRegistry,
    ForwarderStatistics,
    ForwardingCollector,
    InternalErrors,
    LocalhostRejectedCollector,
    LocalhostRejectedReader,
    NfacctCollector,
    NfacctReader,
    Slis,
)
from kproxy.model.plans import Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The format of `Metrics.exposition`."""

_SYNC_BUCKETS = tuple(0.001 * 2**i for i in range(15))
# The 0 is a slip in kube-proxy's source, but series can be summed over nodes only if all have the same buckets.
_PROGRAMMING_BUCKETS = (0, 0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))

M = TypeVar("M", bound=MetricWrapperBase)


class Described(NamedTuple):
    """The description of a metric. name: as in the text format. buckets: of a histogram, without the infinite one."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()


class _Children(dict[tuple[str, ...], M], Generic[M]):
    """The labelled children of one metric, each created when it is first needed."""

    def __init__(self, metric: M) -> None:
        super().__init__()
        self.metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> M:
        child = self[labels] = self.metric.labels(*labels)
        return child


class Metrics:
    """Everything kproxy counts.

    families: the IP families that this node serves; their failure counters start at 0, so that the first failure
    shows as an increase. mode: the proxy mode, for the same reason. version: kproxy's own. containment: its failures
    are exported, and a collector that fails is contained by it.

    client: requests to the API server. slis: health checks of the metrics address.
    """

    def __init__(self, families: Collection[Family], mode: str, version: str, containment: Containment) -> None:
        # client_golang exports no _created series; this library does unless told otherwise, for the whole process.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = ContainedRegistry(containment)
        self._nfacct = NfacctCollector()
        self._forwarding = ForwardingCollector()
        self._localhost_rejected = LocalhostRejectedCollector()
        self._internal_errors = InternalErrors(containment)
        for collector in self._collectors:
            self._registry.register(collector)
        self.client = ClientMetrics(self._registry)
        self.slis = Slis()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._define_sync()
        self._define_modes()
        self._define_health()
        self._define_own()
        self._version = version
        self._serving: tuple[str, ...] = ()
        self.serves(families, mode)

    @property
    def _collectors(self) -> tuple[NfacctCollector, ForwardingCollector, LocalhostRejectedCollector, InternalErrors]:
        """What is read at each scrape."""
        return self._nfacct, self._forwarding, self._localhost_rejected, self._internal_errors

    def serves(self, families: Collection[Family], mode: str) -> None:
        """Set what is served from now on: `families` in `mode`."""
        self._families = len(families)
        before, self._serving = self._serving, (self._version, mode, platform.python_version())
        self._build.labels(*self._serving).set(1)
        if before not in ((), self._serving):
            self._build.remove(*before)
        self._start_at_zero(families, mode)

    def _define_sync(self) -> None:
        family = ["ip_family"]
        sync = "kubeproxy_sync_proxy_rules"
        self._sync = self._histogram(f"{sync}_duration_seconds", "Seconds that a sync took.", _SYNC_BUCKETS)
        self._full = self._histogram(
            "kubeproxy_sync_full_proxy_rules_duration_seconds", "Seconds that a full sync took.", _SYNC_BUCKETS
        )
        self._partial = self._histogram(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "Seconds that a sync of only the changes took.",
            _SYNC_BUCKETS,
        )
        self._programming = self._histogram(
            "kubeproxy_network_programming_duration_seconds",
            "Seconds from a change of a Service or its pods to the rules that reflect it.",
            _PROGRAMMING_BUCKETS,
        )
        self._last_sync = self._gauge(
            f"{sync}_last_timestamp_seconds", "When a sync last succeeded, Unix time.", family
        )
        self._last_queued = self._gauge(
            f"{sync}_last_queued_timestamp_seconds", "When a sync was last asked for, Unix time.", family
        )
        registry = self._registry
        self._endpoints_seen = Counter(f"{sync}_endpoint_changes_total", "Endpoint changes seen.", registry=registry)
        self._services_seen = Counter(
            f"{sync}_service_changes_total", "Service changes seen, each once per IP family.", registry=registry
        )
        self._endpoints_pending = Gauge(
            f"{sync}_endpoint_changes_pending", "Endpoint changes not yet programmed.", registry=registry
        )
        self._services_pending = Gauge(
            f"{sync}_service_changes_pending", "Service changes not yet programmed.", registry=registry
        )
        self._no_local = self._gauge(
            f"{sync}_no_local_endpoints_total",
            "Services with a Local traffic policy that have endpoints, none of them here.",
            ["traffic_policy", *family],
        )

    def _define_modes(self) -> None:
        family = ["ip_family"]
        sync = "kubeproxy_sync_proxy_rules"
        self._rules_total = self._gauge(
            f"{sync}_iptables_total",
            "iptables rules in chains that kproxy owns; jumps in built-in chains do not count.",
            ["table", *family],
        )
        self._rules_last = self._gauge(
            f"{sync}_iptables_last", "Those of them that the last sync wrote.", ["table", *family]
        )
        self._restore_failures = self._counter(
            f"{sync}_iptables_restore_failures_total", "Times that iptables-restore failed.", family
        )
        self._partial_restore_failures = self._counter(
            f"{sync}_iptables_partial_restore_failures_total",
            "Times that iptables-restore failed on a partial sync, so that a full one followed.",
            family,
        )
        self._nft_failures = self._counter(
            f"{sync}_nftables_sync_failures_total", "Times that an nftables transaction failed.", family
        )
        self._nft_cleanup_failures = self._counter(
            f"{sync}_nftables_cleanup_failures_total", "Times that stale nftables chains could not be removed.", family
        )
        localhost = "kubeproxy_nftables_localhost_nodeport_listener"
        self._localhost_listeners = self._gauge(
            f"{localhost}s", "TCP node ports that are served on loopback by a process, in any mode.", family
        )
        self._localhost_failures = self._counter(
            f"{localhost}_creation_failures_total",
            "Attempts to serve a node port on loopback that failed; each is repeated.",
            family,
        )
        self._conntrack_seconds = self._histogram(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "Seconds that the search for stale conntrack entries took.",
            _SYNC_BUCKETS,
        )
        self._conntrack_deleted = self._counter(
            "kubeproxy_conntrack_reconciler_deleted_entries_total", "Stale conntrack entries deleted.", family
        )

    def _define_health(self) -> None:
        self._healthz = self._counter("kubeproxy_proxy_healthz_total", "Answers of /healthz by HTTP status.", ["code"])
        self._livez = self._counter("kubeproxy_proxy_livez_total", "Answers of /livez by HTTP status.", ["code"])

    def _define_own(self) -> None:
        family = ["ip_family"]
        self._build = Gauge(
            "kproxy_build_info",
            "Always 1; its labels say which version runs in which mode.",
            ["version", "mode", "python"],
            registry=self._registry,
        )
        self._running = self._gauge("kproxy_sync_running", "1 while a sync runs.", family)
        self._sync_failures = self._counter("kproxy_sync_failures_total", "Failed syncs; each is retried.", family)
        self._invalid = self._counter(
            "kproxy_invalid_objects_total",
            "Invalid Kubernetes objects, counted each time one was read.",
            ["kind"],
        )
        self._repairs = self._counter(
            "kproxy_foreign_changes_repaired_total",
            "Syncs that repaired rules which another program had changed or removed.",
            family,
        )
        self._refused = self._counter(
            "kproxy_refused_changes_total",
            "Changes that the kernel refused, whether they could be made in another way or not.",
            family,
        )
        self._rejected = self._gauge(
            "kproxy_rejected_service_ports",
            "Service ports not programmed because the kernel refuses them.",
            family,
        )
        self._conflicts = self._gauge(
            "kproxy_conflicting_frontends",
            "Node ports and external addresses that more than one Service claims.",
            family,
        )
        self._unreadable = self._gauge(
            "kproxy_unreadable_kernel_objects",
            "Tables and sets that full checks cannot read because of what another program has in them; Services are "
            "programmed nevertheless.",
            family,
        )
        self._coalesced = Counter(
            "kproxy_coalesced_changes_total",
            "Changes that shared a sync with an earlier change.",
            registry=self._registry,
        )
        self._reloads = self._counter(
            "kproxy_config_reloads_total",
            "Changes of the configuration file, applied or refused.",
            ["outcome"],
        )
        self._k8s_events = self._counter(
            "kproxy_kubernetes_events_total", "Kubernetes Events, by outcome: posted, failed or dropped.", ["outcome"]
        )

    def _start_at_zero(self, families: Collection[Family], mode: str) -> None:
        per_family = [self._sync_failures, self._repairs, self._refused]
        if mode in ("iptables", "ipvs", "userspace"):
            per_family.append(self._restore_failures)
        if mode in ("iptables", "userspace"):
            per_family.append(self._partial_restore_failures)
        if mode == "nftables":
            per_family += [self._nft_failures, self._nft_cleanup_failures, self._localhost_failures]
        for children in per_family:
            for family in families:
                children[family,].inc(0)
        if mode == "nftables":
            for family in families:
                self._localhost_listeners[family,].inc(0)
        for outcome in ("applied", "refused"):
            self._reloads[outcome,].inc(0)
        for code in ("200", "503"):
            self._healthz[code,].inc(0)
            self._livez[code,].inc(0)

    def _histogram(self, name: str, documentation: str, buckets: Collection[float]) -> _Children[Histogram]:
        return _Children(Histogram(name, documentation, ["ip_family"], buckets=tuple(buckets), registry=self._registry))

    def _gauge(self, name: str, documentation: str, labels: list[str]) -> _Children[Gauge]:
        return _Children(Gauge(name, documentation, labels, registry=self._registry))

    def _counter(self, name: str, documentation: str, labels: list[str]) -> _Children[Counter]:
        return _Children(Counter(name, documentation, labels, registry=self._registry))

    def queued(self, family: Family, at: float) -> None:
        """Note that a sync of `family` was requested at the Unix time `at`."""
        self._last_queued[family,].set(at)

    def sync_started(self, family: Family) -> None:
        """Note that a sync of `family` begins."""
        self._running[family,].set(1)

    def sync_finished(self, family: Family, seconds: float, *, full: bool, at: float) -> None:
        """Count a sync that succeeded at the Unix time `at`. full: it compared everything."""
        self._sync_ended(family, seconds, full)
        self._last_sync[family,].set(at)

    def sync_failed(self, family: Family, seconds: float, *, full: bool) -> None:
        """Count a sync that failed."""
        self._sync_ended(family, seconds, full)
        self._sync_failures[family,].inc()

    def _sync_ended(self, family: Family, seconds: float, full: bool) -> None:
        self._running[family,].set(0)
        self._sync[family,].observe(seconds)
        (self._full if full else self._partial)[family,].observe(seconds)

    def network_programming(self, family: Family, seconds: float) -> None:
        """Observe the seconds from a change in the cluster to the kernel's rules."""
        self._programming[family,].observe(seconds)

    def endpoint_changes(self, seen: int, pending: int) -> None:
        """Add `seen` EndpointSlice changes, and set how many of all are pending."""
        self._endpoints_seen.inc(seen)
        self._endpoints_pending.set(pending)

    def service_changes(self, seen: int, pending: int) -> None:
        """Add `seen` Service changes, and set how many of all are pending.

        As in kube-proxy, where each family's tracker counts every Service, whatever the Service's own families are.
        """
        self._services_seen.inc(seen * self._families)
        self._services_pending.set(pending)

    def coalesced(self, changes: int) -> None:
        """Count `changes` that joined a sync which was already due."""
        self._coalesced.inc(changes)

    def rules(self, family: Family, table: str, total: int, written: int) -> None:
        """Set how many rules of ours an iptables table holds, and how many of them the last sync wrote."""
        self._rules_total[table, family].set(total)
        self._rules_last[table, family].set(written)

    def no_local_endpoints(self, policy: Literal["internal", "external"], family: Family, services: int) -> None:
        """Set how many Services have traffic policy Local and endpoints, but none on this node."""
        self._no_local[policy, family].set(services)

    def restore_failed(self, family: Family, *, partial: bool) -> None:
        """Count a failure of iptables-restore. partial: its input was only what changed."""
        (self._partial_restore_failures if partial else self._restore_failures)[family,].inc()

    def nftables_failed(self, family: Family, *, cleanup: bool) -> None:
        """Count an nftables transaction that failed. cleanup: it was to remove stale chains."""
        (self._nft_cleanup_failures if cleanup else self._nft_failures)[family,].inc()

    def localhost_listeners(self, family: Family, number: int) -> None:
        """Set how many node ports are served on loopback."""
        self._localhost_listeners[family,].set(number)

    def localhost_listener_failed(self, family: Family) -> None:
        """Count a node port that could not be served on loopback."""
        self._localhost_failures[family,].inc()

    def conntrack(self, family: Family, seconds: float, deleted: int) -> None:
        """Count a search for stale conntrack entries and how many it deleted."""
        self._conntrack_seconds[family,].observe(seconds)
        self._conntrack_deleted[family,].inc(deleted)

    def invalid_object(self, kind: str) -> None:
        """Count an object of the cluster that could not be used."""
        self._invalid[kind,].inc()

    def repaired(self, family: Family) -> None:
        """Count a full sync that repaired what another program had changed."""
        self._repairs[family,].inc()

    def refused(self, family: Family, changes: int) -> None:
        """Count changes that the kernel refused."""
        self._refused[family,].inc(changes)

    def rejected(self, family: Family, ports: int) -> None:
        """Set how many Service ports the kernel refuses."""
        self._rejected[family,].set(ports)

    def unreadable(self, family: Family, objects: int) -> None:
        """Set how many tables and sets full checks cannot read."""
        self._unreadable[family,].set(objects)

    def conflicts(self, family: Family, frontends: int) -> None:
        """Set how many node ports and external addresses are claimed by several Services."""
        self._conflicts[family,].set(frontends)

    def healthz(self, status: int) -> None:
        """Count an answer of /healthz by its HTTP status."""
        self._healthz[str(status),].inc()

    def livez(self, status: int) -> None:
        """Count an answer of /livez by its HTTP status."""
        self._livez[str(status),].inc()

    def kubernetes_event(self, outcome: Literal["posted", "failed", "dropped"]) -> None:
        """Count an Event that was created or updated, that could not be, or that was not tried (too many)."""
        self._k8s_events[outcome,].inc()

    def config_reloaded(self, outcome: Literal["applied", "refused"]) -> None:
        """Count a change of the configuration file."""
        self._reloads[outcome,].inc()

    def read_nfacct_with(self, read: NfacctReader) -> None:
        """Call `read` at each scrape and export the kernel's nfacct counters that it returns."""
        self._nfacct.read = read

    def read_forwarder_with(self, read: Callable[[], ForwarderStatistics]) -> None:
        """Call `read` at each scrape and export the forwarder's statistics, unless it raises KernelError."""
        self._forwarding.read = read

    def read_localhost_rejected_with(self, read: LocalhostRejectedReader) -> None:
        """Call `read` at each scrape and export what it returns."""
        self._localhost_rejected.read = read

    def described(self) -> list[Described]:
        """Describe every metric of kproxy, /metrics/slis included, but not those of the process."""
        kept = [_described(metric) for metric in vars(self).values() if isinstance(metric, MetricWrapperBase)]
        kept += [_described(children.metric) for children in vars(self).values() if isinstance(children, _Children)]
        kept += [_described(metric) for metric in (*self.client.all, *self.slis.all)]
        return kept + [_of_family(family) for collector in self._collectors for family in collector.describe()]

    def exposition(self) -> bytes:
        """Return all metrics in the Prometheus text format 0.0.4. May take milliseconds: not for a sync thread."""
        # Bucket bounds as client_golang writes them (le="1", not le="1.0"), so that kproxy's and kube-proxy's
        # series of one cluster add up.
        return re.sub(rb'(?<=le=")(\d+)\.0(?=")', rb"\1", self._registry.exposition())


def _described(metric: MetricWrapperBase) -> Described:
    # The library has no public access to a metric's labels and buckets.
    bounds = getattr(metric, "_kwargs", {}).get("buckets", ())
    kind = metric._type or "untyped"
    name = f"{metric._name}_total" if kind == "counter" else metric._name
    return Described(name, kind, tuple(metric._labelnames), metric._documentation, tuple(bounds))


def _of_family(family: Metric) -> Described:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return Described(name, family.type, tuple(getattr(family, "_labelnames", ())), family.documentation)
