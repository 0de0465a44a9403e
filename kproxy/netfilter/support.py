"""Checks whether the kernel's nf_tables has what nftables mode needs.

The kernel validates a small transaction for each feature and drops it, so nothing changes, and the modules that are
needed get loaded. The version decides only where such a check cannot. The versions' sources are in docs/nftables.md.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kproxy.errors import KernelError, NetlinkError
from kproxy.kernel.host_checks import NEEDED
from kproxy.model.plans import Family
from kproxy.netfilter.kernel import OUTDATED, Nftables
from kproxy.netfilter.objects import (
    BaseChain,
    CtInvalid,
    CtTranslated,
    DnatByMap,
    Element,
    FibLocal,
    Field,
    Hook,
    InSet,
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
from kproxy.netfilter.operations import AddChain, AddElements, AddRules, AddSet, AddTable, Operation

TABLE, CHAIN = "kproxy-check", "check"
ADDRESS = {Family.IPV4: Type.IPV4, Family.IPV6: Type.IPV6}
EXAMPLE = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8::1"}
FRONTEND = (Field.DADDR, Field.PROTO, Field.DPORT)
NAT_OUT = BaseChain("nat", Hook.POSTROUTING, 100)
NAT_IN = BaseChain("nat", Hook.PREROUTING, -100)
NAT_OWN = BaseChain("nat", Hook.OUTPUT, -100)
FILTER = BaseChain("filter", Hook.FORWARD, 0)
NUMBER = Random(1, 2**32 - 1)
LAST_GENERATION = 2**32 - 1  # the one before the first: 0 is left out, as it stands for any
VERSION = re.compile(r"(\d+)\.(\d+)")


class _Feature(NamedTuple):
    """A feature, and operations that need it. words: with the option of the kernel's configuration. since: the version
    of Linux that introduced it. hooked: it existed before, but not at the hook where it is needed.
    """

    words: str
    since: str
    operations: Sequence[Operation]
    hooked: bool = False


TABLES = _Feature("tables (CONFIG_NF_TABLES)", "3.13", ())
GENERATIONS = _Feature("the comparison of generations", "4.11", ())


def missing(kernel: Nftables, family: Family, release: str) -> list[str]:
    """What `kernel` lacks for `family`, one line for each; nothing when nftables mode can work.

    release: the kernel's, as uname(1) prints it. Raises NetlinkError, and KernelError with what is missing where this
    process is not allowed to change anything.
    """
    try:
        checks_hooks = _checks_hooks(kernel, family)
    except NetlinkError as error:
        if error.errno == errno.EOPNOTSUPP:  # there is netfilter by netlink, but no nf_tables
            return [_line(TABLES, family, release, str(error))]
        if error.errno == errno.EPERM:  # with the capability too, if the user namespace is another one
            raise KernelError(f"{error}: {NEEDED}") from error
        raise
    lacking: list[str] = []
    features = _features(family)
    whole = not kernel.check(family, [AddTable(TABLE), *_together(features)])
    for feature in features:
        errors = {} if whole else kernel.check(family, [AddTable(TABLE), *feature.operations])
        if 0 in errors:
            return [_line(TABLES, family, release, str(errors[0]))]
        if errors:
            lacking.append(_line(feature, family, release, str(next(iter(errors.values())))))
        elif feature.hooked and not checks_hooks and _numbers(release) < _numbers(feature.since):
            lacking.append(_line(feature, family, release, "by its version"))
    if not _expects_generations(kernel, family):
        lacking.append(_line(GENERATIONS, family, release, "it accepts any"))
    return lacking


def _line(feature: _Feature, family: Family, release: str, reason: str) -> str:
    needed = f"that came with Linux {feature.since}, and this is {release}"
    return f"the kernel's nf_tables lacks {feature.words} for {family.value}: {needed} ({reason})"


def _numbers(version: str) -> tuple[int, int]:
    """The first two numbers of 6.1.0-56-amd64; a version without such numbers counts as new."""
    found = VERSION.match(version)
    return (int(found[1]), int(found[2])) if found else (2**31, 0)


def _together(features: Sequence[_Feature]) -> Iterator[Operation]:
    """The operations of all features, each in a chain of its own: a check takes some 15 ms whatever it contains, and
    most kernels lack nothing."""
    for number, feature in enumerate(features):
        for operation in feature.operations:
            if isinstance(operation, AddChain | AddRules):
                yield operation._replace(chain=f"{CHAIN}-{number}")
            else:
                yield operation


def _checks_hooks(kernel: Nftables, family: Family) -> bool:
    """Whether a check refuses a statement that is not allowed at its hook. From 4.18 to 5.9 only a commit does."""
    return bool(kernel.check(family, [AddTable(TABLE), *_rule(FILTER, Masquerade())]))


def _expects_generations(kernel: Nftables, family: Family) -> bool:
    """Whether an outdated generation is refused. A future one would not do, as others may write it meanwhile."""
    over = kernel.generation() - 1 or LAST_GENERATION
    try:
        kernel.check(family, [AddTable(TABLE)], over)
    except NetlinkError as error:
        if error.errno == OUTDATED:
            return True
        raise
    return False


def _features(family: Family) -> list[_Feature]:
    """The features that the layout of docs/nftables.md uses, each at the hooks where it does."""
    address, example = ADDRESS[family], EXAMPLE[family]
    key = (address, Type.PROTO, Type.PORT)
    verdicts = Set("verdicts", key, SetKind.VERDICTS)
    ends = Set("ends", (*key, Type.SLOT), SetKind.MAP, (address, Type.PORT))
    ranges = Set("ranges", (*key, address), interval=True)
    clients = Set("clients", (address, Type.SLOT), timeout=10, size=16)
    verdict = Element("verdicts", (example, "tcp", 80), Verdict(), "comment")
    end = Element("ends", (example, "tcp", 80, 0), (example, 8080))
    network = Element("ranges", (example, "tcp", 80, f"{example}/24"))
    client = (Field.SADDR, NUMBER)
    return [
        _Feature(
            "maps with concatenated keys",
            "4.1",
            [
                AddSet(TABLE, verdicts),
                AddElements(TABLE, verdicts, [verdict]),
                *_rule(NAT_IN, Lookup(FRONTEND, verdicts.name)),
            ],
        ),
        _Feature(
            "networks in concatenated keys",
            "5.6",
            [
                AddSet(TABLE, ranges),
                AddElements(TABLE, ranges, [network]),
                *_rule(NAT_IN, InSet((*FRONTEND, Field.SADDR), ranges.name, negate=True)),
            ],
        ),
        _Feature("random numbers (CONFIG_NFT_NUMGEN)", "4.9", _rule(NAT_IN, OneIn(2))),
        _Feature(
            "translation to addresses and ports from a map (CONFIG_NFT_NAT)",
            "4.1",
            [
                AddSet(TABLE, ends),
                AddElements(TABLE, ends, [end]),
                *_rule(NAT_IN, DnatByMap((*FRONTEND, Random(2, 1)), ends.name)),
            ],
        ),
        _Feature("masquerading (CONFIG_NFT_MASQ)", "3.18", _rule(NAT_OUT, Masquerade())),
        _Feature("the types of addresses (CONFIG_NFT_FIB_IPV4, _IPV6)", "4.10", _rule(NAT_IN, FibLocal(Field.DADDR))),
        _Feature("rejecting (CONFIG_NFT_REJECT)", "3.15", _rule(NAT_OWN, Reject())),
        _Feature("rejecting before routing", "5.9", _rule(NAT_IN, Reject()), hooked=True),
        _Feature(
            "the state of connections (CONFIG_NFT_CT)", "3.13", _rule(NAT_OUT, CtInvalid()) + _more(CtTranslated())
        ),
        _Feature(
            "sets that packets fill",
            "4.1",
            [AddSet(TABLE, clients), *_rule(NAT_IN, InSet(client, clients.name), Update(clients.name, client))],
        ),
    ]


def _rule(base: BaseChain, *rule: Statement) -> list[Operation]:
    return [AddChain(TABLE, CHAIN, base), *_more(*rule)]


def _more(*rule: Statement) -> list[Operation]:
    return [AddRules(TABLE, CHAIN, (rule,))]
