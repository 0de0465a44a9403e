"""What is read at each scrape: kernel counters, the forwarder's statistics, internal errors. Each fails alone."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from kproxy.containment import Containment
from kproxy.errors import KernelError, NetlinkError, SourceError
from kproxy.metrics.collectors import ContainedRegistry
from kproxy.metrics.registry import Metrics
from kproxy.model.plans import Family
from kproxy.modes.userspace.listeners import Statistics
from tests.fakes.clocks import ManualClock

COUNTED = Statistics(3, 2, 10, 1000, 2000, 4, {"no-endpoint": 5, "descriptors": 6}, 7)
NFACCT = "kubeproxy_iptables_ct_state_invalid_dropped_packets_total"
LOCALHOST = "kubeproxy_iptables_localhost_nodeports_accepted_packets_total"
ERRORS = "kproxy_internal_errors_total"


class Rig:
    def __init__(self) -> None:
        self.containment = Containment(ManualClock())
        self.metrics = Metrics([Family.IPV4], "userspace", "1.2.3", self.containment)

    def samples(self, prefix: str = "") -> dict[tuple[str, str], float]:
        """Values by name and labels, of the names that begin with `prefix`."""
        families = text_string_to_metric_families(self.metrics.exposition().decode())
        found = (sample for family in families for sample in family.samples)
        return {(s.name, ",".join(s.labels.values())): s.value for s in found if s.name.startswith(prefix)}


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_all_statistics_of_the_forwarder_are_exported(rig: Rig) -> None:
    assert rig.samples("kproxy_userspace") == {}
    rig.metrics.read_forwarder_with(lambda: COUNTED)
    assert rig.samples("kproxy_userspace") == {
        ("kproxy_userspace_connections", ""): 3,
        ("kproxy_userspace_udp_sessions", ""): 2,
        ("kproxy_userspace_accepted_connections_total", ""): 10,
        ("kproxy_userspace_bytes_total", "in"): 1000,
        ("kproxy_userspace_bytes_total", "out"): 2000,
        ("kproxy_userspace_endpoint_retries_total", ""): 4,
        ("kproxy_userspace_refused_connections_total", "no-endpoint"): 5,
        ("kproxy_userspace_refused_connections_total", "descriptors"): 6,
        ("kproxy_userspace_reset_connections_total", ""): 7,
    }


def test_kernel_counters_that_do_not_exist_are_left_out(rig: Rig) -> None:
    rig.metrics.read_nfacct_with(lambda: {"localhost_nps_accepted_pkts": 3, "other": 1})
    assert rig.samples("kubeproxy_iptables") == {(LOCALHOST, ""): 3}


def test_every_stage_is_there_from_the_start_and_counts_its_failures(rig: Rig) -> None:
    conntrack = rig.containment.stage("conntrack", "")
    assert rig.samples(ERRORS) == {(ERRORS, "conntrack"): 0, (ERRORS, "metrics"): 0}
    conntrack.failed(ZeroDivisionError())
    conntrack.failed(ZeroDivisionError())
    assert rig.samples(ERRORS)[ERRORS, "conntrack"] == 2


@pytest.mark.parametrize(
    ("error", "counted"),
    [(KernelError("gone"), 0), (NetlinkError("nfacct get", 1), 0), (SourceError("odd"), 2), (ZeroDivisionError(), 2)],
    ids=lambda value: type(value).__name__,
)
def test_a_collector_that_fails_costs_its_own_metrics_until_it_works(rig: Rig, error: Exception, counted: int) -> None:
    def fail() -> Statistics:
        raise error

    rig.metrics.read_forwarder_with(fail)
    rig.metrics.read_nfacct_with(lambda: vars(fail()))
    found = rig.samples()
    assert not [name for name, _ in found if name.startswith(("kproxy_userspace", "kubeproxy_iptables"))]
    assert "kproxy_build_info" in {name for name, _ in found}
    assert rig.containment.counts()["metrics"] == counted
    assert len(rig.containment.failing()) == counted
    rig.metrics.read_forwarder_with(lambda: COUNTED)
    rig.metrics.read_nfacct_with(lambda: {"ct_state_invalid_dropped_pkts": 7})
    assert rig.samples("kubeproxy_iptables") == {(NFACCT, ""): 7}
    assert rig.containment.failing() == []


def test_a_value_that_has_no_text_costs_its_own_metric() -> None:
    containment = Containment(ManualClock())
    registry = ContainedRegistry(containment)

    class Odd:
        def collect(self) -> list[Metric]:
            family = GaugeMetricFamily("odd", "")
            family.add_metric([], "not a number")  # type: ignore[arg-type]
            return [family]

        def describe(self) -> list[Metric]:
            return []

    registry.register(Odd())
    assert isinstance(registry, CollectorRegistry)
    Histogram("fine", "", registry=registry).observe(1)
    assert b"fine_count 1.0" in registry.exposition()
    assert b"odd" not in registry.exposition()
    assert containment.counts() == {"metrics": 2}


def test_another_mode_replaces_the_former_in_the_build_info(rig: Rig) -> None:
    rig.metrics.serves([Family.IPV4], "nftables")
    ((_, labels),) = rig.samples("kproxy_build_info")
    assert {"1.2.3", "nftables"} < set(labels.split(","))
