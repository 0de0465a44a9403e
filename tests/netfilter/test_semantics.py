"""What the kernel refuses and with which error; the fake refuses the same."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, get_args

import pytest

from kproxy.errors import NetlinkError
from kproxy.model.plans import Family
from kproxy.netfilter.changes import OwnTransactions
from kproxy.netfilter.element_codec import coder, packed
from kproxy.netfilter.kernel import LISTED_AT_MOST, OUTDATED, KernelNftables, Nftables
from kproxy.netfilter.notifications import Event
from kproxy.netfilter.objects import (
    DnatByMap,
    Drop,
    Element,
    FibLocal,
    Field,
    Goto,
    InSet,
    Jump,
    Lookup,
    Masquerade,
    Reject,
    Set,
    Type,
    Update,
    Verdict,
)
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
    ElementsRefused,
    FillSet,
    FlushChain,
    Operation,
)
from kproxy.netfilter.table import Table
from tests.fakes.nftables import FakeNftables
from tests.netfilter.values import (
    BASES,
    FRONTEND,
    TABLE,
    chains,
    difference,
    elements,
    emptied,
    everything,
    listed,
    sets,
)

V4 = Family.IPV4
SETS = sets(V4)
WEB, DNS, SCTP = elements(V4)["services"]
ABSENT = Element("services", ("10.0.0.7", "tcp", 80), Verdict("lb"))
WIDE = elements(V4)["networks"][0]
OTHER = Set("other", (Type.IPV4,))

Wrong = dict[int, int | dict[int, int]]


class Case(NamedTuple):
    """Operations on the table with everything, and the errno of each that is refused, of elements by their indices."""

    operations: Sequence[Operation]
    wrong: Wrong = {}  # noqa: RUF012


CASES = {
    "a table that is there may be added": Case([AddTable(TABLE)]),
    "a table goes with all that it holds": Case([DeleteTable(TABLE)]),
    "a table that is not there cannot go": Case([DeleteTable("none")], {0: errno.ENOENT}),
    "nothing goes into a table that is not there": Case([AddChain("none", "c")], {0: errno.ENOENT}),
    "a chain that is there may be added": Case([AddChain(TABLE, "lb"), AddChain(TABLE, "forward", BASES["forward"])]),
    "a chain goes": Case([AddChain(TABLE, "new"), DeleteChain(TABLE, "new")]),
    "a chain goes with its rules": Case(
        [AddChain(TABLE, "new"), AddRules(TABLE, "new", ((Goto("lb"),),)), DeleteChain(TABLE, "new")]
    ),
    "a chain that is not there cannot go": Case([DeleteChain(TABLE, "none")], {0: errno.ENOENT}),
    "a chain to which a rule jumps stays": Case([DeleteChain(TABLE, "other")], {0: errno.EBUSY}),
    "a chain to which an element jumps stays": Case([DeleteChain(TABLE, "lb")], {0: errno.EBUSY}),
    "a chain can be deleted after what jumped to it": Case(
        [
            FlushChain(TABLE, "prerouting"),
            DeleteElements(TABLE, SETS["services"], [WEB]),
            DeleteChain(TABLE, "other"),
        ]
    ),
    "a chain that is not there has no rules": Case([FlushChain(TABLE, "none")], {0: errno.ENOENT}),
    "no rule goes into a chain that is not there": Case([AddRules(TABLE, "none", ((Drop(),),))], {0: errno.ENOENT}),
    "no rule jumps to a chain that does not exist": Case(
        [AddRules(TABLE, "lb", ((Drop(),), (Jump("none"),)))], {0: errno.ENOENT}
    ),
    "a rule may jump to a chain that was just added": Case(
        [AddChain(TABLE, "new"), AddRules(TABLE, "lb", ((Jump("new"),),))]
    ),
    "no rule looks in a set that is not there": Case(
        [AddRules(TABLE, "lb", ((InSet((Field.DADDR,), "none"),),))], {0: errno.ENOENT}
    ),
    "no rule takes a verdict from a set without any": Case(
        [AddRules(TABLE, "lb", ((Lookup((Field.DADDR,), "cluster-ips"),),))], {0: errno.EINVAL}
    ),
    "a masquerading chain is not reached from another hook": Case(
        [AddRules(TABLE, "forward", ((Masquerade(),),))], {0: errno.EOPNOTSUPP}
    ),
    "a rejecting chain is not reached where rejecting is not allowed": Case(
        [AddRules(TABLE, "postrouting", ((Reject(),),))], {0: errno.EOPNOTSUPP}
    ),
    "no packet goes round in circles": Case(
        [AddRules(TABLE, "lb", ((Jump("other"),),)), AddRules(TABLE, "other", ((Jump("lb"),),))], {1: errno.EMLINK}
    ),
    "an invalid rule is not even sent": Case([AddRules(TABLE, "lb", ((FibLocal(Field.PROTO),),))], {0: errno.EINVAL}),
    "a set that is there may be added": Case([AddSet(TABLE, SETS["services"])]),
    "a set that no rule uses goes": Case([AddSet(TABLE, OTHER), DeleteSet(TABLE, "other")]),
    "a set that is not there cannot go": Case([DeleteSet(TABLE, "none")], {0: errno.ENOENT}),
    "a set that a rule uses stays": Case([DeleteSet(TABLE, "services")], {0: errno.EBUSY}),
    "a set can go after the rules that used it": Case([FlushChain(TABLE, "other"), DeleteSet(TABLE, "protocols")]),
    "a set that is flushed is there": Case([emptied(SETS["services"]), AddElements(TABLE, SETS["services"], [WEB])]),
    "a set is filled anew": Case(
        [FillSet(TABLE, SETS["services"], [*packed(coder(SETS["services"]).encode([DNS]))], 1)]
    ),
    "a set that is not there is not filled": Case([FillSet(TABLE, OTHER, [], 0)], {0: errno.ENOENT}),
    "an element that is there may be added": Case([AddElements(TABLE, SETS["services"], [WEB, ABSENT])]),
    "an element keeps its data": Case(
        [AddElements(TABLE, SETS["services"], [Element("services", WEB.key, Verdict())])], {0: {0: errno.EEXIST}}
    ),
    "an element is replaced": Case(
        [
            DeleteElements(TABLE, SETS["services"], [WEB]),
            AddElements(TABLE, SETS["services"], [Element("services", WEB.key, Verdict())]),
        ]
    ),
    "an element that is not there cannot go": Case(
        [DeleteElements(TABLE, SETS["services"], [DNS, ABSENT, SCTP])], {0: {1: errno.ENOENT}}
    ),
    "an element does not jump to a chain that does not exist": Case(
        [AddElements(TABLE, SETS["services"], [ABSENT, Element("services", ("10.0.0.8", "tcp", 80), Verdict("none"))])],
        {0: {1: errno.ENOENT}},
    ),
    "invalid elements are not even sent": Case(
        [
            AddElements(
                TABLE, SETS["services"], [ABSENT, Element("services", ("10.0.0.8", "icmp", 80), Verdict("lb"))]
            ),
            DeleteElements(TABLE, SETS["cluster-ips"], [Element("cluster-ips", ("none",))]),
        ],
        {0: {1: errno.EINVAL}, 1: {0: errno.EINVAL}},
    ),
    "an element goes into no set that is not there": Case(
        [AddElements(TABLE, OTHER, [Element("other", ("10.0.0.1",))])], {0: {0: errno.ENOENT}}
    ),
    "networks do not overlap": Case(
        [AddElements(TABLE, SETS["networks"], [Element("networks", ("10.9.0.0/16",))])], {0: {0: errno.EEXIST}}
    ),
    "a network that is there may be added": Case([AddElements(TABLE, SETS["networks"], [WIDE])]),
    "every error is reported": Case(
        [DeleteChain(TABLE, "none"), AddTable(TABLE), DeleteSet(TABLE, "none")], {0: errno.ENOENT, 2: errno.ENOENT}
    ),
    "nothing to do is done": Case([AddElements(TABLE, SETS["services"], [])]),
}


@pytest.fixture(params=["memory", pytest.param("kernel", marks=pytest.mark.root)])
def nftables(request: pytest.FixtureRequest) -> Iterator[Nftables]:
    """nf_tables with the table with everything."""
    if request.param == "memory":
        found: Nftables = FakeNftables()
        assert found.apply(V4, everything(V4)) == {}
        yield found
        return
    request.getfixturevalue("netns")
    with KernelNftables() as kernel:
        assert kernel.apply(V4, everything(V4)) == {}
        yield kernel


def numbers(errors: dict[int, NetlinkError]) -> Wrong:
    return {
        index: {i: e.errno for i, e in error.elements.items()} if isinstance(error, ElementsRefused) else error.errno
        for index, error in errors.items()
    }


def held(nftables: Nftables) -> object:
    """What there is, to compare."""
    found = nftables.listing(V4, TABLE)
    if found is None:
        return None
    return found.chains, {name: (listed.spec, sorted(listed.elements or ())) for name, listed in found.sets.items()}


@pytest.mark.parametrize("name", CASES)
def test_what_is_refused(nftables: Nftables, name: str) -> None:
    case, before, generation = CASES[name], held(nftables), nftables.generation()
    assert numbers(nftables.check(V4, case.operations)) == case.wrong
    assert (held(nftables), nftables.generation()) == (before, generation)
    assert numbers(nftables.apply(V4, case.operations, generation)) == case.wrong
    if case.wrong:
        assert (held(nftables), nftables.generation()) == (before, generation)


def test_the_cases_cover_every_operation_done_and_refused() -> None:
    done = {type(op) for case in CASES.values() if not case.wrong for op in case.operations}
    refused = {type(case.operations[i]) for case in CASES.values() for i in case.wrong}
    assert done | {AddRules} >= set(get_args(Operation))
    assert refused | {AddTable, AddSet} == set(get_args(Operation))


def test_one_mistake_undoes_all(nftables: Nftables) -> None:
    before = held(nftables)
    operations: list[Operation] = [
        emptied(SETS["services"]),
        AddChain(TABLE, "new"),
        DeleteChain(TABLE, "none"),
        DeleteTable(TABLE),
    ]
    assert numbers(nftables.apply(V4, operations)) == {2: errno.ENOENT}
    assert held(nftables) == before


def test_each_transaction_has_a_number_and_may_expect_the_last_one(nftables: Nftables) -> None:
    first = nftables.generation()
    assert nftables.apply(V4, [AddChain(TABLE, "one")], first) == {}
    assert nftables.generation() == first + 1
    with pytest.raises(NetlinkError) as raised:
        nftables.apply(V4, [AddChain(TABLE, "two")], first)
    assert raised.value.errno == OUTDATED
    assert nftables.apply(V4, [AddChain(TABLE, "two")], first + 1) == {}
    listing = listed(nftables)
    assert listing.generation == first + 2
    assert {"one", "two"} <= set(listing.chains)


@pytest.mark.parametrize("family", Family)
def test_what_was_made_is_listed(nftables: Nftables, family: Family) -> None:
    assert nftables.apply(family, everything(family)) == {}
    listing = listed(nftables, family)
    assert {name: listed.spec for name, listed in listing.sets.items()} == sets(family)
    for name, wanted in elements(family).items():
        assert difference(listing.sets[name], wanted) == ([], [])
        assert len(listing.sets[name].elements or ()) == len(wanted)
    assert set(listing.chains) == {chain.name for chain in chains(family)}
    assert all(listing.chains[chain.name].same_as(family, chain) for chain in chains(family))


def test_a_table_that_is_not_there_is_not_listed(nftables: Nftables) -> None:
    assert nftables.listing(V4, "none") is None
    assert nftables.listing(Family.IPV6, TABLE) is None


def test_a_listing_shows_what_was_changed(nftables: Nftables) -> None:
    changes: list[Operation] = [
        FlushChain(TABLE, "forward"),
        DeleteElements(TABLE, SETS["services"], [DNS]),
        AddElements(TABLE, SETS["services"], [ABSENT]),
        DeleteElements(TABLE, SETS["networks"], [WIDE]),
    ]
    assert nftables.apply(V4, changes) == {}
    listing = listed(nftables)
    assert [c.name for c in chains(V4) if not listing.chains[c.name].same_as(V4, c)] == ["forward"]
    assert difference(listing.sets["services"], elements(V4)["services"]) == ([ABSENT], [DNS])
    assert difference(listing.sets["networks"], elements(V4)["networks"]) == ([], [WIDE])


def test_bytes_written_are_counted(nftables: Nftables) -> None:
    before = nftables.bytes_written
    assert nftables.apply(V4, [AddElements(TABLE, SETS["services"], [ABSENT])]) == {}
    assert 80 < nftables.bytes_written - before < 300


@pytest.mark.parametrize("number", [0, 1, 5000])
def test_filling_a_set_leaves_nothing_else_in_it(nftables: Nftables, number: int) -> None:
    spec = SETS["services"]
    wanted = [Element("services", (f"10.7.{n >> 8}.{n & 255}", "tcp", 80), Verdict("lb")) for n in range(number)]
    assert nftables.apply(V4, [FillSet(TABLE, spec, [*packed(coder(spec).encode(wanted))], number)]) == {}
    listing = listed(nftables)
    assert difference(listing.sets["services"], wanted) == ([], [])


def test_sets_that_are_too_large_are_not_listed(nftables: Nftables) -> None:
    listing = listed(nftables, V4, {"services": LISTED_AT_MOST + 1, "cluster-ips": LISTED_AT_MOST})
    assert (listing.sets["services"].spec, listing.sets["services"].elements) == (SETS["services"], None)
    assert listing.sets["cluster-ips"].elements


def test_the_expected_generation_may_be_asked_for_last_of_all(nftables: Nftables) -> None:
    def raises() -> int:
        raise LookupError

    before = nftables.generation()
    with pytest.raises(LookupError):
        nftables.apply(V4, [AddChain(TABLE, "new")], raises)
    assert nftables.generation() == before
    with pytest.raises(NetlinkError):
        nftables.apply(V4, [AddChain(TABLE, "new")], lambda: before + 7)
    assert nftables.apply(V4, [AddChain(TABLE, "new")], nftables.generation) == {}


def test_the_fake_compares_types_where_the_kernel_compares_lengths() -> None:
    memory = FakeNftables()
    assert memory.apply(V4, everything(V4)) == {}
    for rule in (
        (InSet((Field.DADDR, Field.SADDR), "cluster-ips"),),
        (InSet((Field.DPORT,), "cluster-ips"),),
        (Lookup((Field.DPORT,), "services"),),
        (Update("cluster-ips", (Field.SADDR,)),),
        (DnatByMap(FRONTEND, "endpoints"),),
    ):
        assert numbers(memory.check(V4, [AddRules(TABLE, "lb", (rule,))])) == {0: errno.EINVAL}
    assert numbers(memory.check(V4, [AddSet(TABLE, Set("services", (Type.IPV4,)))])) == {0: errno.EEXIST}


WHAT_OTHERS_DO: dict[str, list[Operation]] = {
    "an element comes": [AddElements(TABLE, SETS["services"], [ABSENT])],
    "an element that is there comes": [AddElements(TABLE, SETS["services"], [WEB])],
    "an element goes": [DeleteElements(TABLE, SETS["services"], [WEB])],
    "an element gets other data": [
        DeleteElements(TABLE, SETS["services"], [WEB]),
        AddElements(TABLE, SETS["services"], [Element("services", WEB.key, Verdict())]),
    ],
    "a range goes": [DeleteElements(TABLE, SETS["sources"], elements(V4)["sources"][:1])],
    "a set is flushed": [emptied(SETS["services"])],
    "a chain comes with rules": [AddChain(TABLE, "new"), AddRules(TABLE, "new", ((Jump("lb"),),))],
    "rules go": [FlushChain(TABLE, "forward")],
    "a chain goes": [FlushChain(TABLE, "forward"), DeleteChain(TABLE, "forward")],
    "a set comes": [AddSet(TABLE, OTHER)],
    "the table goes": [DeleteTable(TABLE)],
    "another table comes": [AddTable("theirs")],
}


@pytest.mark.root
@pytest.mark.parametrize("what", WHAT_OTHERS_DO)
def test_the_fake_notifies_of_others_as_the_kernel_does(netns: None, what: str) -> None:
    operations, memory = WHAT_OTHERS_DO[what], FakeNftables()
    memory.edit(V4, *everything(V4))
    with KernelNftables() as ours, KernelNftables() as theirs:
        assert ours.apply(V4, everything(V4)) == {}
        tables = [Table(V4, TABLE, nftables, OwnTransactions()) for nftables in (ours, memory)]
        for table in tables:
            table.read({})
            table.listen()
        assert theirs.apply(V4, operations) == {}
        memory.edit(V4, *operations)
        by_kernel, in_memory = (table.changes() for table in tables)
        assert by_kernel is not None
        assert in_memory is not None
        assert settled(by_kernel) == settled(in_memory)
        assert [table.changed() for table in tables] == [False, False]
        tables[0].close()


def settled(events: Iterable[Event]) -> set[Event]:
    """Without the order, without repetitions, and without the contents of a deleted table."""
    found = set(events)
    gone = any(event.deleted and event.kind == "table" for event in found)
    return {e._replace(deleted=e.deleted and e.kind != "rule") for e in found if e.kind == "table" or not gone}
