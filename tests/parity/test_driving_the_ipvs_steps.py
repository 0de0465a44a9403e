"""However a cluster comes to its final state, IPVS mode ends with what kube-proxy programmed for that state.

The whole path is driven: events, state, plans, programming by difference into the kernels in memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kproxy.model.events import Event
from kproxy.model.node_info import NodeInfo, merged
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.apply import IpvsDataplane
from kproxy.modes.settings import ipvs_settings
from tests.fakes.clocks import ManualClock
from tests.fakes.ipset import FakeIpSets, SavedTables
from tests.fakes.iptables import FakeTables
from tests.fakes.ipvs import FakeIpvs
from tests.fakes.plans import BothFamilies
from tests.fakes.service_device import FakeAddresses
from tests.parity.events import changes, deletions, listed, unruly_events

SHORT = {Family.IPV4: "ipv4", Family.IPV6: "ipv6"}

# What iptables-save prints otherwise than kube-proxy writes it.
AS_WRITTEN = {
    " --reject-with icmp6-port-unreachable": "",
    " --reject-with icmp-port-unreachable": "",
    "\\'": "'",
    "--vproto 6 ": "--vproto tcp ",
    "--vproto 17 ": "--vproto udp ",
    "--vproto 132 ": "--vproto sctp ",
}


class Node:
    """One node as the sync loop drives it, both families into one IPVS, one set of ipsets, one device."""

    def __init__(self, case: Any) -> None:
        self._case = case
        self.state = ClusterState(case.raw["node"])
        self._plans = BothFamilies()
        self._clock = ManualClock()
        self.ipvs, self.sets, self.addresses = FakeIpvs(), FakeIpSets(), FakeAddresses()
        self.tables = {family: FakeTables(family) for family in Family}
        self._dataplanes = {family: self._make_dataplane(family) for family in Family}
        self._started = False

    def _make_dataplane(self, family: Family) -> IpvsDataplane:
        tables, clock = self.tables[family], self._clock.monotonic
        tables.refuse = lambda table, chain, rule: self.sets.unknown(rule)
        self.sets.users.append(SavedTables(tables.save))
        return IpvsDataplane(self._settings(family), self.ipvs, self.sets, self.addresses, tables, clock=clock)

    def _node(self) -> NodeInfo:
        return merged(self.state.node_name, self.state.node, self._case.host)

    def _settings(self, family: Family) -> Any:
        return ipvs_settings(self._case.config, family, self._node())

    def see(self, events: Sequence[Event]) -> None:
        for event in events:
            assert self.state.apply(event) == []
        touched = self._plans.update(self.state, self._node())
        for family, dataplane in self._dataplanes.items():
            dataplane.configure(self._settings(family))
            keys = touched[family].keys() if self._started else None
            assert not dataplane.apply(self._plans.families[family].plans, keys).rejected
            dataplane.housekeeping()
        self._started = True

    def written(self) -> tuple[int, ...]:
        """How much was ever written."""
        restores = (len(tables.restores) for tables in self.tables.values())
        return (self.ipvs.applies, self.sets.applies, self.addresses.changes, *restores)

    def assert_equals_kube_proxy(self, compare: ModuleType) -> None:
        for family in Family:
            assert compare.check(self._case.raw, "ipvs", SHORT[family], json.dumps(self._outcome(family))) == []

    def _outcome(self, family: Family) -> dict[str, Any]:
        """What the kernels hold, in the form of the cases."""
        rules = self.tables[family].save()
        for printed, written in AS_WRITTEN.items():
            rules = rules.replace(printed, written)
        held = self.sets.held([name for name, _ in names.sets(family)])
        return {
            "rules": rules,
            "virtualServers": [
                {
                    "protocol": key.protocol.value,
                    "address": key.address,
                    "port": key.port,
                    "scheduler": server.scheduler,
                    "flags": server.flags,
                    "timeout": server.timeout,
                    "realServers": [f"{real} weight={state.weight}" for real, state in reals.items()],
                }
                for key, (server, reals, _) in self.ipvs.servers(family).items()
            ],
            "ipsets": {name: sorted(each.entries) for name, each in held.items()},
            "kubeIpvs0": sorted(self.addresses.held(family)),
        }


def test_steps_lead_to_kube_proxys_outcome(case: Any, compare: ModuleType) -> None:
    node = Node(case)
    node.see(listed(case, case.raw["objects"]))
    for step in case.raw["steps"]:
        node.see([*changes(case, step["apply"]), *deletions(step["delete"])])
    node.assert_equals_kube_proxy(compare)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=40)
@given(data=st.data())
def test_any_order_of_events_leads_there(data: st.DataObject, all_cases: Sequence[Any], compare: ModuleType) -> None:
    case = data.draw(st.sampled_from(all_cases))
    node = Node(case)
    node.see(listed(case, data.draw(st.sampled_from([[], case.raw["objects"]]))))
    for batch in unruly_events(case, data.draw):
        node.see(batch)
    node.assert_equals_kube_proxy(compare)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(data=st.data())
def test_a_relist_that_changes_nothing_writes_nothing(data: st.DataObject, all_cases: Sequence[Any]) -> None:
    case = data.draw(st.sampled_from(all_cases))
    node = Node(case)
    node.see(listed(case, case.raw["final"]))
    before = node.written()
    node.see(listed(case, data.draw(st.permutations(case.raw["final"]))))
    assert node.written() == before


@pytest.mark.parametrize("number", [0, 100, 200])
def test_a_node_that_another_daemon_programmed_is_adopted(number: int, all_cases: Sequence[Any]) -> None:
    case = all_cases[number]
    before = Node(case)
    before.see(listed(case, case.raw["final"]))
    node = Node(case)
    node.ipvs, node.sets, node.addresses, node.tables = before.ipvs, before.sets, before.addresses, before.tables
    node._dataplanes = {family: node._make_dataplane(family) for family in Family}
    written = node.written()
    node.see(listed(case, case.raw["final"]))
    assert node.written() == written
