"""The metrics that kproxy exports: kube-proxy's by name, type, labels and buckets, and its own under kproxy_.

`Metrics` is the only thing that the rest of kproxy sees: narrow methods that say what happened. They are cheap enough
for the sync loop (a dictionary look-up and an addition) and safe from any thread.
"""

from __future__ import annotations

import logging
import platform
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Generic, Literal, NamedTuple, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from kproxy.errors import KernelError
from kproxy.kernel.constants import INVALID_DROPPED, LOCALHOST_ACCEPTED
from kproxy.metrics.collectors import ClientMetrics, Figures, ForwardingCollector, Slis
from kproxy.model.plans import Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The format of `Metrics.exposition`."""

NfacctReader = Callable[[], Mapping[str, int]]
"""Packet counts by the name of the kernel's nfacct object; may raise KernelError."""

_SYNC_BUCKETS = tuple(0.001 * 2**i for i in range(15))
# The 0 is a slip in kube-proxy's source, but series add up over nodes only when all have the same buckets.
_PROGRAMMING_BUCKETS = (0, 0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))

_NFACCT = {
    INVALID_DROPPED: (
        "kubeproxy_iptables_ct_state_invalid_dropped_packets",
        "Packets that a rule dropped because conntrack called their state INVALID.",
    ),
    LOCALHOST_ACCEPTED: (
        "kubeproxy_iptables_localhost_nodeports_accepted_packets",
        "Packets to a node port that were accepted on a loopback address.",
    ),
}

_log = logging.getLogger(__name__)
M = TypeVar("M", bound=MetricWrapperBase)


class Described(NamedTuple):
    """What a metric says of itself. name: as in the text format. buckets: of a histogram, without the infinite one."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()


class _Children(dict[tuple[str, ...], M], Generic[M]):
    """The labelled children of one metric, each made when it is first needed."""

    def __init__(self, metric: M) -> None:
        super().__init__()
        self.metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> M:
        child = self[labels] = self.metric.labels(*labels)
        return child


class _NfacctCollector(Collector):
    """Reads the kernel's counters when somebody asks; exports those that exist there."""

    def __init__(self) -> None:
        self.read: NfacctReader = dict
        self._failing = False

    def collect(self) -> Iterator[Metric]:
        try:
            counts = self.read()
        except KernelError as error:
            if not self._failing:  # scrapes come often
                _log.warning("nfacct counters cannot be read, so two metrics are missing: %s", error)
            self._failing = True
            return
        self._failing = False
        for counter, (name, documentation) in _NFACCT.items():
            if counter in counts:
                yield CounterMetricFamily(name, documentation, value=counts[counter])

    def describe(self) -> list[Metric]:
        return [CounterMetricFamily(name, documentation) for name, documentation in _NFACCT.values()]


class Metrics:
    """Everything kproxy counts.

    families: the IP families that this node serves; their failure counters start at 0, so that the first failure
    shows as an increase. mode: the proxy mode, for the same reason. version: kproxy's own. client: is told of requests
    to the API server. slis: are told of health checks.
    """

    def __init__(self, families: Collection[Family], mode: str, version: str) -> None:
        # client_golang exports no _created series; this library does unless told otherwise, for the whole process.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry(auto_describe=False)
        self._nfacct = _NfacctCollector()
        self._registry.register(self._nfacct)
        self._forwarding = ForwardingCollector()
        self._registry.register(self._forwarding)
        self.client = ClientMetrics(self._registry)
        self.slis = Slis()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._define_sync()
        self._define_modes()
        self._define_health()
        self._define_own()
        self._build = Gauge(
            "kproxy_build_info", "Always 1; says what runs.", ["version", "mode", "python"], registry=self._registry
        )
        self._version = version
        self.serves(families, mode)

    def serves(self, families: Collection[Family], mode: str) -> None:
        """From now on FAMILIES are served in MODE."""
        self._build.clear()
        self._build.labels(self._version, mode, platform.python_version()).set(1)
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
            "Seconds that a sync of only what changed took.",
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
        self._services_seen = Counter(f"{sync}_service_changes_total", "Service changes seen.", registry=registry)
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
        self._rules_total = self._gauge(f"{sync}_iptables_total", "iptables rules that are ours.", ["table", *family])
        self._rules_last = self._gauge(
            f"{sync}_iptables_last", "iptables rules that the last sync wrote.", ["table", *family]
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
        self._running = self._gauge("kproxy_sync_running", "1 while a sync runs.", family)
        self._sync_failures = self._counter("kproxy_sync_failures_total", "Syncs that failed and are retried.", family)
        self._invalid = self._counter(
            "kproxy_invalid_objects_total",
            "Objects of the cluster that could not be used, each time one was seen.",
            ["kind"],
        )
        self._repairs = self._counter(
            "kproxy_foreign_changes_repaired_total",
            "Times that rules which another program had changed or removed were put right.",
            family,
        )
        self._rejected = self._gauge(
            "kproxy_rejected_service_ports", "Service ports that the kernel refuses at present.", family
        )
        self._conflicts = self._gauge(
            "kproxy_conflicting_frontends",
            "Node ports and external addresses that several Services ask for at present.",
            family,
        )
        self._coalesced = Counter(
            "kproxy_coalesced_changes_total", "Changes that shared a sync with an earlier one.", registry=self._registry
        )
        self._reloads = self._counter(
            "kproxy_config_reloads_total", "Changes of the configuration file, by what became of them.", ["outcome"]
        )
        self._k8s_events = self._counter(
            "kproxy_kubernetes_events_total", "Kubernetes Events, by what became of them.", ["outcome"]
        )

    def _start_at_zero(self, families: Collection[Family], mode: str) -> None:
        per_family = [self._sync_failures, self._repairs]
        if mode in ("iptables", "ipvs", "userspace"):
            per_family.append(self._restore_failures)
        if mode in ("iptables", "userspace"):
            per_family.append(self._partial_restore_failures)
        if mode == "nftables":
            per_family += [self._nft_failures, self._nft_cleanup_failures]
        for children in per_family:
            for family in families:
                children[family,].inc(0)
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
        """A sync of FAMILY was asked for at AT (Unix seconds)."""
        self._last_queued[family,].set(at)

    def sync_started(self, family: Family) -> None:
        """A sync of FAMILY begins."""
        self._running[family,].set(1)

    def sync_finished(self, family: Family, seconds: float, *, full: bool, at: float) -> None:
        """A sync that took SECONDS succeeded at AT (Unix seconds). full: it compared everything."""
        self._sync_ended(family, seconds, full)
        self._last_sync[family,].set(at)

    def sync_failed(self, family: Family, seconds: float, *, full: bool) -> None:
        """A sync that took SECONDS failed."""
        self._sync_ended(family, seconds, full)
        self._sync_failures[family,].inc()

    def _sync_ended(self, family: Family, seconds: float, full: bool) -> None:
        self._running[family,].set(0)
        self._sync[family,].observe(seconds)
        (self._full if full else self._partial)[family,].observe(seconds)

    def network_programming(self, family: Family, seconds: float) -> None:
        """A change reached the kernel SECONDS after it happened in the cluster."""
        self._programming[family,].observe(seconds)

    def endpoint_changes(self, seen: int, pending: int) -> None:
        """SEEN further EndpointSlice changes came in; PENDING of all wait to be programmed."""
        self._endpoints_seen.inc(seen)
        self._endpoints_pending.set(pending)

    def service_changes(self, seen: int, pending: int) -> None:
        """SEEN further Service changes came in; PENDING of all wait to be programmed."""
        self._services_seen.inc(seen)
        self._services_pending.set(pending)

    def coalesced(self, changes: int) -> None:
        """CHANGES joined a sync that was already due."""
        self._coalesced.inc(changes)

    def rules(self, family: Family, table: str, total: int, written: int) -> None:
        """iptables TABLE holds TOTAL rules of ours, of which the last sync wrote WRITTEN."""
        self._rules_total[table, family].set(total)
        self._rules_last[table, family].set(written)

    def no_local_endpoints(self, policy: Literal["internal", "external"], family: Family, services: int) -> None:
        """SERVICES have traffic policy Local and endpoints elsewhere, but none on this node."""
        self._no_local[policy, family].set(services)

    def restore_failed(self, family: Family, *, partial: bool) -> None:
        """iptables-restore failed. partial: it was given only what changed."""
        (self._partial_restore_failures if partial else self._restore_failures)[family,].inc()

    def nftables_failed(self, family: Family, *, cleanup: bool) -> None:
        """An nftables transaction failed. cleanup: it was to remove stale chains."""
        (self._nft_cleanup_failures if cleanup else self._nft_failures)[family,].inc()

    def conntrack(self, family: Family, seconds: float, deleted: int) -> None:
        """A search for stale conntrack entries took SECONDS and deleted DELETED."""
        self._conntrack_seconds[family,].observe(seconds)
        self._conntrack_deleted[family,].inc(deleted)

    def invalid_object(self, kind: str) -> None:
        """An object of KIND could not be used."""
        self._invalid[kind,].inc()

    def repaired(self, family: Family) -> None:
        """A full check found and put right what somebody else had changed."""
        self._repairs[family,].inc()

    def rejected(self, family: Family, ports: int) -> None:
        """PORTS Service ports are not programmed because the kernel refuses them."""
        self._rejected[family,].set(ports)

    def conflicts(self, family: Family, frontends: int) -> None:
        """FRONTENDS node ports and external addresses are asked for by several Services."""
        self._conflicts[family,].set(frontends)

    def healthz(self, status: int) -> None:
        """/healthz was answered with the HTTP status STATUS."""
        self._healthz[str(status),].inc()

    def livez(self, status: int) -> None:
        """/livez was answered with the HTTP status STATUS."""
        self._livez[str(status),].inc()

    def kubernetes_event(self, outcome: Literal["posted", "failed", "dropped"]) -> None:
        """A Kubernetes Event was created or counted on, could not be, or was not even tried (queue full, too many of
        its kind)."""
        self._k8s_events[outcome,].inc()

    def config_reloaded(self, outcome: Literal["applied", "refused"]) -> None:
        """The configuration file changed, and its new content is in force or was refused."""
        self._reloads[outcome,].inc()

    def read_nfacct_with(self, read: NfacctReader) -> None:
        """Export the kernel's nfacct counters as READ returns them, at each scrape."""
        self._nfacct.read = read

    def read_forwarder_with(self, read: Callable[[], Figures] | None) -> None:
        """Export what userspace mode's forwarder counted, as READ returns it, at each scrape; None: no longer."""
        self._forwarding.read = read

    def described(self) -> list[Described]:
        """Every metric of kproxy, those of /metrics/slis included, those of its process aside."""
        kept = [_described(metric) for metric in vars(self).values() if isinstance(metric, MetricWrapperBase)]
        kept += [_described(children.metric) for children in vars(self).values() if isinstance(children, _Children)]
        kept += [_described(metric) for metric in (*self.client.all, *self.slis.all)]
        read = [*self._nfacct.describe(), *self._forwarding.describe()]
        return kept + [_of_family(family) for family in read]

    def exposition(self) -> bytes:
        """All metrics in the Prometheus text format 0.0.4. May take milliseconds: not for the sync thread."""
        # Bucket bounds as client_golang writes them (le="1", not le="1.0"), so that kproxy's and kube-proxy's
        # series of one cluster add up.
        return re.sub(rb'(?<=le=")(\d+)\.0(?=")', rb"\1", generate_latest(self._registry))


def _described(metric: MetricWrapperBase) -> Described:
    # The library has no public way to ask a metric for its labels and bounds.
    bounds = getattr(metric, "_kwargs", {}).get("buckets", ())
    kind = metric._type or "untyped"
    name = f"{metric._name}_total" if kind == "counter" else metric._name
    return Described(name, kind, tuple(metric._labelnames), metric._documentation, tuple(bounds))


def _of_family(family: Metric) -> Described:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return Described(name, family.type, tuple(getattr(family, "_labelnames", ())), family.documentation)
