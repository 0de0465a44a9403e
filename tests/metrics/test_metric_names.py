"""The exported metrics are kube-proxy's, by name, type, labels and buckets, and docs/metrics.md has each of them."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from kproxy.containment import Containment
from kproxy.metrics.reference import ALERTS, text
from kproxy.metrics.registry import Metrics
from kproxy.model.plans import Family
from kproxy.modes.userspace.listeners import Statistics
from tests.fakes.clocks import ManualClock

SYNC = "kubeproxy_sync_proxy_rules_"
DOUBLING = "0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512 1.024 2.048 4.096 8.192 16.384 +Inf"
LATENCY = "0.005 0.025 0.1 0.25 0.5 1 2 4 8 15 30 60 +Inf"
PROGRAMMING = " ".join(
    ["0", "0.25", "0.5", *map(str, range(1, 60)), *map(str, range(60, 116, 5)), *map(str, range(120, 301, 30)), "+Inf"]
)

LOCALHOST = "kubeproxy_nftables_localhost_nodeport"
V4, V6 = 'ip_family="IPv4"', 'ip_family="IPv6"'
SERVER = 'host="10.0.0.1:6443"'
Row = tuple[str, str, str, float]
# (name, type, labels of a sample, its value after `used`), as a scrape of kube-proxy 1.37 shows them.
KUBE_PROXY: list[Row] = [
    (f"{SYNC}duration_seconds", "histogram", V4, 2),
    (f"{SYNC}duration_seconds", "histogram", V6, 1),
    ("kubeproxy_sync_full_proxy_rules_duration_seconds", "histogram", V4, 1),
    ("kubeproxy_sync_partial_proxy_rules_duration_seconds", "histogram", V4, 1),
    ("kubeproxy_network_programming_duration_seconds", "histogram", V4, 1),
    (f"{SYNC}last_timestamp_seconds", "gauge", V4, 1002.5),
    (f"{SYNC}last_queued_timestamp_seconds", "gauge", V4, 1000.5),
    (f"{SYNC}endpoint_changes_pending", "gauge", "", 2),
    (f"{SYNC}service_changes_pending", "gauge", "", 1),
    (f"{SYNC}endpoint_changes_total", "counter", "", 5),
    (f"{SYNC}service_changes_total", "counter", "", 3),
    (f"{SYNC}iptables_total", "gauge", f'{V4},table="nat"', 120),
    (f"{SYNC}iptables_last", "gauge", f'{V4},table="nat"', 8),
    (f"{SYNC}iptables_restore_failures_total", "counter", V4, 1),
    (f"{SYNC}iptables_partial_restore_failures_total", "counter", V4, 2),
    (f"{SYNC}nftables_sync_failures_total", "counter", V4, 1),
    (f"{SYNC}nftables_cleanup_failures_total", "counter", V4, 2),
    (f"{SYNC}no_local_endpoints_total", "gauge", f'{V4},traffic_policy="internal"', 6),
    ("kubeproxy_proxy_healthz_total", "counter", 'code="200"', 1),
    ("kubeproxy_proxy_healthz_total", "counter", 'code="503"', 0),
    ("kubeproxy_proxy_livez_total", "counter", 'code="503"', 1),
    ("kubeproxy_conntrack_reconciler_sync_duration_seconds", "histogram", V4, 1),
    ("kubeproxy_conntrack_reconciler_deleted_entries_total", "counter", V4, 11),
    ("kubeproxy_iptables_ct_state_invalid_dropped_packets_total", "counter", "", 7),
    ("kubeproxy_iptables_localhost_nodeports_accepted_packets_total", "counter", "", 9),
    (f"{LOCALHOST}_listeners", "gauge", V4, 5),
    (f"{LOCALHOST}_listener_creation_failures_total", "counter", V4, 1),
    (f"{LOCALHOST}_rejected_packets_total", "counter", f'{V4},protocol="UDP"', 12),
]
# Those of all components of Kubernetes that have a meaning here.
COMMON: list[Row] = [
    ("rest_client_requests_total", "counter", f'code="200",{SERVER},method="GET"', 1),
    ("rest_client_request_duration_seconds", "histogram", f'{SERVER},verb="GET"', 1),
    ("rest_client_rate_limiter_duration_seconds", "histogram", f'{SERVER},verb="GET"', 1),
]
OWN: list[Row] = [
    ("kproxy_build_info", "gauge", f'mode="iptables",python="{platform.python_version()}",version="1.2.3"', 1),
    ("kproxy_internal_errors_total", "counter", 'stage="metrics"', 0),
    ("kproxy_sync_running", "gauge", V4, 0),
    ("kproxy_sync_failures_total", "counter", V4, 0),
    ("kproxy_sync_failures_total", "counter", V6, 1),
    ("kproxy_invalid_objects_total", "counter", 'kind="Service"', 1),
    ("kproxy_foreign_changes_repaired_total", "counter", V4, 1),
    ("kproxy_rejected_service_ports", "gauge", V4, 2),
    ("kproxy_refused_changes_total", "counter", V4, 3),
    ("kproxy_conflicting_frontends", "gauge", V4, 3),
    ("kproxy_unreadable_kernel_objects", "gauge", V4, 3),
    ("kproxy_coalesced_changes_total", "counter", "", 4),
    ("kproxy_config_reloads_total", "counter", 'outcome="applied"', 1),
    ("kproxy_kubernetes_events_total", "counter", 'outcome="posted"', 1),
]
BUCKETS = {
    "kubeproxy_network_programming_duration_seconds": PROGRAMMING,
    "rest_client_request_duration_seconds": LATENCY,
    "rest_client_rate_limiter_duration_seconds": LATENCY,
}
MEMORY = {"process_resident_memory_bytes", "process_virtual_memory_bytes"}
PROCESS = {"process_cpu_seconds_total", "process_open_fds", "process_max_fds", "process_start_time_seconds"} | MEMORY


def new(mode: str = "iptables", family: Family = Family.IPV4) -> Metrics:
    return Metrics([family], mode, "1.2.3", Containment(ManualClock()))


def used() -> Metrics:
    """Metrics of which everything has happened once."""
    metrics = new()
    v4 = Family.IPV4
    metrics.read_nfacct_with(lambda: {"ct_state_invalid_dropped_pkts": 7, "localhost_nps_accepted_pkts": 9, "other": 1})
    metrics.read_localhost_rejected_with(lambda: {("IPv4", "UDP"): 12})
    metrics.localhost_listeners(v4, 5)
    metrics.localhost_listener_failed(v4)
    metrics.queued(v4, at=1000.5)
    metrics.sync_started(v4)
    metrics.sync_finished(v4, 0.003, full=True, at=1001.5)
    metrics.sync_finished(v4, 20.0, full=False, at=1002.5)
    metrics.sync_failed(Family.IPV6, 0.5, full=False)
    metrics.network_programming(v4, 61.0)
    metrics.endpoint_changes(5, 2)
    metrics.service_changes(3, 1)
    metrics.coalesced(4)
    metrics.rules(v4, "nat", 120, 8)
    metrics.no_local_endpoints("internal", v4, 6)
    metrics.restore_failed(v4, partial=False)
    metrics.restore_failed(v4, partial=True)
    metrics.restore_failed(v4, partial=True)
    metrics.nftables_failed(v4, cleanup=False)
    metrics.nftables_failed(v4, cleanup=True)
    metrics.nftables_failed(v4, cleanup=True)
    metrics.conntrack(v4, 0.01, 11)
    metrics.invalid_object("Service")
    metrics.repaired(v4)
    metrics.rejected(v4, 2)
    metrics.refused(v4, 3)
    metrics.conflicts(v4, 3)
    metrics.unreadable(v4, 3)
    metrics.healthz(200)
    metrics.livez(503)
    metrics.config_reloaded("applied")
    metrics.kubernetes_event("posted")
    metrics.client.requested("10.0.0.1:6443", "GET", "200")
    metrics.client.waited("10.0.0.1:6443", "GET", 0.1)
    metrics.client.took("10.0.0.1:6443", "GET", 0.5)
    return metrics


def samples(metrics: Metrics) -> dict[str, str]:
    lines = metrics.exposition().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_no_other_metric_has_a_proxy_prefix() -> None:
    exported = re.findall(r"^# TYPE (\S+)", used().exposition().decode(), re.M)
    ours = {name for name in exported if name.startswith(("kubeproxy_", "kproxy_"))}
    assert ours == {name for name, *_ in KUBE_PROXY + OWN}
    assert set(exported) - ours == {name for name, *_ in COMMON} | PROCESS | {"python_info"}


def test_health_checks_have_a_page_of_their_own() -> None:
    metrics = used()
    assert b"kubernetes_healthcheck{" not in metrics.slis.exposition()
    metrics.slis.pinged()
    metrics.slis.pinged()
    lines = metrics.slis.exposition().decode().splitlines()
    assert [line for line in lines if not line.startswith("# HELP")] == [
        "# TYPE kubernetes_healthcheck gauge",
        'kubernetes_healthcheck{name="ping",type="healthz"} 1.0',
        "# TYPE kubernetes_healthchecks_total counter",
        'kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 2.0',
    ]
    assert b"kubernetes_healthcheck" not in metrics.exposition()


@pytest.mark.parametrize(("name", "kind", "labels", "value"), KUBE_PROXY + COMMON + OWN)
def test_metric_has_its_type_labels_and_value(name: str, kind: str, labels: str, value: float) -> None:
    assert f"\n# TYPE {name} {kind}\n" in f"\n{used().exposition().decode()}"
    sample = f"{name}_count" if kind == "histogram" else name
    assert float(samples(used())[f"{sample}{{{labels}}}" if labels else sample]) == value


@pytest.mark.parametrize("name", sorted({name for name, kind, *_ in KUBE_PROXY + COMMON if kind == "histogram"}))
def test_histograms_have_kube_proxys_buckets(name: str) -> None:
    found = [
        dict(re.findall(r'(\w+)="([^"]*)"', line)) for line in samples(used()) if line.startswith(f"{name}_bucket")
    ]
    assert [line["le"] for line in found if line.get("ip_family") != "IPv6"] == BUCKETS.get(name, DOUBLING).split()


@pytest.mark.parametrize(
    ("sample", "value"),
    [
        (f'{SYNC}duration_seconds_bucket{{{V4},le="0.004"}}', 1),
        (f'{SYNC}duration_seconds_bucket{{{V4},le="16.384"}}', 1),
        (f"kubeproxy_sync_partial_proxy_rules_duration_seconds_sum{{{V4}}}", 20),
        (f'kubeproxy_network_programming_duration_seconds_bucket{{{V4},le="60"}}', 0),
        (f'kubeproxy_network_programming_duration_seconds_bucket{{{V4},le="65"}}', 1),
        (f'rest_client_request_duration_seconds_bucket{{{SERVER},le="0.25",verb="GET"}}', 0),
        (f'rest_client_request_duration_seconds_bucket{{{SERVER},le="0.5",verb="GET"}}', 1),
        (f'rest_client_rate_limiter_duration_seconds_sum{{{SERVER},verb="GET"}}', 0.1),
    ],
)
def test_what_took_time_is_in_its_bucket(sample: str, value: float) -> None:
    assert float(samples(used())[sample]) == value


def test_a_running_sync_shows() -> None:
    metrics = new()
    metrics.sync_started(Family.IPV4)
    assert samples(metrics)['kproxy_sync_running{ip_family="IPv4"}'] == "1.0"


@pytest.mark.parametrize(
    ("mode", "there", "absent"),
    [
        ("iptables", "iptables_partial_restore_failures_total", "nftables_sync_failures_total"),
        ("ipvs", "iptables_restore_failures_total", "iptables_partial_restore_failures_total"),
        ("userspace", "iptables_partial_restore_failures_total", "nftables_sync_failures_total"),
        ("nftables", "nftables_cleanup_failures_total", "iptables_restore_failures_total"),
    ],
)
def test_failures_of_the_mode_in_use_start_at_zero(mode: str, there: str, absent: str) -> None:
    found = samples(new(mode, Family.IPV6))
    assert found[f'{SYNC}{there}{{ip_family="IPv6"}}'] == "0.0"
    assert not [name for name in found if absent in name]


def test_two_sets_of_metrics_do_not_meet() -> None:
    used()
    assert samples(new())[f"{SYNC}service_changes_total"] == "0.0"


def test_service_changes_count_once_for_each_family_as_in_kube_proxy() -> None:
    metrics = new()
    for families in ((Family.IPV4,), tuple(Family)):
        metrics.serves(families, "nftables")
        metrics.service_changes(3, 1)
    found = samples(metrics)
    assert (found[f"{SYNC}service_changes_total"], found[f"{SYNC}service_changes_pending"]) == ("9.0", "1.0")


# ---------------------------------------------------------------- docs/metrics.md

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == text(), "write it again: python -m kproxy.metrics.reference > docs/metrics.md"


def test_it_has_every_metric_that_a_scrape_shows_with_its_type() -> None:
    metrics = new()
    metrics.read_forwarder_with(lambda: Statistics(refused={"descriptors": 1}))
    metrics.read_nfacct_with(lambda: {"ct_state_invalid_dropped_pkts": 7, "localhost_nps_accepted_pkts": 9})
    pages = (metrics.exposition() + metrics.slis.exposition()).decode()
    scraped = dict(re.findall(r"^# TYPE ((?:k|rest_)\S+) (\S+)$", pages, re.M))
    listed = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", text(), re.M))
    assert scraped
    assert {name: kind for name, kind in scraped.items() if name in listed} == scraped
    assert listed.keys() == {metric.name for metric in metrics.described()}


def test_alerts_are_about_metrics_that_exist() -> None:
    names = {metric.name for metric in new().described()}
    for about, (expression, duration, _) in ALERTS.items():
        used = {re.sub("_bucket$", "", name) for name in re.findall(r"\bk(?:ube)?proxy_\w+", expression)}
        assert about in used
        assert used <= names
        assert re.fullmatch(r"\d+m", duration)
        assert f"`{expression}`" in text()
