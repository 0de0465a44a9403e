"""Probes and outcomes: the input and the result of a trace, for rules of any kind.

A probe is the first packet of a connection. Rules may choose at random, so an outcome is a set of branches, each with
its probability as an exact fraction; the probabilities sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from ipaddress import ip_address
from typing import Literal, NamedTuple

from kproxy.errors import InvalidInput
from kproxy.model.addresses import is_loopback
from kproxy.model.node_info import family_of
from kproxy.model.plans import Family, Protocol


@dataclass(frozen=True, slots=True)
class Probe:
    """The first packet of a connection: addresses in canonical text, the destination port.

    protocol: "icmp" stands for those without ports. interface: where it comes in, "" if the node itself sends it.
    bridged: whether that interface is a port of one of the node's bridges.
    """

    source: str
    destination: str
    protocol: Protocol | Literal["ICMP"]
    port: int
    interface: str = ""
    bridged: bool = False

    @property
    def family(self) -> Family:
        return family_of(self.destination)

    def __str__(self) -> str:
        way = f"by {self.interface}" if self.interface else "from the node"
        return f"{self.source} -> {self.destination} {self.protocol.lower()} port {self.port} {way}"


class NotKnown(Exception):
    """A rule asks for what a trace does not know; the text says what."""


class Route(NamedTuple):
    """Where the node sends packets to some address: the interface, and the source address that it prefers there."""

    interface: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """What a trace has to know of the node.

    addresses: its own, without prefix lengths; loopback always counts. interfaces: the first address of each interface,
    to which REDIRECT translates; only needed where rules redirect. numbers: the interfaces' indices. route: finds the
    route to an address, None when it is not known. route_localnet: whether loopback addresses are routed.
    """

    addresses: frozenset[str] = frozenset()
    interfaces: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    route: Callable[[str], Route | None] = lambda ip: None
    route_localnet: bool = True

    def owns(self, ip: str) -> bool:
        """Whether IP (canonical) is an address of the node (type LOCAL)."""
        return ip in self.addresses or is_loopback(ip)


class AffinityEntry(NamedTuple):
    """An entry of session affinity: CLIENT is in the list, set or map `where`.

    endpoint: the endpoint that it stands for as "IP:PORT", "" if `where` implies it. what: the rest of the key where
    one map serves many ports.
    """

    where: str
    client: str
    what: str = ""
    endpoint: str = ""


Affinity = Mapping[AffinityEntry, int]
"""Entries of session affinity, each with the seconds since it was last used."""


class Fate(StrEnum):
    """What happens to a packet. untouched: it passes and is not translated."""

    DELIVERED = "delivered"
    UNTOUCHED = "untouched"
    REJECTED = "rejected"
    DROPPED = "dropped"


class Verdict(NamedTuple):
    """The end of a branch.

    endpoint: "IP:PORT" if the packet is delivered. masqueraded: whether its source becomes an address of the node.
    """

    fate: Fate
    endpoint: str = ""
    masqueraded: bool = False

    def __str__(self) -> str:
        to = f" to {self.endpoint}" if self.endpoint else ""
        return f"{self.fate.value}{to}{', masqueraded' if self.masqueraded else ''}"


class Step(NamedTuple):
    """One rule that matched: its table, its chain, its text ("policy DROP" for a chain's policy). element: the comment
    of the element that matched in a set or map, "" for none."""

    table: str
    chain: str
    rule: str
    element: str = ""


@dataclass(frozen=True, slots=True)
class Branch:
    """One path that the packet may take. remembers: the entries that session affinity has afterwards. output: the
    interface by which it leaves the node, "" if it does not, or if that is not known. source: the address that the
    other end sees, "" if that is not known."""

    probability: Fraction
    verdict: Verdict
    remembers: frozenset[AffinityEntry] = frozenset()
    steps: tuple[Step, ...] = ()
    output: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All branches of a probe."""

    branches: tuple[Branch, ...]

    @property
    def chances(self) -> dict[Verdict, Fraction]:
        """The probability of each verdict, whatever the path; used to compare two sets of rules."""
        return total((branch.verdict, branch.probability) for branch in self.branches)


def total(pairs: Iterable[tuple[Verdict, Fraction]]) -> dict[Verdict, Fraction]:
    """The sum of the probabilities of each verdict, in the order of the verdicts."""
    found: dict[Verdict, Fraction] = {}
    for verdict, probability in pairs:
        found[verdict] = found.get(verdict, Fraction()) + probability
    return dict(sorted(found.items()))


def probability_of(text: str) -> Fraction:
    """The probability that a rule's decimal number stands for.

    The kernel stores a multiple of 2^-31 (include/uapi/linux/netfilter/xt_statistic.h). If that is the one nearest to
    1/n, the writer meant 1/n, and 1/n is returned. Raises ValueError for a number that is not a probability.
    """
    exact = Fraction(text)
    if not 0 <= exact <= 1:
        raise ValueError(f"{text} is not a probability")
    kept = round(exact * 0x80000000)
    share = Fraction(1, round(1 / exact)) if exact else exact
    # Writers truncate digits before the kernel rounds, which may yield the neighbour of the nearest multiple.
    return share if abs(share * 0x80000000 - kept) <= 1 else Fraction(kept, 0x80000000)


def check_family(probe: Probe, family: Family) -> None:
    """Raises InvalidInput unless the probe's addresses belong to FAMILY."""
    if family_of(probe.source) is not family or probe.family is not family:
        raise InvalidInput(f"{probe}: the rules are for {family}")


@lru_cache(65536)
def number(ip: str) -> int:
    """IP as a number. Raises InvalidInput if it is not an address."""
    try:
        return int(ip_address(ip))
    except ValueError:
        raise InvalidInput(f"{ip!r} is not an IP address") from None
