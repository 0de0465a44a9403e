"""What a kernel lacks for nftables mode is found feature by feature, in transactions that are dropped."""

from __future__ import annotations

import errno
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import pytest

from kproxy.errors import KernelError, NetlinkError
from kproxy.model.plans import Family
from kproxy.netfilter import objects
from kproxy.netfilter.kernel import Expected, KernelNftables
from kproxy.netfilter.objects import Element, Hook, Statement
from kproxy.netfilter.operations import AddElements, AddRules, AddSet, AddTable, Operation
from kproxy.netfilter.support import missing
from tests.fakes.nftables import FakeNftables

Refuses = Callable[[Operation], int]
RELEASE = "6.1.0-56-amd64"


def rules_with(kind: type[Statement], number: int = errno.ENOENT) -> Refuses:
    def refuses(operation: Operation) -> int:
        rules = operation.rules if isinstance(operation, AddRules) else ()
        return number if any(isinstance(statement, kind) for rule in rules for statement in rule) else 0

    return refuses


def sets_that(condition: Callable[[objects.Set], bool]) -> Refuses:
    return lambda op: errno.EOPNOTSUPP if isinstance(op, AddSet) and condition(op.set) else 0


LACKS: Mapping[str, tuple[Refuses, str, str]] = {
    "no table": (lambda op: errno.EAFNOSUPPORT if isinstance(op, AddTable) else 0, "tables (CONFIG_NF_TABLES)", "3.13"),
    "no concatenation": (
        sets_that(lambda s: s.kind is objects.SetKind.VERDICTS and len(s.key) > 1),
        "maps with concatenated keys",
        "4.1",
    ),
    "no networks in keys": (sets_that(lambda s: s.interval), "networks in concatenated keys", "5.6"),
    "no module nft_numgen": (rules_with(objects.OneIn), "random numbers (CONFIG_NFT_NUMGEN)", "4.9"),
    "no module nft_nat": (
        rules_with(objects.DnatByMap),
        "translation to addresses and ports from a map (CONFIG_NFT_NAT)",
        "4.1",
    ),
    "no module nft_masq": (rules_with(objects.Masquerade), "masquerading (CONFIG_NFT_MASQ)", "3.18"),
    "no module nft_fib": (rules_with(objects.FibLocal), "the types of addresses (CONFIG_NFT_FIB_IPV4, _IPV6)", "4.10"),
    "no module nft_ct": (rules_with(objects.CtTranslated), "the state of connections (CONFIG_NFT_CT)", "3.13"),
    "no dynamic sets": (sets_that(lambda s: s.timeout > 0), "sets that packets fill", "4.1"),
}


def faked(refuses: Refuses) -> FakeNftables:
    kernel = FakeNftables()
    kernel.refuse = lambda operation, element: 0 if element else refuses(operation)
    return kernel


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("name", LACKS)
def test_a_feature_that_is_missing_is_named_with_its_version_and_this_kernel_s(name: str, family: Family) -> None:
    refuses, words, since = LACKS[name]
    (line,) = missing(faked(refuses), family, RELEASE)
    assert line.startswith(f"the kernel's nf_tables lacks {words} for {family.value}: ")
    assert f"that came with Linux {since}, and this is {RELEASE} (add " in line
    assert "\n" not in line


def test_all_missing_features_are_reported() -> None:
    kernel = faked(lambda op: rules_with(objects.FibLocal)(op) or rules_with(objects.OneIn)(op))
    kernel.old = True
    lines = missing(kernel, Family.IPV4, "4.8.0")
    assert [line.partition(" for IPv4")[0].partition("lacks ")[2] for line in lines] == [
        "random numbers (CONFIG_NFT_NUMGEN)",
        "the types of addresses (CONFIG_NFT_FIB_IPV4, _IPV6)",
        "the comparison of generations",
    ]


@pytest.mark.parametrize("others", range(3))
def test_other_programs_that_write_meanwhile_do_not_make_a_kernel_look_old(others: int) -> None:
    """A second kproxy during an upgrade, a firewall."""
    kernel = FakeNftables()

    def meanwhile(family: Family) -> None:
        for _ in range(others):
            kernel.flush()

    kernel.meanwhile = meanwhile
    assert missing(kernel, Family.IPV4, RELEASE) == []


def test_rejecting_may_be_known_but_not_before_routing() -> None:
    kernel = FakeNftables()
    before_routing: set[str] = set()

    def refuse(operation: Operation, element: Element | None) -> int:
        match operation:
            case AddTable():
                before_routing.clear()
            case _ if getattr(getattr(operation, "base", None), "hook", None) is Hook.PREROUTING:
                before_routing.add(str(getattr(operation, "chain", "")))
        prerouting = getattr(operation, "chain", "") in before_routing
        return rules_with(objects.Reject, errno.EOPNOTSUPP)(operation) if prerouting else 0

    kernel.refuse = refuse
    (line,) = missing(kernel, Family.IPV4, "5.8.18")
    assert "lacks rejecting before routing for IPv4: that came with Linux 5.9, and this is 5.8.18 (add rules" in line


class HooksUnchecked(FakeNftables):
    """A kernel that looks at hooks only when it commits, as 4.18 to 5.9 did."""

    def check(
        self, family: Family, operations: Sequence[Operation], *args: Any, **kwargs: Any
    ) -> dict[int, NetlinkError]:
        errors = super().check(family, operations, *args, **kwargs)
        return {i: e for i, e in errors.items() if not isinstance(operations[i], AddRules)}


@pytest.mark.parametrize(
    ("release", "lacks"),
    [("5.8.18", True), ("5.6.0-rc1", True), ("5.9.0", False), ("5.10.0-8-amd64", False), ("custom", False)],
)
def test_where_a_check_is_silent_the_version_decides(release: str, lacks: bool) -> None:
    lines = missing(HooksUnchecked(), Family.IPV4, release)
    assert [("rejecting before routing" in line, release in line) for line in lines] == [(True, True)] * lacks


def test_a_kernel_without_nf_tables() -> None:
    class Without(FakeNftables):
        def check(self, *args: Any, **kwargs: Any) -> dict[int, NetlinkError]:
            raise NetlinkError("change nf_tables", errno.EOPNOTSUPP)

    (line,) = missing(Without(), Family.IPV6, RELEASE)
    assert line.startswith("the kernel's nf_tables lacks tables (CONFIG_NF_TABLES) for IPv6: ")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EPERM, "Operation not permitted: it takes root, or at least the capability NET_ADMIN"),
        (errno.ENOBUFS, "No buffer space available"),
    ],
)
def test_a_kernel_that_cannot_be_asked_is_an_error(number: int, told: str) -> None:
    class Refusing(FakeNftables):
        def check(self, *args: Any, **kwargs: Any) -> dict[int, NetlinkError]:
            raise NetlinkError("change nf_tables", number)

    with pytest.raises(KernelError, match=f"^change nf_tables: {told}$"):
        missing(Refusing(), Family.IPV4, RELEASE)


def test_the_features_tried_are_those_that_the_mode_uses() -> None:
    """No feature of the layout goes unchecked: statements and forms of sets that the renderer may write."""
    tried: list[Operation] = []
    kernel = FakeNftables()

    def refuse(operation: Operation, element: Element | None) -> int:
        tried.append(operation)
        return 0

    kernel.refuse = refuse
    missing(kernel, Family.IPV4, RELEASE)
    statements = {type(s) for op in tried if isinstance(op, AddRules) for rule in op.rules for s in rule}
    assert {
        objects.Lookup,
        objects.DnatByMap,
        objects.InSet,
        objects.Update,
        objects.OneIn,
        objects.FibLocal,
        objects.Masquerade,
    } <= statements
    assert {objects.Reject, objects.CtInvalid, objects.CtTranslated} <= statements
    assert {op.set.name for op in tried if isinstance(op, AddElements)} == {"verdicts", "ends", "ranges"}
    assert kernel.applies == 0
    assert kernel.tables() == frozenset()


class Counting(KernelNftables):
    """Counts the checks."""

    checks = 0

    def check(
        self, family: Family, operations: Sequence[Operation], expected: Expected = None
    ) -> dict[int, NetlinkError]:
        self.checks += 1
        return super().check(family, operations, expected)


@pytest.mark.root
@pytest.mark.parametrize("family", Family)
def test_this_kernel_lacks_nothing_and_is_not_changed(netns: None, family: Family) -> None:
    with closing(Counting()) as kernel:
        generation = kernel.generation()
        assert missing(kernel, family, platform.release()) == []
        assert kernel.generation() == generation
        assert kernel.checks == 3, "all features go in one, as each check takes the kernel a while"
