"""On a node that has any of the cluster states programmed that kube-proxy answered, the first sync writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest

from kproxy.kernel.ipset import Change
from kproxy.kernel.iptables import Backend, Command, HostTables, Tables
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.kernel.virtual_servers import RealKey, RealServer, ServerKey, VirtualServer
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.model.plans import Family, PortKey, Protocol, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.ipvs.apply import IpvsDataplane
from kproxy.modes.ipvs.fragments import Settings as IpvsSettings
from kproxy.modes.ipvs.kernel_state import specs
from kproxy.modes.nftables.apply import NftablesDataplane
from kproxy.modes.nftables.fragments import Settings as NftablesSettings
from kproxy.modes.nftables.names import TABLE
from kproxy.modes.preview import Preview, load
from kproxy.modes.settings import ipvs_settings, nftables_settings
from kproxy.netfilter.changes import OwnTransactions
from kproxy.netfilter.kernel import KernelNftables, Nftables
from kproxy.netfilter.table import Table
from tests.fakes.ipset import FakeIpSets, SavedTables
from tests.fakes.iptables import FakeTables
from tests.fakes.ipvs import FakeIpvs
from tests.fakes.nftables import FakeNftables
from tests.fakes.service_device import FakeAddresses
from tests.network_namespaces import InNamespace
from tests.parity.conftest import Case, cases
from tests.parity.test_real_kernel import loadable

EVERY_CASE = pytest.mark.parametrize("case", cases(), ids=[case.raw["id"] for case in cases()])
SOME_CASES = pytest.mark.parametrize("case", cases()[::20], ids=[case.raw["id"] for case in cases()[::20]])
SHORT = {Family.IPV4: "ipv4", Family.IPV6: "ipv6"}
NFT = Command(Backend.NFT, "-nft", (1, 8, 9))
NOTHING = (0, 0, False)


@pytest.fixture(scope="module")
def netns() -> Iterator[Namespace]:
    if reason := unavailable(("iptables-nft-restore", "ip6tables-nft-restore")):
        pytest.skip(reason)
    with closing(Namespace("node")) as space:
        yield space


class Node:
    """The case's node: what each mode is told."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._state, _ = load(case.raw["node"], case.kinds(case.raw["final"]))
        self._preview = Preview(self._state, case.config, case.host)

    def plans(self, family: Family) -> Mapping[PortKey, ServicePlan]:
        return self._preview.families[family].plans

    def adopt(self, family: Family, tables: Tables) -> tuple[int, int, bool]:
        """What iptables mode writes to TABLES."""
        settings = self._preview.settings(family)
        return written(IptablesDataplane(settings, tables).apply(self.plans(family), None))

    def nftables(self, family: Family) -> NftablesSettings:
        return nftables_settings(self._case.config, family, self._preview.node)

    def ipvs(self, family: Family) -> IpvsSettings:
        return ipvs_settings(self._case.config, family, self._preview.node)


def written(outcome: Outcome) -> tuple[int, int, bool]:
    assert not outcome.rejected
    return outcome.transactions, outcome.bytes_written, outcome.repaired


# ---------------------------------------------------------------- iptables mode


@SOME_CASES
def test_kube_proxys_rules_in_the_kernel(case: Case, netns: Namespace) -> None:
    """On the nft backend, where every write counts the kernel's generation up. All cases are in tests/parity."""
    node = Node(case)
    for family, short in SHORT.items():
        tool = "iptables-nft" if family is Family.IPV4 else "ip6tables-nft"
        netns.run([f"{tool}-restore"], loadable(case.raw["expect"]["iptables"][short]["rules"]))
        before = netns.call(generation)
        assert node.adopt(family, HostTables(InNamespace(netns), family, NFT)) == NOTHING
        assert netns.call(generation) == before


def generation() -> int:
    with KernelNftables() as kernel:
        return kernel.generation()


@EVERY_CASE
def test_kube_proxys_rules_on_the_legacy_backend(case: Case) -> None:
    node = Node(case)
    for family, short in SHORT.items():
        tables = FakeTables(family, Backend.LEGACY)
        tables.restore(loadable(case.raw["expect"]["iptables"][short]["rules"]))
        assert node.adopt(family, tables) == NOTHING
        assert len(tables.restores) == 1


# ---------------------------------------------------------------- nftables mode


def nftables(settings: NftablesSettings, kernel: Nftables) -> NftablesDataplane:
    return NftablesDataplane(settings, Table(settings.family, TABLE, kernel, OwnTransactions()))


@EVERY_CASE
def test_the_table_of_an_earlier_start(case: Case) -> None:
    node, kernel = Node(case), FakeNftables()
    for family in Family:
        nftables(node.nftables(family), kernel).apply(node.plans(family), None)
    applied = len(kernel.applied)
    for family in Family:
        assert written(nftables(node.nftables(family), kernel).apply(node.plans(family), None)) == NOTHING
    assert len(kernel.applied) == applied


@SOME_CASES
def test_the_table_of_an_earlier_start_in_the_kernel(case: Case, netns: Namespace) -> None:
    node = Node(case)

    def check() -> None:
        for family in Family:
            settings, plans = node.nftables(family), node.plans(family)
            with KernelNftables() as kernel:
                nftables(settings, kernel).apply(plans, None)
            with KernelNftables() as kernel:
                before = kernel.generation()
                outcome = nftables(settings, kernel).apply(plans, None)
                assert (outcome.transactions, outcome.repaired, outcome.rejected) == (0, False, {})
                assert kernel.generation() == before

    netns.call(check)


# ---------------------------------------------------------------- IPVS mode


@EVERY_CASE
def test_what_kube_proxy_has_in_ipvs_mode(case: Case) -> None:
    """Virtual servers, ipsets, addresses and rules."""
    ipvs, sets, addresses = FakeIpvs(), FakeIpSets(), FakeAddresses()
    addresses.ensure()
    tables: dict[Family, FakeTables] = {}
    for family, short in SHORT.items():
        expected = case.raw["expect"]["ipvs"][short]
        for operation in operations(expected["virtualServers"] or []):
            ipvs.edit(operation)
        sets.create(specs(family))
        for name, entries in expected["ipsets"].items():
            for entry in entries or []:
                sets.edit(Change(name, entry, add=True))
        addresses.edit(add=expected["kubeIpvs0"] or [])
        tables[family] = FakeTables(family)
        sets.users.append(SavedTables(tables[family].save))
        tables[family].restore(loadable(expected["rules"]))
    node = Node(case)
    for family, held in tables.items():
        made = IpvsDataplane(node.ipvs(family), ipvs, sets, addresses, held)
        assert written(made.apply(node.plans(family), None)) == NOTHING
    assert (ipvs.applied, sets.applied, addresses.added, addresses.removed) == ([], [], [], [])
    assert [len(held.restores) for held in tables.values()] == [1, 1]


def operations(servers: list[dict[str, Any]]) -> Iterator[Operation]:
    for each in servers:
        key = ServerKey(Protocol(each["protocol"]), each["address"], each["port"])
        server = VirtualServer(key, each["scheduler"], each["flags"], each["timeout"])
        yield Operation(Verb.ADD_SERVER, server)
        for text in each["realServers"] or []:
            where, _, weight = text.partition(" weight=")
            host, _, port = where.rpartition(":")
            yield Operation(Verb.ADD_REAL, server, RealServer(RealKey(host.strip("[]"), int(port)), int(weight)))
