"""However a cluster comes to its final state, kproxy ends with the rules that kube-proxy programmed for that state.

The whole path is driven: events, state, plans, programming by difference into the kernel in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kproxy.kernel.iptables import Backend
from kproxy.model.events import Event
from kproxy.model.node_info import NodeInfo, merged
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.settings import iptables_settings
from tests.fakes.iptables import FakeTables
from tests.fakes.plans import BothFamilies
from tests.parity.events import changes, deletions, listed, unruly_events

SHORT = {Family.IPV4: "ipv4", Family.IPV6: "ipv6"}


class Node:
    """One node as the sync loop drives it, both families into kernels in memory."""

    def __init__(self, case: Any, backend: Backend) -> None:
        self._case = case
        self.state = ClusterState(case.raw["node"])
        self._plans = BothFamilies()
        self._tables = {family: FakeTables(family, backend) for family in Family}
        self._dataplanes = {f: IptablesDataplane(self._settings(f), t) for f, t in self._tables.items()}
        self._started = False

    def _node(self) -> NodeInfo:
        return merged(self.state.node_name, self.state.node, self._case.host)

    def _settings(self, family: Family) -> Any:
        case, endpoints = self._case, self._plans.families[family].endpoints
        return iptables_settings(case.config, family, self._node(), endpoints)

    def see(self, events: Sequence[Event]) -> None:
        for event in events:
            assert self.state.apply(event) == []
        touched = self._plans.update(self.state, self._node())
        for family, dataplane in self._dataplanes.items():
            dataplane.configure(self._settings(family))
            keys = touched[family].keys() if self._started else None
            assert not dataplane.apply(self._plans.families[family].plans, keys).rejected
        self._started = True

    def assert_equals_kube_proxy(self, compare: ModuleType) -> None:
        for family, tables in self._tables.items():
            text = tables.save().replace(" --reject-with icmp6-port-unreachable", "")
            text = text.replace(" --reject-with icmp-port-unreachable", "")
            text = text.replace(" --mask 255.255.255.255 --rsource", "")
            text = text.replace(" --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource", "")
            assert compare.check(self._case.raw, "iptables", SHORT[family], text) == []


@pytest.mark.parametrize("backend", list(Backend))
def test_steps_lead_to_kube_proxys_rules(case: Any, backend: Backend, compare: ModuleType) -> None:
    node = Node(case, backend)
    node.see(listed(case, case.raw["objects"]))
    for step in case.raw["steps"]:
        node.see([*changes(case, step["apply"]), *deletions(step["delete"])])
    node.assert_equals_kube_proxy(compare)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(data=st.data())
def test_any_order_of_events_leads_there(data: st.DataObject, all_cases: Sequence[Any], compare: ModuleType) -> None:
    case = data.draw(st.sampled_from(all_cases))
    node = Node(case, data.draw(st.sampled_from(list(Backend))))
    node.see(listed(case, data.draw(st.sampled_from([[], case.raw["objects"]]))))
    for batch in unruly_events(case, data.draw):
        node.see(batch)
    node.assert_equals_kube_proxy(compare)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(data=st.data())
def test_a_relist_that_changes_nothing_writes_nothing(data: st.DataObject, all_cases: Sequence[Any]) -> None:
    case = data.draw(st.sampled_from(all_cases))
    node = Node(case, Backend.NFT)
    node.see(listed(case, case.raw["final"]))
    before = [len(tables.restores) for tables in node._tables.values()]
    node.see(listed(case, data.draw(st.permutations(case.raw["final"]))))
    assert [len(tables.restores) for tables in node._tables.values()] == before
