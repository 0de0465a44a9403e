"""What others edit is undone from notifications; the table is read only where these do not suffice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kproxy.errors import KernelError
from kproxy.model.node_info import NodePortAddresses
from kproxy.model.plans import Family
from kproxy.modes.nftables.names import TABLE, PortNames
from kproxy.modes.nftables.render import render_base
from kproxy.netfilter.objects import BaseChain, Drop, Element, Hook, Jump, Set, Type, Verdict
from kproxy.netfilter.operations import (
    AddChain,
    AddElements,
    AddRules,
    AddSet,
    AddTable,
    DeleteChain,
    DeleteElements,
    DeleteSet,
    DeleteTable,
    FlushChain,
    Operation,
)
from kproxy.netfilter.table import TRIES
from tests.netfilter.values import emptied
from tests.nftables.plans import build_plan, settings
from tests.nftables_mode.rigs import Rig

WEB = build_plan("web", cluster=(1, 2, 3), node_port=30080)
STICKY = build_plan("sticky", affinity_seconds=60)
FIREWALLED = build_plan("firewalled", load_balancer_ips=("203.0.113.5",), source_ranges=("10.0.0.0/8", "10.9.0.1/32"))
SETTINGS = settings(
    node_port_addresses=NodePortAddresses(match_all=False, ips=("172.30.0.11",)), service_cidrs=("10.96.0.0/12",)
)
SETS = {found.name: found for found in render_base(SETTINGS).sets}
AFFINITY = PortNames(STICKY.key).anywhere
STRAY = Element("services", ("10.96.250.250", "tcp", 80), Verdict())
OTHER = Set("theirs", (Type.IPV4,))


def rig() -> Rig:
    found = Rig(chosen=SETTINGS)
    found.plans = {plan.key: plan for plan in (WEB, STICKY, FIREWALLED)}
    found.check()
    return found


def of(name: str) -> list[Element]:
    """The elements of a set of ours."""
    return sorted(rig().held()[2][name], key=str)


def moved(element: Element) -> list[Operation]:
    """Gives an element other data."""
    other = Element(element.set, element.key, ("192.0.2.1", 9))
    spec = SETS[element.set]
    return [DeleteElements(TABLE, spec, [element]), AddElements(TABLE, spec, [other])]


EDITS: dict[str, Callable[[], list[Operation]]] = {
    "an element of nobody": lambda: [AddElements(TABLE, SETS["services"], [STRAY])],
    "a verdict is lost": lambda: [DeleteElements(TABLE, SETS["services"], of("services")[:1])],
    "a node port is lost": lambda: [DeleteElements(TABLE, SETS["node-ports"], of("node-ports"))],
    "all slots are lost": lambda: [emptied(SETS["endpoints"])],
    "slots of node ports are lost": lambda: [emptied(SETS["node-port-endpoints"])],
    "a slot has another endpoint": lambda: moved(of("endpoints")[0]),
    "sources are lost": lambda: [emptied(SETS["sources"])],
    "a cluster IP is lost": lambda: [DeleteElements(TABLE, SETS["cluster-ips"], of("cluster-ips")[:1])],
    "hairpins are lost": lambda: [emptied(SETS["hairpins"])],
    "a hairpin of two": lambda: [
        AddElements(TABLE, SETS["hairpins"], [Element("hairpins", ("10.244.0.1", "10.9.9.9"))])
    ],
    "an address of the node is lost": lambda: [emptied(SETS["node-port-addresses"])],
    "a rule more": lambda: [AddRules(TABLE, "services", ((Drop(),),))],
    "a chain's rules are lost": lambda: [FlushChain(TABLE, "services")],
    "a shared chain's rules are lost": lambda: [FlushChain(TABLE, "cluster-3")],
    "a port's own chain's rules are lost": lambda: [FlushChain(TABLE, AFFINITY)],
    "a hook is lost": lambda: [FlushChain(TABLE, "nat-output"), DeleteChain(TABLE, "nat-output")],
    "a chain more": lambda: [
        AddChain(TABLE, "extra"),
        AddRules(TABLE, "extra", ((Drop(),),)),
        AddRules(TABLE, "services", ((Jump("extra"),),)),
    ],
    "a hook more": lambda: [AddChain(TABLE, "extra", BaseChain("filter", Hook.FORWARD, 0))],
    "a chain and everything that jumps to it": lambda: [
        DeleteElements(TABLE, SETS["node-ports"], of("node-ports")),
        FlushChain(TABLE, "node-3"),
        DeleteChain(TABLE, "node-3"),
    ],
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("at_a_change", [False, True])
def test_it_is_undone_without_reading_the_table(edit: str, at_a_change: bool) -> None:
    found = rig()
    listings, before = found.kernel.listings, found.kernel.bytes_written
    found.kernel.edit(Family.IPV4, *EDITS[edit]())
    assert found.held() != found.wanted()
    assert found.dataplane.drifted()
    outcome = found.want(build_plan("new", cluster=(7,))) if at_a_change else found.check()
    assert outcome.repaired
    assert found.held() == found.wanted()
    assert found.kernel.listings == listings
    assert found.kernel.bytes_written - before < 5000
    assert not found.dataplane.drifted()
    assert not found.read().repaired


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param([AddSet(TABLE, OTHER), AddElements(TABLE, OTHER, [Element("theirs", ("10.0.0.1",))])], id="a set"),
        pytest.param([DeleteTable(TABLE)], id="the table goes"),
        pytest.param([DeleteTable(TABLE), AddTable(TABLE)], id="the table is made anew"),
        pytest.param([emptied(SETS["service-cidrs"])], id="networks"),
    ],
)
def test_what_cannot_be_followed_is_compared(operations: list[Operation]) -> None:
    found = rig()
    listings = found.kernel.listings
    found.kernel.edit(Family.IPV4, *operations)
    assert found.check().repaired
    assert found.kernel.listings > listings
    assert found.held() == found.wanted()


def test_a_set_that_is_lost_and_its_rules_come_back() -> None:
    found = rig()
    found.kernel.edit(Family.IPV4, FlushChain(TABLE, "nat-postrouting"), DeleteSet(TABLE, "hairpins"))
    assert found.check().repaired
    assert found.held() == found.wanted()


def test_what_was_lost_of_the_notifications_is_compared() -> None:
    found = rig()
    found.kernel.edit(Family.IPV4, emptied(SETS["endpoints"]))
    found.kernel.events.append(None)
    listings = found.kernel.listings
    assert found.check().repaired
    assert found.kernel.listings > listings
    assert found.held() == found.wanted()


def test_edits_that_cancel_out_are_no_repair() -> None:
    found = rig()
    found.kernel.edit(Family.IPV4, AddElements(TABLE, SETS["services"], [STRAY]))
    found.kernel.edit(Family.IPV4, DeleteElements(TABLE, SETS["services"], [STRAY]))
    outcome = found.check()
    assert (outcome.repaired, outcome.transactions) == (False, 0)


def test_edits_go_on_while_others_are_undone() -> None:
    found = rig()
    edits: list[list[Operation]] = [[AddElements(TABLE, SETS["services"], [STRAY])], [FlushChain(TABLE, "services")]]

    def another(family: Family) -> None:
        if edits:
            found.kernel.edit(Family.IPV4, *edits.pop())

    found.kernel.edit(Family.IPV4, emptied(SETS["endpoints"]))
    found.kernel.meanwhile = another
    listings = found.kernel.listings
    assert found.check().repaired
    found.kernel.meanwhile = lambda family: None
    assert found.check().rejected == {}
    assert found.held() == found.wanted()
    assert found.kernel.listings == listings


def test_without_notifications_the_table_is_only_read_now_and_then() -> None:
    found = rig()
    listings = found.kernel.listings
    found.check()
    assert found.kernel.listings == listings
    found.read()
    assert found.kernel.listings == listings + 1


@pytest.mark.parametrize(("others", "written"), [(TRIES - 1, True), (TRIES, False)])
def test_a_few_foreign_transactions_in_a_row_are_retried_past(others: int, written: bool) -> None:
    found = rig()
    left = others

    def write(family: Family) -> None:
        nonlocal left
        if left:
            left -= 1
            found.kernel.edit(Family.IPV6, AddTable(f"theirs-{left}"))

    found.kernel.meanwhile = write
    new = build_plan("new", cluster=(7,))
    if written:
        found.want(new)
    else:
        with pytest.raises(KernelError, match="other programs keep changing nf_tables"):
            found.want(new)
        found.check()
    assert found.held() == found.wanted()
