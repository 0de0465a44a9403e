"""What follows a sync: stale flows are deleted, health check node ports answer, another mode's rules may go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from kproxy.config.defaults import default
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.conntrack.reconciler import Reconciler
from kproxy.conntrack.stale_flows import Flow
from kproxy.containment import Containment
from kproxy.errors import KernelError
from kproxy.healthz.service_checks import HealthCheck
from kproxy.model.node_info import NodeInfo
from kproxy.model.plan_store import Changes
from kproxy.model.plans import Family, Frontend, PortKey, Protocol, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.rate_limit import FIRST_RETRY
from kproxy.sync.post_sync import FamilyPostSync, HealthCheckPorts
from kproxy.sync.proxier import Report
from kproxy.sync.schedule import Work
from tests.fakes.clocks import ManualClock
from tests.fakes.conntrack import FakeConntrack
from tests.fakes.plans import BothFamilies
from tests.model.builders import DUAL, NODE, changed, cluster, deleted, endpoint, service, slice_

V4, V6 = Family.IPV4, Family.IPV6
HERE = NodeInfo(NODE, addresses=("172.18.0.2",))
DNS = {"name": "dns", "port": 53, "protocol": "UDP"}
CHECKED: dict[str, Any] = {
    "type": "LoadBalancer",
    "externalTrafficPolicy": "Local",
    "healthCheckNodePort": 32000,
    "clusterIPs": DUAL,
}
UNFORESEEN = ZeroDivisionError("division by zero")


def flow(source_port: int, to: str = "10.96.0.1", answers: str = "10.244.0.1") -> Flow:
    return Flow(Protocol.UDP, "10.244.9.9", source_port, to, 53, answers, 53)


class Servers:
    """The health check node ports, by the last update of them. failure: what an update raises."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.names: dict[int, str] = {}
        self.ips: dict[int, frozenset[str]] = {}
        self.failure: Exception | None = None

    def update_health_checks(self, checks: Mapping[int, HealthCheck]) -> None:
        if self.failure:
            raise self.failure
        self.counts = {port: check.local_endpoints for port, check in checks.items()}
        self.names = {port: check.name for port, check in checks.items()}
        self.ips = {port: check.ips for port, check in checks.items()}


class Metrics:
    def __init__(self) -> None:
        self.deleted: list[int] = []

    def conntrack(self, family: Family, seconds: float, deleted: int) -> None:
        self.deleted.append(deleted)


class StaleRules:
    def __init__(self) -> None:
        self.synced_families: list[Family] = []
        self.failure: Exception | None = None

    def synced(self, family: Family) -> None:
        if self.failure:
            raise self.failure
        self.synced_families.append(family)


class Rig:
    """Two families' work after syncs of a cluster with Service dns (UDP) and its endpoint 10.244.0.1."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.containment = Containment(self.clock)
        self.table, self.servers, self.metrics, self.stale_rules = FakeConntrack(), Servers(), Metrics(), StaleRules()
        self.config: KubeProxyConfiguration = default(ProxyMode.IPTABLES)
        self.answering_failure: Exception | None = None
        ports = HealthCheckPorts(self.servers)
        self.families = {family: self._family(family, ports) for family in Family}
        self.state, self.both = cluster(), BothFamilies()

    def _family(self, family: Family, ports: HealthCheckPorts) -> FamilyPostSync:
        return FamilyPostSync(
            family,
            Reconciler(family, self.table, self.clock.monotonic),
            self._answering,
            lambda: self.config,
            ports,
            self.stale_rules,
            self.metrics,
            self.clock,
            self.containment,
        )

    def _answering(
        self, family: Family, plans: Mapping[PortKey, ServicePlan], node: NodeInfo
    ) -> Mapping[PortKey, ServicePlan]:
        if self.answering_failure:
            raise self.answering_failure
        return plans

    def change(self, *events: Any) -> dict[Family, Changes]:
        for event in events:
            self.state.apply(event)
        return self.both.update(self.state, HERE)

    def synced(
        self, family: Family, *events: Any, work: Work = Work.CHANGES, abandoned: tuple[Frontend, ...] = ()
    ) -> None:
        """A sync that wrote what follows from `events`."""
        changes = self.change(*events)[family]
        report = Report(family, work, 0.0, Outcome(abandoned=abandoned), changes=changes)
        self.families[family].synced(report, self.both.families[family], HERE)

    def retry(self, family: Family = V4) -> None:
        self.families[family].retry(self.both.families[family], HERE)

    def ports(self) -> list[int]:
        """The clients' ports of the flows that are left."""
        return sorted(flow.source_port for flow in self.table.flows(V4))


def dns_slice(ip: str) -> Any:
    return changed(slice_("dns-1", [endpoint(ip)], "dns", ports=[DNS]))


@pytest.fixture
def rig() -> Rig:
    """After the first sync of IPv4, with a flow to the only endpoint."""
    rig = Rig()
    rig.synced(V4, changed(service("dns", ports=[DNS])), dns_slice("10.244.0.1"), work=Work.EVERYTHING)
    rig.table.add(flow(4000))
    return rig


def test_flows_to_an_endpoint_that_is_gone_are_deleted(rig: Rig) -> None:
    rig.synced(V4, changed(service("web")))
    assert rig.ports() == [4000]
    rig.synced(V4, dns_slice("10.244.0.2"))
    assert rig.ports() == []
    assert rig.metrics.deleted == [0, 1]


@pytest.mark.parametrize("failing", ["conntrack", "answering"])
@pytest.mark.parametrize("failure", [KernelError("no answer"), UNFORESEEN], ids=["KernelError", "unforeseen"])
def test_a_failure_is_tried_again_with_growing_waits_and_nothing_stale_is_forgotten(
    rig: Rig, caplog: pytest.LogCaptureFixture, failing: str, failure: Any
) -> None:
    rig.table.add(flow(4001, "10.96.0.77"))
    if failing == "conntrack":
        rig.table.failure = failure
    else:
        rig.answering_failure = failure
    before = rig.table.dumps
    rig.synced(V4, dns_slice("10.244.0.2"), abandoned=(Frontend("10.96.0.77", 53, Protocol.UDP),))
    for wait in (FIRST_RETRY, 2 * FIRST_RETRY, 4 * FIRST_RETRY):
        rig.clock.advance(wait - 0.01)
        tries = rig.containment.counts()["conntrack"]
        rig.retry()
        assert rig.containment.counts()["conntrack"] == tries
        rig.clock.advance(0.02)
        rig.retry()
        assert rig.containment.counts()["conntrack"] == tries + (failure is UNFORESEEN)
    assert rig.table.dumps == before
    rig.table.failure = rig.answering_failure = None
    rig.clock.advance(10)
    rig.retry()
    assert rig.ports() == []
    dumps = rig.table.dumps
    rig.clock.advance(60)
    rig.retry()
    assert rig.table.dumps == dumps, "nothing is left to try again"
    assert rig.containment.failing() == []
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


def test_a_sync_in_between_is_a_try_as_well(rig: Rig) -> None:
    rig.table.failure = KernelError("no answer")
    rig.synced(V4, dns_slice("10.244.0.2"))
    rig.table.failure = None
    rig.synced(V4, changed(service("web")))
    assert rig.ports() == []


def test_health_check_node_ports_count_the_endpoints_of_both_families(rig: Rig) -> None:
    v6 = slice_("web-6", [endpoint("fd00::1"), endpoint("fd00::2")], addressType="IPv6")
    rig.synced(V4, changed(service(**CHECKED)), changed(slice_("web-4", [endpoint("10.244.0.1")])), changed(v6))
    assert (rig.servers.counts, rig.servers.ips) == ({32000: 1}, {32000: frozenset({""})})
    rig.synced(V6)
    assert rig.servers.counts == {32000: 2}
    rig.synced(V6, deleted(v6))
    assert rig.servers.counts == {32000: 1}
    rig.synced(V4, deleted(service()))
    assert rig.servers.counts == {32000: 0}, "IPv6 rules still stand"
    rig.synced(V6)
    assert rig.servers.counts == {}


def test_health_checks_listen_where_the_configuration_in_force_says(rig: Rig) -> None:
    """In the families of their Service: nothing is said of IPv6, so that it is served everywhere there."""
    rig.config = replace(rig.config, node_port_addresses=("172.18.0.0/16",))
    rig.synced(V4, changed(service(**CHECKED)))
    assert rig.servers.ips == {32000: {"172.18.0.2"}}
    rig.synced(V6)
    assert rig.servers.ips == {32000: {"172.18.0.2", "::"}}


def test_of_several_services_with_one_health_check_port_the_first_keeps_it(rig: Rig) -> None:
    """Whoever has it, until that Service goes; who comes at the same time, by name; name and count belong together."""
    for name in ("d", "c"):
        rig.synced(V4, changed(service(name, **CHECKED)))
    assert rig.servers.names == {32000: "d"}
    rig.synced(V4, changed(slice_("c-4", [endpoint("10.244.0.1")], "c")))
    assert (rig.servers.names, rig.servers.counts) == ({32000: "d"}, {32000: 0})
    rig.synced(V6)
    assert rig.servers.names == {32000: "d"}
    rig.synced(V4, deleted(service("d", **CHECKED)), changed(service("e", **CHECKED)))
    assert rig.servers.names == {32000: "d"}, "IPv6 rules still stand"
    rig.synced(V6)
    assert (rig.servers.names, rig.servers.counts) == ({32000: "c"}, {32000: 1})


def test_health_checks_that_could_not_be_updated_are_tried_again(rig: Rig) -> None:
    rig.servers.failure = UNFORESEEN
    rig.synced(V4, changed(service(**CHECKED)), dns_slice("10.244.0.2"))
    assert rig.ports() == [], "the rest of the work is done"
    rig.servers.failure = None
    rig.retry()
    assert rig.servers.counts == {}, "its wait is not over"
    rig.clock.advance(FIRST_RETRY)
    rig.retry()
    assert rig.servers.counts == {32000: 0}
    assert rig.containment.failing() == []


def test_stale_rules_are_told_of_full_syncs_only(rig: Rig) -> None:
    rig.synced(V4, changed(service("web")))
    rig.synced(V6, work=Work.EVERYTHING)
    assert rig.stale_rules.synced_families == [V4, V6]


def test_stale_rules_that_fail_cost_nothing_else(rig: Rig) -> None:
    rig.stale_rules.failure = UNFORESEEN
    rig.synced(V4, dns_slice("10.244.0.2"), work=Work.EVERYTHING)
    assert rig.ports() == []
    assert rig.containment.counts()["stale-rules"] == 1
