"""What userspace mode's forwarder counted, as Prometheus sees it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from kproxy.errors import KernelError
from kproxy.metrics.registry import Metrics
from kproxy.model.plans import Family
from kproxy.modes.userspace.listeners import Statistics

COUNTED = Statistics(3, 2, 10, 1000, 2000, 4, {"no-endpoint": 5, "descriptors": 6}, 7)


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    found = (sample for family in families for sample in family.samples)
    return {(s.name, ",".join(s.labels.values())): s.value for s in found if s.name.startswith("kproxy_userspace")}


def test_all_figures_are_exported() -> None:
    metrics = Metrics([Family.IPV4], "userspace", "1.2.3")
    metrics.read_forwarder_with(lambda: COUNTED)
    assert samples(metrics) == {
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


def test_without_a_forwarder_there_are_none() -> None:
    assert samples(Metrics([Family.IPV4], "iptables", "1.2.3")) == {}


def test_a_forwarder_that_does_not_answer_costs_nothing_else() -> None:
    def silent() -> Statistics:
        raise KernelError("the forwarder is gone")

    metrics = Metrics([Family.IPV4], "userspace", "1.2.3")
    metrics.read_forwarder_with(silent)
    assert samples(metrics) == {}
    assert b"kproxy_build_info" in metrics.exposition()
