"""Metrics that are read or counted outside of the sync loop, and the registry that contains failing collectors.

- `InternalErrors`: failures that `kproxy.containment` contained.
- `NfacctCollector`: kube-proxy's packet counters in the kernel.
- `ForwardingCollector`: the statistics of the forwarder, if one runs.
- `LocalhostRejectedCollector`: nftables mode's counters of refused packets in the kernel.
- `ClientMetrics`: requests to the API server, as client-go counts them (k8s.io/component-base/metrics/prometheus).
- `Slis`: the health checks of the metrics address, on /metrics/slis (KEP-3466). kube-proxy has one check there, "ping":
  whether the process answers at all. Whether Services are programmed in time is what healthzBindAddress answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from kproxy import logs
from kproxy.containment import Containment, Stage
from kproxy.errors import KernelError, KproxyError
from kproxy.kernel.constants import INVALID_DROPPED, LOCALHOST_ACCEPTED

_log = logs.get("metrics")


class ContainedRegistry(CollectorRegistry):
    """A registry in which a collector that raises costs its own metrics, not the scrape."""

    def __init__(self, containment: Containment) -> None:
        super().__init__(auto_describe=False)
        self._containment = containment
        self._parts: list[tuple[CollectorRegistry, Stage]] = []

    def register(self, collector: Collector) -> None:
        super().register(collector)  # refuses a second metric of the same name
        alone = CollectorRegistry(auto_describe=False)
        alone.register(collector)
        stage = self._containment.stage("metrics", "its metrics are missing from this scrape", on_demand=True)
        self._parts.append((alone, stage))

    def exposition(self) -> bytes:
        """Return the metrics of every collector that works, in the Prometheus text format 0.0.4."""
        return b"".join(self._text(*part) for part in self._parts)

    @staticmethod
    def _text(alone: CollectorRegistry, stage: Stage) -> bytes:
        try:
            return stage.attempt(lambda: generate_latest(alone), b"")
        except KproxyError as error:  # collectors deal with those that they expect
            stage.failed(error)
            return b""


class InternalErrors(Collector):
    """Exports the failures of every stage, which are there from the start, with the count 0."""

    def __init__(self, containment: Containment) -> None:
        self._containment = containment

    def collect(self) -> Iterator[Metric]:
        (errors,) = self.describe()
        assert isinstance(errors, CounterMetricFamily)
        for stage, failures in sorted(self._containment.counts().items()):
            errors.add_metric([stage], failures)
        yield errors

    def describe(self) -> list[Metric]:
        help_text = "Unexpected errors, which are bugs in kproxy, by the part that they were contained in."
        return [CounterMetricFamily("kproxy_internal_errors", help_text, labels=["stage"])]


NfacctReader = Callable[[], Mapping[str, int]]
"""Returns packet counts by the name of the kernel's nfacct object. May raise KernelError."""

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


class NfacctCollector(Collector):
    """Reads the kernel's counters at each scrape, and exports those that exist."""

    def __init__(self) -> None:
        self.read: NfacctReader = dict
        self._failing = False

    def collect(self) -> Iterator[Metric]:
        try:
            counts = self.read()
        except KernelError as error:
            if not self._failing:  # scrapes are frequent
                _log.warning(
                    "Cannot read the nfacct counters; two metrics are missing until they can be read", err=error
                )
            self._failing = True
            return
        self._failing = False
        for counter, (name, documentation) in _NFACCT.items():
            if counter in counts:
                yield CounterMetricFamily(name, documentation, value=counts[counter])

    def describe(self) -> list[Metric]:
        return [CounterMetricFamily(name, documentation) for name, documentation in _NFACCT.values()]


class ForwarderStatistics(Protocol):
    """What a forwarder counted; `kproxy.modes.userspace.listeners.Statistics` says what each value means."""

    @property
    def connections(self) -> int: ...
    @property
    def sessions(self) -> int: ...
    @property
    def accepted(self) -> int: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def refused(self) -> Mapping[str, int]: ...
    @property
    def reset(self) -> int: ...


class ForwardingCollector(Collector):
    """Reads the forwarder at each scrape. Exports nothing without one, nor while it does not answer."""

    read: Callable[[], ForwarderStatistics] | None = None

    def collect(self) -> Iterator[Metric]:
        if (read := self.read) is None:
            return
        try:
            statistics = read()
        except KernelError:  # which the mode logs
            return
        yield from _forwarding(statistics)

    def describe(self) -> list[Metric]:
        return list(_forwarding(_Nothing()))


LocalhostRejectedReader = Callable[[], Mapping[tuple[str, str], int]]
"""Returns packet counts by family and protocol ("TCP"). May raise KernelError."""


class LocalhostRejectedCollector(Collector):
    """Reads at each scrape how many packets to node ports on loopback the rules of nftables mode refused."""

    read: LocalhostRejectedReader = staticmethod(dict)

    def collect(self) -> Iterator[Metric]:
        (rejected,) = self.describe()
        assert isinstance(rejected, CounterMetricFamily)
        try:
            counts = self.read()
        except KernelError as error:
            _log.v(2).info("Cannot read how many packets to node ports on loopback were refused", err=str(error))
            return
        for labels, packets in counts.items():
            rejected.add_metric(labels, packets)
        if counts:
            yield rejected

    def describe(self) -> list[Metric]:
        name = "kubeproxy_nftables_localhost_nodeport_rejected_packets"
        help_text = "Packets to a node port on loopback that were refused: no process serves it, or not this protocol."
        return [CounterMetricFamily(name, help_text, labels=["ip_family", "protocol"])]


class _Nothing:
    connections = sessions = accepted = bytes_in = bytes_out = retries = reset = 0
    refused: Mapping[str, int] = {}


def _forwarding(of: ForwarderStatistics) -> Iterator[Metric]:
    name = "kproxy_userspace"
    yield GaugeMetricFamily(f"{name}_connections", "Open TCP connections.", of.connections)
    yield GaugeMetricFamily(f"{name}_udp_sessions", "Open UDP sessions.", of.sessions)
    yield CounterMetricFamily(f"{name}_accepted_connections", "Accepted TCP connections.", of.accepted)
    forwarded = CounterMetricFamily(
        f"{name}_bytes", "Bytes forwarded to endpoints (in) and to clients (out).", labels=["direction"]
    )
    forwarded.add_metric(["in"], of.bytes_in)
    forwarded.add_metric(["out"], of.bytes_out)
    yield forwarded
    yield CounterMetricFamily(
        f"{name}_endpoint_retries", "Endpoints skipped because they refused or did not answer.", of.retries
    )
    refused = CounterMetricFamily(
        f"{name}_refused_connections", "Connections that could not be forwarded, by reason.", labels=["reason"]
    )
    for reason, count in of.refused.items():
        refused.add_metric([reason], count)
    yield refused
    yield CounterMetricFamily(
        f"{name}_reset_connections",
        "Connections reset when their endpoint's drain timeout was over.",
        of.reset,
    )


_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)


class ClientMetrics:
    """Counts requests to the API server in `registry`; an addition each. May be used from any thread.

    host: the API server's, with its port; method: GET, POST, PATCH. Names, labels and buckets as in kube-proxy 1.36.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "rest_client_requests_total",
            "Requests to the API server, watches included, by status code; <error> when there was no answer.",
            ["code", "method", "host"],
            registry=registry,
        )
        self._duration = Histogram(
            "rest_client_request_duration_seconds",
            "Seconds from sending a request to the end of its answer, without watches.",
            ["verb", "host"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._limited = Histogram(
            "rest_client_rate_limiter_duration_seconds",
            "Seconds that a request was delayed by clientConnection.qps and burst; part of its duration.",
            ["verb", "host"],
            buckets=_BUCKETS,
            registry=registry,
        )

    @property
    def all(self) -> tuple[MetricWrapperBase, ...]:
        """The metrics themselves."""
        return self._requests, self._duration, self._limited

    def requested(self, host: str, method: str, code: str) -> None:
        """Count a request. code: the answer's status, "<error>" for no answer."""
        self._requests.labels(code, method, host).inc()

    def waited(self, host: str, method: str, seconds: float) -> None:
        """Observe how long the rate limit delayed a request."""
        self._limited.labels(method, host).observe(seconds)

    def took(self, host: str, method: str, seconds: float) -> None:
        """Observe how long a request took until the end of its answer or its failure, the delay included."""
        self._duration.labels(method, host).observe(seconds)


class Slis:
    """Health check metrics in a registry of their own, as they are on no other page; none before the first check."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._check = Gauge(
            "kubernetes_healthcheck",
            "1 when the last answer of /healthz at the metrics address was ok.",
            ["name", "type"],
            registry=self._registry,
        )
        self._checks = Counter(
            "kubernetes_healthchecks_total",
            "Answers of /healthz at the metrics address.",
            ["name", "status", "type"],
            registry=self._registry,
        )

    @property
    def all(self) -> tuple[MetricWrapperBase, ...]:
        """The metrics themselves."""
        return self._check, self._checks

    def pinged(self) -> None:
        """Count an answer of /healthz at the metrics address."""
        self._check.labels("ping", "healthz").set(1)
        self._checks.labels("ping", "success", "healthz").inc()

    def exposition(self) -> bytes:
        """Return both in the Prometheus text format 0.0.4."""
        return generate_latest(self._registry)
