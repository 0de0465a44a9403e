"""What nftables mode needs of the kernel's nf_tables, and whether it is there.

The kernel is asked to check a small transaction for each feature and to drop it, so nothing changes, and the modules
that it needs are loaded. Source: git history of net/netfilter for the versions.
"""

from __future__ import annotations

from typing import NamedTuple

from kproxy.errors import NetlinkError
from kproxy.kernel.nftables import OUTDATED, Nftables
from kproxy.kernel.nftables_operations import AddChain, AddElements, AddRules, AddSet, AddTable, Operation
from kproxy.model.nft import (
    BaseChain,
    CtInvalid,
    DnatByMap,
    Element,
    FibLocal,
    Field,
    Hook,
    Lookup,
    Masquerade,
    OneIn,
    Random,
    Reject,
    Set,
    SetKind,
    Statement,
    Type,
    Update,
    Verdict,
)
from kproxy.model.plans import Family

__all__ = ["missing"]

TABLE, CHAIN = "kproxy-check", "check"
ADDRESS = {Family.IPV4: Type.IPV4, Family.IPV6: Type.IPV6}
EXAMPLE = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8::1"}
FRONTEND = (Field.DADDR, Field.PROTO, Field.DPORT)
NAT_OUT = BaseChain("nat", Hook.POSTROUTING, 100)
NAT_IN = BaseChain("nat", Hook.PREROUTING, -100)
FILTER = BaseChain("filter", Hook.FORWARD, 0)


class _Feature(NamedTuple):
    """words: what it is, and the option of the kernel's configuration. since: the version of Linux that brought it."""

    words: str
    since: str
    operations: list[Operation]


def missing(kernel: Nftables, family: Family) -> list[str]:
    """What this kernel lacks for FAMILY, a line each; nothing when nftables mode can work. Raises NetlinkError."""
    lacking: list[str] = []
    for feature in _features(family):
        errors = kernel.check(family, [AddTable(TABLE), *feature.operations])
        if 0 in errors:
            return [_line(_Feature("tables of nf_tables (CONFIG_NF_TABLES)", "3.13", []), family, errors[0])]
        if errors:
            lacking.append(_line(feature, family, next(iter(errors.values()))))
    if not _expects_generations(kernel, family):
        lacking.append("the kernel's nf_tables does not compare generations: Linux 4.12 or later is needed")
    return lacking


def _line(feature: _Feature, family: Family, error: NetlinkError) -> str:
    needed = f"Linux {feature.since} or later is needed"
    return f"the kernel's nf_tables lacks {feature.words} for {family.value}: {needed} ({error})"


def _expects_generations(kernel: Nftables, family: Family) -> bool:
    try:
        kernel.check(family, [AddTable(TABLE)], kernel.generation() + 1 & 0x7FFFFFFF or 1)
    except NetlinkError as error:
        if error.errno == OUTDATED:
            return True
        raise
    return False


def _features(family: Family) -> list[_Feature]:
    address, example = ADDRESS[family], EXAMPLE[family]
    key = (address, Type.PROTO, Type.PORT)
    verdicts = Set("verdicts", key, SetKind.VERDICTS)
    ends = Set("ends", (*key, Type.SLOT), SetKind.MAP, (address, Type.PORT))
    ranges = Set("ranges", (*key, address), interval=True)
    clients = Set("clients", (address, *key), timeout=10, size=16)
    verdict = Element("verdicts", (example, "tcp", 80), Verdict())
    network = Element("ranges", (example, "tcp", 80, f"{example}/24"))
    maps: list[Operation] = [AddSet(TABLE, verdicts), AddElements(TABLE, verdicts, [verdict]), AddSet(TABLE, ends)]
    return [
        _Feature("maps with concatenated keys", "4.1", [*maps, *_rule(FILTER, Lookup(FRONTEND, "verdicts"))]),
        _Feature(
            "networks in concatenated keys", "5.6", [AddSet(TABLE, ranges), AddElements(TABLE, ranges, [network])]
        ),
        _Feature(
            "translation to addresses from a map by random number (CONFIG_NFT_NAT, CONFIG_NFT_NUMGEN)",
            "4.9",
            [AddSet(TABLE, ends), *_rule(NAT_IN, DnatByMap((*FRONTEND, Random(2, 1)), "ends"))],
        ),
        _Feature("random numbers (CONFIG_NFT_NUMGEN)", "4.9", _rule(FILTER, OneIn(2))),
        _Feature("masquerading (CONFIG_NFT_MASQ)", "3.18", _rule(NAT_OUT, Masquerade())),
        _Feature("the types of addresses (CONFIG_NFT_FIB)", "4.10", _rule(NAT_IN, FibLocal(Field.DADDR))),
        _Feature("rejecting (CONFIG_NFT_REJECT)", "3.14", _rule(FILTER, Reject())),
        _Feature("the state of connections (CONFIG_NFT_CT)", "3.13", _rule(FILTER, CtInvalid())),
        _Feature(
            "sets that packets fill",
            "4.3",
            [AddSet(TABLE, clients), *_rule(FILTER, Update("clients", (Field.SADDR, *FRONTEND)))],
        ),
    ]


def _rule(base: BaseChain, *rule: Statement) -> list[Operation]:
    return [AddChain(TABLE, CHAIN, base), AddRules(TABLE, CHAIN, (rule,))]
