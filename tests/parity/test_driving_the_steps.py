"""However a cluster comes to its final state, kproxy ends with what kube-proxy programmed for that state.

The whole path is driven: events, state, plans, programming by difference into the kernels in memory.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kproxy.kernel.iptables import Backend
from kproxy.model.events import Changed, Deleted, Event, Listed
from kproxy.model.node_info import NodeInfo, merged
from kproxy.model.objects import Kind
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.apply import IpvsDataplane
from kproxy.modes.settings import iptables_settings, ipvs_settings
from tests.fakes.clocks import ManualClock
from tests.fakes.ipset import FakeIpSets, SavedTables
from tests.fakes.iptables import FakeTables
from tests.fakes.ipvs import FakeIpvs
from tests.fakes.plans import BothFamilies
from tests.fakes.service_device import FakeAddresses
from tests.parity.conftest import Case

SHORT = {Family.IPV4: "ipv4", Family.IPV6: "ipv6"}

# What iptables-save prints otherwise than kube-proxy writes it.
AS_WRITTEN = {
    " --reject-with icmp6-port-unreachable": "",
    " --reject-with icmp-port-unreachable": "",
    " --mask 255.255.255.255 --rsource": "",
    " --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource": "",
    "\\'": "'",
    "--vproto 6 ": "--vproto tcp ",
    "--vproto 17 ": "--vproto udp ",
    "--vproto 132 ": "--vproto sctp ",
}


# ---------------------------------------------------------------- events


def listed(case: Case, items: Sequence[dict[str, Any]]) -> list[Event]:
    """A complete list of every kind."""
    kinds = case.kinds(items)
    return [Listed(kind, tuple(kinds.get(kind, ()))) for kind in Kind]


def changes(case: Case, items: Sequence[dict[str, Any]]) -> list[Event]:
    return [Changed(kind, item) for kind, found in case.kinds(items).items() for item in found]


def deletions(items: Sequence[dict[str, Any]]) -> list[Event]:
    return [Deleted(Kind(i["kind"]), i["metadata"].get("namespace", ""), i["metadata"]["name"]) for i in items]


def unruly_events(case: Case, draw: Callable[[st.SearchStrategy[Any]], Any]) -> list[list[Event]]:
    """The way to the final state in any order: with objects that come and go, repeats, lists in between."""
    final, older = case.raw["final"], case.raw["objects"]
    events: list[Event] = [*changes(case, older), *deletions(older)]
    events = draw(st.permutations(events))
    last = draw(st.permutations(changes(case, final)))
    repeats = draw(st.lists(st.sampled_from(last), max_size=3)) if last else []
    gone = [item for item in older if _name(item) not in {_name(kept) for kept in final}]
    batches = [events, deletions(gone), [*last, *repeats]]
    if draw(st.booleans()):
        batches.append(listed(case, final))
    return [
        batch[at : at + size]
        for batch in batches
        for size in [draw(st.integers(1, 9))]
        for at in range(0, len(batch), size)
    ]


def _name(item: dict[str, Any]) -> tuple[str, str, str]:
    return item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]


# ---------------------------------------------------------------- nodes


class Iptables:
    """Both families' tables, by one backend."""

    mode = "iptables"

    def __init__(self, backend: Backend) -> None:
        self.tables = {family: FakeTables(family, backend) for family in Family}

    def settings(self, case: Case, family: Family, node: NodeInfo, endpoints: int) -> Any:
        return iptables_settings(case.config, family, node, endpoints)

    def dataplane(self, settings: Any) -> Any:
        return IptablesDataplane(settings, self.tables[settings.family])

    def written(self) -> tuple[int, ...]:
        """How much was ever written."""
        return tuple(len(tables.restores) for tables in self.tables.values())

    def outcome(self, family: Family) -> str:
        """What the kernel holds, in the form of the cases."""
        rules = self.tables[family].save()
        for printed, as_written in AS_WRITTEN.items():
            rules = rules.replace(printed, as_written)
        return rules


class Ipvs(Iptables):
    """Both families in one IPVS, one set of ipsets, one device."""

    mode = "ipvs"

    def __init__(self) -> None:
        super().__init__(Backend.NFT)
        self.clock = ManualClock()
        self.ipvs, self.sets, self.addresses = FakeIpvs(), FakeIpSets(), FakeAddresses()
        for tables in self.tables.values():
            tables.refuse = lambda table, chain, rule: self.sets.unknown(rule)
            self.sets.users.append(SavedTables(tables.save))

    def settings(self, case: Case, family: Family, node: NodeInfo, endpoints: int) -> Any:
        return ipvs_settings(case.config, family, node)

    def dataplane(self, settings: Any) -> Any:
        tables = self.tables[settings.family]
        return IpvsDataplane(settings, self.ipvs, self.sets, self.addresses, tables, clock=self.clock.monotonic)

    def written(self) -> tuple[int, ...]:
        return (self.ipvs.applies, self.sets.applies, self.addresses.changes, *super().written())

    def outcome(self, family: Family) -> str:
        held = self.sets.held([name for name, _ in names.sets(family)])
        values = {
            "rules": super().outcome(family),
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
        return json.dumps(values)


class Node:
    """One node as the sync loop drives it: its state and plans, and each mode at work on kernels of its own."""

    def __init__(self, case: Case, *kernels: Iptables) -> None:
        self.case, self.kernels = case, kernels
        self.state, self.plans = ClusterState(case.raw["node"]), BothFamilies()
        self._dataplanes = [
            (kernel, {family: kernel.dataplane(self._settings(kernel, family)) for family in Family})
            for kernel in kernels
        ]
        self._started = False

    def _node(self) -> NodeInfo:
        return merged(self.state.node_name, self.state.node, self.case.host)

    def _settings(self, kernel: Iptables, family: Family) -> Any:
        return kernel.settings(self.case, family, self._node(), self.plans.families[family].endpoints)

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            assert self.state.apply(event) == []

    def sync(self) -> None:
        touched = self.plans.update(self.state, self._node())
        for kernel, dataplanes in self._dataplanes:
            for family, dataplane in dataplanes.items():
                dataplane.configure(self._settings(kernel, family))
                keys = touched[family].keys() if self._started else None
                assert not dataplane.apply(self.plans.families[family].plans, keys).rejected
                dataplane.housekeeping()
        self._started = True

    def see(self, events: Iterable[Event]) -> None:
        self.take(events)
        self.sync()

    def written(self) -> list[tuple[int, ...]]:
        return [kernel.written() for kernel in self.kernels]

    def assert_equals_kube_proxy(self, compare: ModuleType) -> None:
        for kernel in self.kernels:
            for family in Family:
                assert compare.check(self.case.raw, kernel.mode, SHORT[family], kernel.outcome(family)) == []


def every_kernel() -> list[Iptables]:
    return [Iptables(Backend.NFT), Iptables(Backend.LEGACY), Ipvs()]


# ---------------------------------------------------------------- ways to the final state


def test_steps_lead_to_kube_proxys_outcome(case: Case, compare: ModuleType) -> None:
    node = Node(case, *every_kernel())
    node.see(listed(case, case.raw["objects"]))
    for step in case.raw["steps"]:
        node.see([*changes(case, step["apply"]), *deletions(step["delete"])])
    assert node.plans.families == case.preview.families
    node.assert_equals_kube_proxy(compare)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=40)
@given(data=st.data())
def test_any_order_of_events_leads_there(data: st.DataObject, all_cases: Sequence[Case], compare: ModuleType) -> None:
    case = data.draw(st.sampled_from(all_cases))
    node = Node(case, *every_kernel())
    node.see(listed(case, data.draw(st.sampled_from([[], case.raw["objects"]]))))
    for batch in unruly_events(case, data.draw):
        node.see(batch)
    node.assert_equals_kube_proxy(compare)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(data=st.data())
def test_a_relist_that_changes_nothing_writes_nothing(data: st.DataObject, all_cases: Sequence[Case]) -> None:
    case = data.draw(st.sampled_from(all_cases))
    node = Node(case, Iptables(Backend.NFT), Ipvs())
    node.see(listed(case, case.raw["final"]))
    before = node.written()
    node.see(listed(case, data.draw(st.permutations(case.raw["final"]))))
    assert node.written() == before


@pytest.mark.parametrize("number", [0, 100, 200])
def test_a_node_that_another_daemon_programmed_is_adopted(number: int, all_cases: Sequence[Case]) -> None:
    case = all_cases[number]
    before = Node(case, *every_kernel())
    before.see(listed(case, case.raw["final"]))
    node, written = Node(case, *before.kernels), before.written()
    node.see(listed(case, case.raw["final"]))
    assert node.written() == written


def test_events_in_any_order_with_repeats_and_a_relist(case: Case) -> None:
    """Between objects the order of events has no meaning, and a relist at the end says nothing new."""
    rng = random.Random(case.raw["id"])
    node = Node(case)
    node.take(listed(case, []))
    steps = [([*changes(case, step["apply"]), *deletions(step["delete"])], 2) for step in case.raw["steps"]]
    for events, times in [(changes(case, case.raw["objects"]), 1), *steps]:
        for event in rng.sample(events, len(events)):
            node.take([event] * times)
            if rng.random() < 0.3:
                node.sync()
    node.sync()
    assert node.plans.families == case.preview.families
    node.take(listed(case, case.raw["final"]))
    dirty = node.state.take_dirty()
    assert (dirty.names, dirty.all) == (frozenset(), False)
