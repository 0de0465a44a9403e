"""The generator of docs/metrics.md: `python -m kproxy.metrics.reference > docs/metrics.md`.

Names, types, labels, buckets and meanings come from a `Metrics`. This module adds the alerts and the text around them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from kproxy.clocks import SystemClock
from kproxy.containment import Containment
from kproxy.metrics.registry import Described, Metrics
from kproxy.model.plans import Family

# Alerts by the metric that they are about: the expression, for how long it should hold, and what it means.
ALERTS: dict[str, tuple[str, str, str]] = {
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds": (
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds "
        "> kubeproxy_sync_proxy_rules_last_timestamp_seconds + 120",
        "5m",
        "changes are pending and not programmed",
    ),
    "kubeproxy_network_programming_duration_seconds": (
        "histogram_quantile(0.99, sum by (instance, le) "
        "(rate(kubeproxy_network_programming_duration_seconds_bucket[5m]))) > 30",
        "10m",
        "changes reach this node late",
    ),
    "kubeproxy_proxy_healthz_total": (
        'increase(kubeproxy_proxy_healthz_total{code="503"}[10m]) > 0',
        "10m",
        "the node fails its health checks: a change is overdue, or the node is being removed",
    ),
    "kproxy_sync_failures_total": ("rate(kproxy_sync_failures_total[10m]) > 0", "10m", "syncs keep failing"),
    "kproxy_rejected_service_ports": (
        "kproxy_rejected_service_ports > 0",
        "5m",
        "the kernel refuses a Service port; the log and the status page say which and why",
    ),
    "kproxy_refused_changes_total": (
        "increase(kproxy_refused_changes_total[1h]) > 3",
        "0m",
        "the kernel keeps refusing changes, and each time everything is compared; `kproxy status` has the last one",
    ),
    "kproxy_unreadable_kernel_objects": (
        "kproxy_unreadable_kernel_objects > 0",
        "15m",
        "another program's rules keep kproxy from checking a table; the log and the status page say which and why",
    ),
    "kproxy_conflicting_frontends": (
        "kproxy_conflicting_frontends > 0",
        "15m",
        "several Services claim the same node port or external address",
    ),
    "kproxy_foreign_changes_repaired_total": (
        "increase(kproxy_foreign_changes_repaired_total[1h]) > 3",
        "0m",
        "another program keeps changing the rules",
    ),
    "kproxy_invalid_objects_total": (
        "increase(kproxy_invalid_objects_total[1h]) > 0",
        "0m",
        "an object of the cluster cannot be used",
    ),
    "kproxy_config_reloads_total": (
        'increase(kproxy_config_reloads_total{outcome="refused"}[1h]) > 0',
        "0m",
        "a changed configuration was refused; the former one stays in force",
    ),
    "kproxy_internal_errors_total": (
        "increase(kproxy_internal_errors_total[1h]) > 0",
        "0m",
        "a bug in kproxy, contained; the log has the traceback, `kproxy status` says whether it lasts",
    ),
    "kproxy_sync_running": ("min_over_time(kproxy_sync_running[5m]) == 1", "0m", "a sync hangs"),
    "kproxy_userspace_refused_connections_total": (
        "rate(kproxy_userspace_refused_connections_total[5m]) > 0",
        "10m",
        "connections could not be forwarded",
    ),
}

_HEAD = """\
# Metrics

Written by `python -m kproxy.metrics.reference > docs/metrics.md`; a test holds this page to the code.

kproxy serves metrics at `metricsBindAddress` (127.0.0.1:10249), path `/metrics`, in the Prometheus text format. Those
that begin with `kubeproxy_` are kube-proxy's by name, type, labels and buckets, so dashboards and alerts go on working;
those that begin with `kproxy_` are its own, and `rest_client_*`, `kubernetes_*` and `process_*` are common to all
components of Kubernetes. `ip_family` is `IPv4` or `IPv6`. Metrics of other modes are missing or stay at 0.

`stage` is the part of kproxy that an unexpected error was contained in, at the cost of that part alone: for instance
`metrics`, `status-page`, `healthz`, `health-checks`, `events`. Every part is there from the start, at 0.
"""
_SECTIONS = {
    "kube-proxy's": "kubeproxy_",
    "Requests to the API server": "rest_client_",
    "Health checks of the process, at `/metrics/slis`": "kubernetes_",
    "kproxy's own": "kproxy_",
}
_TAIL = """\
## Process

`process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_open_fds`,
`process_max_fds` and `process_start_time_seconds`, as of every Prometheus client, and `python_info`.

## Not exported

kube-proxy exports more: `go_*`, as it is written in Go (panels about goroutines stay empty); `workqueue_*` and
`apiserver_*`; `rest_client_*` about sizes, name resolution, retries, transports and exec plugins;
`kubernetes_build_info` and `kubernetes_feature_enabled`, as kproxy is no release of Kubernetes (`kproxy_build_info`
says what runs).
"""


def text() -> str:
    """Return the whole page, in Markdown."""
    metrics = Metrics(list(Family), "", "", Containment(SystemClock()))
    found = sorted(metrics.described(), key=lambda metric: metric.name)
    parts = [_HEAD]
    for title, prefix in _SECTIONS.items():
        some = [metric for metric in found if metric.name.startswith(prefix)]
        parts.append(f"## {title}\n\n" + "\n".join(_table(some)) + "\n")
    parts.append("## Alerts to start with\n\n" + "\n".join(_alerts(found)) + "\n")
    return "\n".join([*parts, _TAIL])


def _table(metrics: Iterable[Described]) -> Iterator[str]:
    yield "| metric | type | labels | meaning |"
    yield "|---|---|---|---|"
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        buckets = f" Buckets: {_buckets(metric.buckets)}." if metric.buckets else ""
        meaning = metric.meaning.replace("<", "\\<") + buckets
        yield f"| `{metric.name}` | {metric.type} | {labels} | {meaning} |"


def _buckets(bounds: Sequence[float]) -> str:
    if len(bounds) <= 6:
        return ", ".join(f"{bound:g}" for bound in bounds)
    return f"{', '.join(f'{bound:g}' for bound in bounds[:4])}, … {bounds[-1]:g} ({len(bounds)})"


def _alerts(metrics: Iterable[Described]) -> Iterator[str]:
    yield "| when | for | what it means |"
    yield "|---|---|---|"
    for metric in metrics:
        if metric.name in ALERTS:
            expression, duration, meaning = ALERTS[metric.name]
            escaped = expression.replace("|", "\\|")
            yield f"| `{escaped}` | {duration} | {meaning} |"


if __name__ == "__main__":
    sys.stdout.write(text())
