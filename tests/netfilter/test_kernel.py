"""What is loaded by netlink equals what nft loads from text; changes of others are seen, and errors are attributed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kproxy.errors import NetlinkError
from kproxy.model.plans import Family, ServicePlan
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.render import Layout, lay_out, render_base, render_port
from kproxy.modes.nftables.text import table_text
from kproxy.netfilter.kernel import KernelNftables
from kproxy.netfilter.objects import Drop, Element, Rule, Set, SetKind, Type, Verdict
from kproxy.netfilter.operations import (
    AddChain,
    AddElements,
    AddRules,
    AddSet,
    AddTable,
    DeleteElements,
    DeleteTable,
    ElementsRefused,
    Operation,
)
from tests.netfilter.values import TABLE, chains, difference, elements, emptied, everything, sets, settled, table
from tests.nftables.plans import any_plans, any_settings

V4, V6 = Family
Shell = Callable[..., str]
SERVICES = sets(V4)["services"]
STATES = st.sampled_from(Family).flatmap(lambda f: st.tuples(any_plans(f), any_settings(f)))


@pytest.fixture
def kernel(netns: None) -> Iterator[KernelNftables]:
    with KernelNftables() as found:
        yield found


def ruleset(shell: Shell) -> list[str]:
    return settled(shell("nft -j list ruleset"))


def layout_of(family: Family) -> Layout:
    found = {chain.name: chain for chain in chains(family)}
    return Layout(family, sets(family), found, {name: tuple(e) for name, e in elements(family).items() if e})


def operations(layout: Layout) -> list[Operation]:
    return table(layout.sets.values(), layout.chains.values(), layout.elements)


# ---------------------------------------------------------------- the same as nft


@pytest.mark.parametrize("family", Family)
def test_everything_is_loaded_as_nft_loads_it_from_text(kernel: KernelNftables, shell: Shell, family: Family) -> None:
    layout = layout_of(family)
    shell("nft -f -", table_text(layout))
    by_text = ruleset(shell)
    assert differing(kernel, layout) == [], "it is adopted as it is"
    assert kernel.apply(family, operations(layout)) == {}
    assert ruleset(shell) == by_text
    assert len(by_text) > 30


@given(STATES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_layout_is_loaded_as_nft_loads_it_from_text(
    kernel: KernelNftables, shell: Shell, state: tuple[list[ServicePlan], Settings]
) -> None:
    plans, chosen = state
    layout = lay_out(render_base(chosen), [(p.key, render_port(p, chosen)) for p in plans])
    shell("nft flush ruleset")
    shell("nft -f -", table_text(layout))
    by_text = ruleset(shell)
    assert differing(kernel, layout) == []
    assert kernel.apply(chosen.family, operations(layout)) == {}
    assert ruleset(shell) == by_text
    assert differing(kernel, layout) == []


def differing(kernel: KernelNftables, layout: Layout) -> list[str]:
    """What the kernel's table and LAYOUT do not have in common."""
    found = kernel.listing(layout.family, TABLE)
    assert found is not None
    assert found.generation == kernel.generation()
    names = set(found.chains) ^ set(layout.chains) | set(found.sets) ^ set(layout.sets)
    for name, chain in layout.chains.items():
        if name not in names and not found.chains[name].same_as(layout.family, chain):
            names.add(name)
    for name, spec in layout.sets.items():
        wanted = layout.elements.get(name, ())
        if name not in names and (found.sets[name].spec, difference(found.sets[name], wanted)) != (spec, ([], [])):
            names.add(name)
    return sorted(names)


FOREIGN = {
    "a rule more": ("add rule ip kproxy lb drop", ["lb"]),
    "a rule in another place": ("insert rule ip kproxy postrouting meta mark 1 drop", ["postrouting"]),
    "a rule with a set of its own": ("add rule ip kproxy lb tcp dport { 80, 443 } drop", ["lb"]),
    "a chain more": ("add chain ip kproxy theirs", ["theirs"]),
    "a chain of another hook": (
        "add chain ip kproxy theirs { type filter hook input priority 0; policy accept; }",
        ["theirs"],
    ),
    "another policy": ("chain ip kproxy output { policy drop; }", ["output"]),
    "a set more": ("add set ip kproxy theirs { type ipv4_addr; }", ["theirs"]),
    "a set of types that we lack": ("add set ip kproxy theirs { type ether_addr . ipv4_addr; }", ["theirs"]),
    "an element more": ("add element ip kproxy cluster-ips { 10.0.0.77 }", ["cluster-ips"]),
    "an element less": ("delete element ip kproxy services { 10.0.0.1 . udp . 53 }", ["services"]),
    "a range that is no network": ("add element ip kproxy networks { 11.0.0.1-11.0.0.3 }", ["networks"]),
    "another map": ("flush map ip kproxy endpoints", ["endpoints"]),
}


@pytest.mark.parametrize("change", FOREIGN)
def test_what_others_changed_is_seen(kernel: KernelNftables, shell: Shell, change: str) -> None:
    assert kernel.apply(V4, everything(V4)) == {}
    line, names = FOREIGN[change]
    shell("nft -f -", line)
    assert differing(kernel, layout_of(V4)) == names


def test_a_range_that_is_no_network_can_be_deleted(kernel: KernelNftables, shell: Shell) -> None:
    assert kernel.apply(V4, everything(V4)) == {}
    shell("nft -f -", "add element ip kproxy networks { 11.0.0.1-11.0.0.3, 12.0.0.0/8 }")
    found = kernel.listing(V4, TABLE)
    assert found is not None
    surplus, missing = difference(found.sets["networks"], elements(V4)["networks"])
    assert ({e.key for e in surplus}, missing) == ({("11.0.0.1-11.0.0.3",), ("12.0.0.0/8",)}, [])
    assert kernel.apply(V4, [DeleteElements(TABLE, sets(V4)["networks"], surplus)]) == {}
    assert differing(kernel, layout_of(V4)) == []


def test_nothing_else_is_touched(kernel: KernelNftables, shell: Shell) -> None:
    shell("nft -f -", "table ip kproxy2 { chain lb { drop; }; }; table inet kproxy { set services { type mark; }; }")
    before = ruleset(shell)
    assert kernel.apply(V4, everything(V4)) == {}
    listing = kernel.listing(V4, TABLE)
    assert listing is not None
    assert set(listing.sets) == set(sets(V4))
    assert kernel.apply(V4, [DeleteTable(TABLE)]) == {}
    assert ruleset(shell) == before


def test_another_table_is_deleted_in_the_same_transaction(kernel: KernelNftables, shell: Shell) -> None:
    shell("nft -f -", "table ip kube-proxy { map services { type ipv4_addr : verdict; }; chain c { drop; }; }")
    generation = kernel.generation()
    assert kernel.apply(V4, [DeleteTable("kube-proxy"), *everything(V4)], generation) == {}
    assert kernel.generation() == generation + 1
    assert "kube-proxy" not in shell("nft list tables")


# ---------------------------------------------------------------- many


def many(numbers: Iterable[int], target: str = "lb") -> list[Element]:
    return [
        Element("services", (f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", "tcp", 80), Verdict(target)) for i in numbers
    ]


@pytest.fixture
def plain(kernel: KernelNftables) -> KernelNftables:
    """With a verdict map, and a chain to go to."""
    assert kernel.apply(V4, [AddTable(TABLE), AddChain(TABLE, "lb"), AddSet(TABLE, SERVICES)]) == {}
    return kernel


def test_elements_of_many_messages_are_added_and_deleted(plain: KernelNftables) -> None:
    wanted = many(range(20_000))
    assert plain.apply(V4, [AddElements(TABLE, SERVICES, wanted)]) == {}
    listing = plain.listing(V4, TABLE)
    assert listing is not None
    assert len(listing.sets["services"].elements or ()) == 20_000
    assert difference(listing.sets["services"], wanted[:-1]) == ([wanted[-1]], [])
    assert plain.apply(V4, [DeleteElements(TABLE, SERVICES, wanted[1:])]) == {}
    listing = plain.listing(V4, TABLE)
    assert listing is not None
    assert difference(listing.sets["services"], wanted[:1]) == ([], [])
    assert plain.apply(V4, [emptied(SERVICES)]) == {}


def test_each_wrong_element_among_many_is_found(plain: KernelNftables) -> None:
    wrong = {3, 700, 701, 2500, 4999}
    mixed = [many([i], "none" if i in wrong else "lb")[0] for i in range(5000)]
    errors = plain.apply(V4, [AddChain(TABLE, "new"), AddElements(TABLE, SERVICES, mixed)], plain.generation())
    assert list(errors) == [1]
    assert isinstance(errors[1], ElementsRefused)
    assert {i: e.errno for i, e in errors[1].elements.items()} == dict.fromkeys(wrong, errno.ENOENT)
    assert str(errors[1].elements[700]) == "add element services 10.0.2.188 . tcp . 80: No such file or directory"
    assert str(errors[1]) == "add element services 10.0.0.3 . tcp . 80 and 4 more: No such file or directory"
    listing = plain.listing(V4, TABLE)
    assert listing is not None
    assert set(listing.chains) == {"lb"}
    assert listing.sets["services"].elements == []


def test_more_refusals_than_fit_the_socket_are_still_a_refusal(plain: KernelNftables) -> None:
    errors = plain.apply(V4, [AddElements(TABLE, SERVICES, many(range(30_000), "none"))])
    assert isinstance(errors[0], ElementsRefused)
    assert len(errors[0].elements) > 100
    assert set(errors[0].elements) <= set(range(30_000))
    assert plain.apply(V4, [AddElements(TABLE, SERVICES, many(range(10)))]) == {}
    assert plain.generation() > 0


def test_rules_are_refused_by_their_chain(plain: KernelNftables) -> None:
    rules: tuple[Rule, ...] = ((Drop(),),) * 3
    errors = plain.apply(V4, [AddRules(TABLE, "lb", rules), AddRules(TABLE, "none", rules)])
    assert {i: str(e) for i, e in errors.items()} == {
        1: "add rules to chain kproxy none: No such file or directory",
    }


def test_a_map_takes_no_more_than_its_size(kernel: KernelNftables) -> None:
    small = Set("small", (Type.IPV4,), SetKind.MAP, (Type.IPV4, Type.PORT), size=2)
    three = [Element("small", (f"10.0.0.{i}",), ("10.0.0.9", 80)) for i in range(3)]
    assert kernel.apply(V4, [AddTable(TABLE), AddSet(TABLE, small), AddElements(TABLE, small, three[:2])]) == {}
    errors = kernel.apply(V4, [AddElements(TABLE, small, three[2:])])
    assert errors[0].errno == errno.ENFILE


def test_a_concurrent_edit_fails_the_batch(plain: KernelNftables, shell: Shell) -> None:
    generation = plain.generation()
    shell("nft add table ip theirs")
    with pytest.raises(NetlinkError, match="change nf_tables"):
        plain.apply(V4, [DeleteTable(TABLE)], generation)
    assert plain.apply(V4, [DeleteTable(TABLE)], generation + 1) == {}


def test_our_transactions_are_known_by_the_port(plain: KernelNftables, shell: Shell) -> None:
    from kproxy.kernel.netlink import messages
    from kproxy.kernel.netlink_sockets import Socket

    with Socket(12, groups=(7,)) as listener:
        assert plain.apply(V4, [AddChain(TABLE, "mine")]) == {}
        shell("nft add chain ip kproxy theirs")
        notes = []
        while (data := listener.receive()) is not None:
            notes += [note.portid for note in messages(data) if note.type == 10 << 8 | 15]
    assert [portid == plain.portid for portid in notes] == [True, False]
