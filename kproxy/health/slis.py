"""What /metrics/slis shows: how the health check of the metrics address was answered (KEP-3466).

kube-proxy 1.36 knows one check there, `ping` of `healthz`: whether the process answers at all. Whether Services are
programmed in time is at healthzBindAddress and in `kubeproxy_proxy_healthz_total`, as with kube-proxy.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics import MetricWrapperBase

__all__ = ["Slis"]


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
