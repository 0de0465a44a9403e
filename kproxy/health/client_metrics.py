"""What client-go tells of its requests to the API server, so that dashboards and alerts about them go on working.

Names, labels and buckets as in kube-proxy 1.36 (k8s.io/component-base/metrics/prometheus/restclient). `ClientMetrics`
is what `kproxy.source.client` tells of each HTTP request: some microseconds a request, none for what the answer holds.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

__all__ = ["ClientMetrics"]

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
