"""The dataplane on the real kernel: what it writes, what others do to it, and what is repaired."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from kproxy.errors import NetlinkError
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.model.plans import Endpoint, Family, PortKey, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.nftables.apply import NftablesDataplane
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.names import KUBE_PROXY_TABLE, TABLE
from kproxy.modes.nftables.render import lay_out, render_base, render_port
from kproxy.netfilter.changes import OwnTransactions
from kproxy.netfilter.kernel import Expected, KernelNftables
from kproxy.netfilter.operations import AddElements, Operation
from kproxy.netfilter.table import LARGE, Table, delete_tables
from tests.nftables.plans import address, build_plan, settings
from tests.nftables_mode.rigs import comparison

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable(("nft",))), reason=unavailable(("nft",)))]

Plans = dict[PortKey, ServicePlan]
WEB = build_plan("web", cluster=(1, 2, 3), node_port=30080)
DNS = build_plan("dns", affinity_seconds=60)
FIREWALLED = build_plan("firewalled", load_balancer_ips=("203.0.113.5",), source_ranges=("10.0.0.0/8",))
OTHERS = """
table ip kube-proxy { chain services { type nat hook prerouting priority -100; }; }
table ip6 kube-proxy { }
table ip mine { set kept { type ipv4_addr; elements = { 10.0.0.1 }; }; chain c { counter packets 7 bytes 8; }; }
"""


class Rig:
    """A dataplane of one family with its sockets; of use in the thread of one namespace."""

    def __init__(
        self, chosen: Settings, own: OwnTransactions | None = None, kernel: KernelNftables | None = None
    ) -> None:
        self.settings, self.kernel = chosen, kernel or KernelNftables()
        self.table = Table(chosen.family, TABLE, self.kernel, own or OwnTransactions())
        self.dataplane = NftablesDataplane(chosen, self.table)
        self.plans: Plans = {}

    def want(self, *plans: ServicePlan) -> Outcome:
        self.plans.update((plan.key, plan) for plan in plans)
        return self.dataplane.apply(self.plans, [plan.key for plan in plans])

    def drop(self, *plans: ServicePlan) -> Outcome:
        for plan in plans:
            self.plans.pop(plan.key, None)
        return self.dataplane.apply(self.plans, [plan.key for plan in plans])

    def check(self) -> Outcome:
        return self.dataplane.apply(self.plans, None)

    def differs(self) -> list[Any]:
        """Places where the kernel's table is not as rendered."""
        chosen = self.settings
        layout = lay_out(render_base(chosen), [(p.key, render_port(p, chosen)) for p in self.plans.values()])
        listing = self.kernel.listing(chosen.family, TABLE)
        return ["the table"] if listing is None else list(comparison(listing, layout).places)

    def remove(self) -> None:
        assert delete_tables(self.kernel, [TABLE], [self.settings.family]) == []

    def close(self) -> None:
        self.table.close()
        self.kernel.close()


@pytest.fixture
def netns() -> Iterator[Namespace]:
    space = Namespace("nftables-mode")
    try:
        yield space
    finally:
        space.close()


@pytest.fixture
def real(netns: Namespace) -> Iterator[Rig]:
    """Its methods have to be called in the namespace: the sockets are made there, and the monitor when first asked."""
    rig = netns.call(Rig, settings())
    try:
        netns.call(rig.check)
        netns.call(rig.want, WEB, DNS, FIREWALLED)
        assert not netns.call(rig.dataplane.drifted)
        yield rig
    finally:
        netns.call(rig.close)


def handles(netns: Namespace) -> set[tuple[str, int]]:
    """The kernel's numbers of all chains: one that was made anew has another."""
    listed = json.loads(netns.run(["nft", "-j", "-a", "list", "chains"]))["nftables"]
    return {(entry["chain"]["name"], entry["chain"]["handle"]) for entry in listed if "chain" in entry}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("flush ruleset", id="everything is flushed"),
        pytest.param("delete table ip kproxy", id="the table is deleted"),
        pytest.param("flush chain ip kproxy services", id="a chain is flushed"),
        pytest.param("insert rule ip kproxy services accept", id="a rule is inserted"),
        pytest.param("flush map ip kproxy endpoints", id="a map is flushed"),
        pytest.param("add element ip kproxy hairpins { 10.9.9.9 . 10.9.9.9 }", id="an element is added"),
        pytest.param("add element ip kproxy services { 10.9.9.9 . icmp . 0 : drop }", id="a protocol of nobody"),
        pytest.param("flush set ip kproxy sources", id="the sources are flushed"),
        pytest.param("add chain ip kproxy extra; add rule ip kproxy extra jump refuse", id="a chain is added"),
        pytest.param(
            "add chain ip kproxy extra; add map ip kproxy led { type mark : verdict; elements = { 1 : jump extra }; }",
            id="a map whose verdicts keep a chain",
        ),
        pytest.param("flush chain ip kproxy nat-output; delete chain ip kproxy nat-output", id="a hook is lost"),
    ],
)
def test_what_others_edit_is_noticed_and_repaired(netns: Namespace, real: Rig, command: str) -> None:
    netns.run(["nft", "-f", "-"], command)
    assert netns.call(real.differs) != []
    assert netns.call(real.dataplane.drifted)
    assert netns.call(real.check).repaired
    assert netns.call(real.differs) == []
    assert not netns.call(real.dataplane.drifted)


def test_an_element_with_other_data_gets_its_data_back(netns: Namespace, real: Rig) -> None:
    key = f"{WEB.cluster_ip} . tcp . 80 . 0"
    netns.run(
        ["nft", "-f", "-"],
        f"delete element ip kproxy endpoints {{ {key} }}\n"
        f"add element ip kproxy endpoints {{ {key} : 192.0.2.1 . 9 }}\n",
    )
    outcome = netns.call(real.check)
    assert outcome.repaired
    assert outcome.rules_written == {TABLE: 1}
    assert netns.call(real.differs) == []


def test_a_set_of_another_form_is_replaced_with_its_table(netns: Namespace, real: Rig) -> None:
    text = "flush ruleset; add table ip kproxy; add set ip kproxy services { type ipv4_addr; }"
    netns.run(["nft", "-f", "-"], text)
    outcome = netns.call(real.check)
    assert (outcome.repaired, outcome.transactions) == (True, 1)
    assert netns.call(real.differs) == []


def test_a_change_after_others_edits_overwrites_nothing_unseen(netns: Namespace, real: Rig) -> None:
    netns.run(["nft", "-f", "-"], "flush map ip kproxy services")
    netns.call(real.want, build_plan("new", cluster=(7,)))
    assert netns.call(real.differs) == []


def test_edits_of_other_tables_are_not_ours(netns: Namespace, real: Rig) -> None:
    netns.run(["nft", "-f", "-"], "table ip mine { chain c { counter; }; }\ntable ip6 kproxy { }")
    assert not netns.call(real.dataplane.drifted)
    outcome = netns.call(real.want, build_plan("new", cluster=(7,)))
    assert outcome.transactions == 1
    assert netns.call(real.differs) == []


def test_kube_proxys_table_is_deleted_and_all_others_stay(netns: Namespace) -> None:
    netns.run(["nft", "-f", "-"], OTHERS)
    rig = netns.call(Rig, settings())
    try:
        netns.call(rig.check)
        assert "table ip kube-proxy" not in netns.run(["nft", "list", "tables"])
        assert "table ip6 kube-proxy" in netns.run(["nft", "list", "tables"])  # that of the other family's dataplane
        assert "counter packets 7 bytes 8" in netns.run(["nft", "list", "table", "ip", "mine"])
    finally:
        netns.call(rig.close)


def test_a_table_that_is_there_is_adopted(netns: Namespace, real: Rig) -> None:
    def adopt() -> Outcome:
        heir = Rig(real.settings)
        try:
            heir.plans = {plan.key: plan for plan in (WEB, DNS)}
            return heir.check()
        finally:
            heir.close()

    before = handles(netns)
    assert netns.call(adopt).transactions == 1
    real.plans.pop(FIREWALLED.key)
    assert netns.call(real.differs) == []
    assert handles(netns) < before  # those of the Service that is gone are missing, and all others are the same


def test_a_port_that_the_kernel_refuses_does_not_stop_the_others(netns: Namespace, real: Rig) -> None:
    ends = (Endpoint("10.244.0.5", 80), Endpoint("no address", 80))
    bad = build_plan("bad", cluster=(), has_endpoints=True)
    bad = msgspec.structs.replace(bad, cluster=ends)
    outcome = netns.call(real.want, bad, build_plan("good", cluster=(6,)))
    assert list(outcome.rejected) == [bad.key]
    real.plans.pop(bad.key)
    assert netns.call(real.differs) == []


class Picky(KernelNftables):
    """Refuses elements with a comment, and does not say why."""

    def __init__(self, comment: str) -> None:
        super().__init__()
        self._comment = comment

    def apply(
        self, family: Family, operations: Sequence[Operation], expected: Expected = None
    ) -> dict[int, NetlinkError]:
        added = (e for op in operations if isinstance(op, AddElements) for e in op.elements)
        if any(element.comment == self._comment for element in added):
            raise NetlinkError("change nf_tables", errno.ENOMEM)
        return super().apply(family, operations, expected)


def test_a_large_change_of_ours_is_not_foreign_and_hides_no_foreign_one(netns: Namespace, real: Rig) -> None:
    many = [build_plan(f"s{n}", cluster_ip=address(Family.IPV4, 97, n), cluster=range(1, 60)) for n in range(1, 200)]
    outcome = netns.call(real.want, *many)
    assert outcome.transactions == 1
    assert outcome.rules_written[TABLE] > LARGE
    assert not netns.call(real.dataplane.drifted)
    netns.run(["nft", "-f", "-"], "flush map ip kproxy services")
    assert netns.call(real.dataplane.drifted)
    assert netns.call(real.check).repaired
    assert netns.call(real.differs) == []


@pytest.mark.parametrize("at_start", [True, False])
def test_an_unattributed_refusal_is_found_by_halves(netns: Namespace, at_start: bool) -> None:
    def run() -> tuple[list[str], bool, int]:
        rig = Rig(settings(), kernel=Picky(str(DNS.key)))
        try:
            if not at_start:
                rig.check()
            rig.plans = {plan.key: plan for plan in (WEB, DNS, FIREWALLED)}
            outcome = rig.check() if at_start else rig.want(WEB, DNS, FIREWALLED)
            del rig.plans[DNS.key]
            return [str(key) for key in outcome.rejected], outcome.repaired, len(rig.differs())
        finally:
            rig.close()

    assert netns.call(run) == ([str(DNS.key)], False, 0)


def test_only_the_tables_of_proxies_are_deleted(netns: Namespace, real: Rig) -> None:
    netns.run(["nft", "-f", "-"], OTHERS)
    assert netns.call(delete_tables, real.kernel, [TABLE, KUBE_PROXY_TABLE]) == []
    assert netns.run(["nft", "list", "tables"]).split() == ["table", "ip", "mine"]
