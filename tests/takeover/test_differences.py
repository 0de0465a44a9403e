"""The differences that `kproxy diff` shows are those that a full check writes: there are none exactly when it writes
nothing, whatever was done to the rules, and to the cluster."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.kernel.ipset import Change
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.model.plans import Family, Protocol
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings as IptablesSettings
from kproxy.modes.iptables.render import render_base, render_port
from kproxy.modes.ipvs import differences as ipvs
from kproxy.modes.ipvs import kernel_state
from kproxy.modes.ipvs.apply import IpvsDataplane
from kproxy.modes.ipvs.fragments import Fragment
from kproxy.modes.ipvs.ownership import Ownership
from kproxy.modes.ipvs.render import render_port as render_ipvs
from kproxy.modes.ipvs.rules import render_base as render_ipvs_base
from kproxy.modes.nftables import differences as nftables
from kproxy.modes.nftables.apply import NftablesDataplane
from kproxy.modes.nftables.fragments import Settings as NftablesSettings
from kproxy.modes.nftables.names import CLUSTER_IPS, SERVICES, TABLE
from kproxy.modes.nftables.table_state import TableState
from kproxy.modes.xtables import differences as xtables
from kproxy.modes.xtables import rules
from kproxy.modes.xtables.reading import read
from kproxy.netfilter.changes import OwnTransactions
from kproxy.netfilter.objects import Drop, Element, Set
from kproxy.netfilter.operations import AddElements, AddRules, DeleteElements, FlushChain
from kproxy.netfilter.table import Table
from tests.fakes.iptables import FakeTables
from tests.fakes.nftables import FakeNftables
from tests.ipvs_mode.rigs import SETTINGS as IPVS_SETTINGS
from tests.ipvs_mode.rigs import Rig
from tests.plans import Plans, any_plans

FAMILY = Family.IPV4
CLUSTERS = any_plans(*((name, protocol) for name in "abc" for protocol in (Protocol.TCP, Protocol.UDP)), most=3)
STATES = st.tuples(CLUSTERS, st.none() | CLUSTERS).map(lambda pair: (pair[0], pair[0] if pair[1] is None else pair[1]))
FEW = settings(max_examples=40)
NUMBERS = st.none() | st.integers(0, 200)
FOREIGN = ("", "-A KUBE-SERVICES -s 192.0.2.1/32 -j RETURN", "-A KUBE-MARK-MASQ -j RETURN", ":KUBE-SVC-X - [0:0]",
           ":OTHER - [0:0]", ":KUBE-PORTALS-HOST - [0:0]", "-A OUTPUT -s 192.0.2.1/32 -j RETURN")  # fmt: skip


def edited(tables: FakeTables, deleted: int | None, foreign: str) -> None:
    lines = [line for line in tables.save().partition("*nat\n")[2].splitlines() if line.startswith("-A ")]
    gone = f"-D {lines[deleted % len(lines)][3:]}\n" if deleted is not None else ""
    tables.restore(f"*nat\n{gone}{foreign}\nCOMMIT\n")


@FEW
@given(STATES, NUMBERS, st.sampled_from(FOREIGN))
def test_of_iptables(states: tuple[Plans, Plans], deleted: int | None, foreign: str) -> None:
    (before, after), chosen, tables = states, IptablesSettings(FAMILY), FakeTables(FAMILY)
    IptablesDataplane(chosen, tables).apply(before, None)
    edited(tables, deleted, foreign)
    base, fragments = render_base(chosen), {key: render_port(plan, chosen) for key, plan in after.items()}
    found, _ = xtables.differences(read(tables, base), base, FAMILY, fragments)
    written = IptablesDataplane(chosen, tables).apply(after, None).transactions
    assert bool(found) == bool(written), found
    assert xtables.differences(read(tables, base), base, FAMILY, fragments)[0] == []


EDITS: list[Callable[[FakeNftables, Element | None], object]] = [
    lambda kernel, element: None,
    lambda kernel, element: kernel.apply(FAMILY, [FlushChain(TABLE, SERVICES)]),
    lambda kernel, element: kernel.apply(FAMILY, [AddRules(TABLE, SERVICES, ((Drop(),),))]),
    lambda kernel, element: element and kernel.apply(FAMILY, [DeleteElements(TABLE, sets(kernel, element), [element])]),
    lambda kernel, element: kernel.apply(
        FAMILY,
        [AddElements(TABLE, kernel.sets(FAMILY, TABLE)[CLUSTER_IPS], [Element(CLUSTER_IPS, ("192.0.2.1",))])],
    ),
]


def sets(kernel: FakeNftables, element: Element) -> Set:
    return kernel.sets(FAMILY, TABLE)[element.set]


@FEW
@given(STATES, NUMBERS, st.sampled_from(EDITS))
def test_of_nftables(
    states: tuple[Plans, Plans], number: int | None, edit: Callable[[FakeNftables, Element | None], object]
) -> None:
    (before, after), chosen, kernel = states, NftablesSettings(FAMILY), FakeNftables()
    NftablesDataplane(chosen, Table(FAMILY, TABLE, kernel, OwnTransactions())).apply(before, None)
    there = [e for name in (SERVICES, CLUSTER_IPS) for e in sorted(kernel.elements(FAMILY, TABLE, name), key=str)]
    edit(kernel, there[(number or 0) % len(there)] if there else None)
    state = TableState(chosen)
    state.replace(after)
    found, _ = nftables.differences(state, chosen, kernel.listing(FAMILY, TABLE), lambda chain: ())
    table = Table(FAMILY, TABLE, kernel, OwnTransactions())
    written = NftablesDataplane(chosen, table).apply(after, None).transactions
    assert bool(found) == bool(written), found


@FEW
@given(STATES, NUMBERS, st.sampled_from(FOREIGN), st.sampled_from(["", "server", "entry", "address"]))
def test_of_ipvs(states: tuple[Plans, Plans], deleted: int | None, foreign: str, lost: str) -> None:
    (before, after), rig = states, Rig()
    rig.apply(before)
    edited(rig.tables, deleted, foreign)
    ownership, parts = Ownership(), {key: render_ipvs(plan, IPVS_SETTINGS) for key, plan in after.items()}
    for key, part in parts.items():
        ownership.put(key, Fragment(), part)
    spoil(rig, lost)
    base = render_ipvs_base(IPVS_SETTINGS, ownership.filled)
    held = rig.sets.held([spec.name for spec in kernel_state.specs(FAMILY)])
    state = kernel_state.read(IPVS_SETTINGS, rig.ipvs, rig.sets, rig.addresses, ownership.servers, ownership.addresses)
    found, _ = ipvs.differences(state, ownership, IPVS_SETTINGS, held, has_device=True)
    shared = {key: rules.Fragment(shared=part.rules) for key, part in parts.items()}
    more, _ = xtables.differences(read(rig.tables, base), base, FAMILY, shared)
    counts = (rig.ipvs.applies, rig.sets.applies, rig.addresses.changes)
    fresh = IpvsDataplane(IPVS_SETTINGS, rig.ipvs, rig.sets, rig.addresses, rig.tables, clock=rig.clock.monotonic)
    written = fresh.apply(after, None).transactions
    wrote = bool(written) or counts != (rig.ipvs.applies, rig.sets.applies, rig.addresses.changes)
    assert bool([*found, *more]) == wrote, (found, more)


def spoil(rig: Rig, lost: str) -> None:
    """Take one object away, as another program might."""
    servers = [held for held in rig.ipvs.servers(FAMILY).values() if held.server.key.address != "192.0.2.77"]
    held = rig.sets.held([spec.name for spec in kernel_state.specs(FAMILY)])
    entries = [(name, entry) for name, each in sorted(held.items()) for entry in sorted(each.entries)]
    if lost == "server" and servers:
        rig.ipvs.edit(Operation(Verb.DELETE_SERVER, servers[0].server))
    elif lost == "address" and rig.addresses.held(FAMILY):
        rig.addresses.change((), [min(rig.addresses.held(FAMILY))])
    elif lost == "entry" and entries:
        rig.sets.edit(Change(*entries[0], add=False))
