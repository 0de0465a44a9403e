"""Metrics of userspace mode, read from its forwarder at each scrape.

What client-go tells of its requests to the API server, so that dashboards and alerts about them go on working.

Names, labels and buckets as in kube-proxy 1.36 (k8s.io/component-base/metrics/prometheus/restclient). `ClientMetrics`
is what `kproxy.sources.client` tells of each HTTP request: some microseconds a request, none for what the answer holds.

What /metrics/slis shows: how the health check of the metrics address was answered (KEP-3466).

kube-proxy 1.36 knows one check there, `ping` of `healthz`: whether the process answers at all. Whether Services are
programmed in time is at healthzBindAddress and in `kubeproxy_proxy_healthz_total`, as with kube-proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase

from kproxy.errors import KernelError


class Figures(Protocol):
    """What a forwarder counted; modes' userspace.listeners.Statistics says what each means."""

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


class ForwardingCollector:
    """Exports nothing until `read` is set, and nothing while the forwarder does not answer."""

    read: Callable[[], Figures] | None = None

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        if self.read is None:
            return
        try:
            found = self.read()
        except KernelError:
            return
        yield from _families(found)

    def describe(self) -> list[Metric]:
        """The metrics, with nothing counted."""
        return list(_families(_Nothing()))


class _Nothing:
    connections = sessions = accepted = bytes_in = bytes_out = retries = reset = 0
    refused: Mapping[str, int] = {}


def _families(found: Figures) -> Iterator[Metric]:
    name = "kproxy_userspace"
    yield GaugeMetricFamily(f"{name}_connections", "TCP connections that are open.", found.connections)
    yield GaugeMetricFamily(f"{name}_udp_sessions", "UDP sessions that are open.", found.sessions)
    yield CounterMetricFamily(f"{name}_accepted_connections", "TCP connections taken.", found.accepted)
    passed = CounterMetricFamily(f"{name}_bytes", "Bytes forwarded: in towards endpoints.", labels=["direction"])
    passed.add_metric(["in"], found.bytes_in)
    passed.add_metric(["out"], found.bytes_out)
    yield passed
    yield CounterMetricFamily(
        f"{name}_endpoint_retries", "Endpoints skipped because they refused or did not answer.", found.retries
    )
    refused = CounterMetricFamily(f"{name}_refused_connections", "Connections given up.", labels=["reason"])
    for reason, count in found.refused.items():
        refused.add_metric([reason], count)
    yield refused
    yield CounterMetricFamily(
        f"{name}_reset_connections", "Connections cut off when their endpoint's drain time was over.", found.reset
    )


_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)


class ClientMetrics:
    """Counts in REGISTRY. From any thread. host: of the API server, with its port; method: GET, POST, PATCH."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "rest_client_requests_total",
            "HTTP requests to the API server, watches included, by the answer's status; <error>: there was none.",
            ["code", "method", "host"],
            registry=registry,
        )
        self._duration = Histogram(
            "rest_client_request_duration_seconds",
            "Seconds from asking the API server to the end of its answer, watches excepted.",
            ["verb", "host"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._limited = Histogram(
            "rest_client_rate_limiter_duration_seconds",
            "Seconds that a request waited for its turn, as clientConnection.qps and burst ask; part of its duration.",
            ["verb", "host"],
            buckets=_BUCKETS,
            registry=registry,
        )

    @property
    def all(self) -> tuple[MetricWrapperBase, ...]:
        """The metrics themselves."""
        return self._requests, self._duration, self._limited

    def requested(self, host: str, method: str, code: str) -> None:
        """An HTTP request was answered with the status CODE, or with none: "<error>"."""
        self._requests.labels(code, method, host).inc()

    def waited(self, host: str, method: str, seconds: float) -> None:
        """A request waited SECONDS for its turn."""
        self._limited.labels(method, host).observe(seconds)

    def took(self, host: str, method: str, seconds: float) -> None:
        """A request and its whole answer, or its failure, took SECONDS, the waiting included."""
        self._duration.labels(method, host).observe(seconds)


class Slis:
    """Counts in a registry of its own: these are on no other page. Nothing is shown before the first check."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._check = Gauge(
            "kubernetes_healthcheck",
            "1 when /healthz of the metrics address was last answered with ok.",
            ["name", "type"],
            registry=self._registry,
        )
        self._checks = Counter(
            "kubernetes_healthchecks_total",
            "Answers of /healthz of the metrics address.",
            ["name", "status", "type"],
            registry=self._registry,
        )

    @property
    def all(self) -> tuple[MetricWrapperBase, ...]:
        """The metrics themselves."""
        return self._check, self._checks

    def pinged(self) -> None:
        """/healthz of the metrics address is answered."""
        self._check.labels("ping", "healthz").set(1)
        self._checks.labels("ping", "success", "healthz").inc()

    def exposition(self) -> bytes:
        """Both in the Prometheus text format 0.0.4."""
        return generate_latest(self._registry)
