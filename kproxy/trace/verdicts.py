"""What a walk is asked and what it answers, whatever the rules are written in.

A probe is the first packet of a connection. Its way may fork where rules draw lots, so the answer is a set of branches,
each with its probability as an exact fraction; the probabilities of all branches sum to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from kproxy.errors import InvalidInput
from kproxy.model.addresses import is_loopback
from kproxy.model.node_info import family_of
from kproxy.model.plans import Family, Protocol


@dataclass(frozen=True, slots=True)
class Probe:
    """The first packet of a connection: addresses in canonical text, the destination port.

    interface: the name of the one by which it comes in, "" when the node itself sends it. bridged: that interface is a
    port of a bridge of the node.
    """

    source: str
    destination: str
    protocol: Protocol
    port: int
    interface: str = ""
    bridged: bool = False

    @property
    def family(self) -> Family:
        return family_of(self.destination)

    def __str__(self) -> str:
        way = f"by {self.interface}" if self.interface else "from the node"
        return f"{self.source} -> {self.destination} {self.protocol.lower()} port {self.port} {way}"


@dataclass(frozen=True, slots=True)
class Host:
    """The node as far as a packet's way depends on it.

    addresses: its own, without prefix lengths; loopback counts always. interfaces: the first address of each interface,
    which REDIRECT leads to; only needed where rules redirect.
    """

    addresses: frozenset[str] = frozenset()
    interfaces: Mapping[str, str] = field(default_factory=dict)

    def owns(self, ip: str) -> bool:
        """Whether IP, canonical, is of the type LOCAL here."""
        return ip in self.addresses or is_loopback(ip)


class Memory(NamedTuple):
    """What session affinity remembers: that CLIENT was led by the list, set or map of this name, and to which endpoint
    ("IP:PORT"; "" where the name says that already). what: the rest of the key where one map serves many ports."""

    where: str
    client: str
    what: str = ""
    endpoint: str = ""


Affinity = Mapping[Memory, int]
"""What is remembered, and how many seconds ago each was last seen."""


class Fate(StrEnum):
    """What becomes of a packet. untouched: it is led nowhere else and passes."""

    DELIVERED = "delivered"
    UNTOUCHED = "untouched"
    REJECTED = "rejected"
    DROPPED = "dropped"


class Verdict(NamedTuple):
    """Where a packet ends. endpoint: "IP:PORT" when it is delivered. masqueraded: it leaves with an address of the
    node as its source."""

    fate: Fate
    endpoint: str = ""
    masqueraded: bool = False

    def __str__(self) -> str:
        to = f" to {self.endpoint}" if self.endpoint else ""
        return f"{self.fate.value}{to}{', masqueraded' if self.masqueraded else ''}"


class Step(NamedTuple):
    """One rule that took hold: its table, its chain, its text ("policy DROP" for a chain's policy)."""

    table: str
    chain: str
    rule: str


@dataclass(frozen=True, slots=True)
class Branch:
    """One way that the packet may go, and what session affinity remembers of it afterwards."""

    probability: Fraction
    verdict: Verdict
    remembers: frozenset[Memory] = frozenset()
    path: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """All ways that a probe may go."""

    branches: tuple[Branch, ...]

    @property
    def chances(self) -> dict[Verdict, Fraction]:
        """Each verdict with its probability, by whatever path: what two sets of rules are compared by."""
        return total((branch.verdict, branch.probability) for branch in self.branches)


def total(pairs: Iterable[tuple[Verdict, Fraction]]) -> dict[Verdict, Fraction]:
    """The probabilities added up verdict by verdict, in the order of the verdicts."""
    found: dict[Verdict, Fraction] = {}
    for verdict, probability in pairs:
        found[verdict] = found.get(verdict, Fraction()) + probability
    return dict(sorted(found.items()))


def one_in(text: str) -> Fraction:
    """The probability that a rule's decimal number stands for.

    The kernel keeps it as a multiple of 2^-31 (include/uapi/linux/netfilter/xt_statistic.h). Where that is the nearest
    to 1/n, 1/n is what the writer meant and what is returned. Raises ValueError for what is no probability.
    """
    exact = Fraction(text)
    if not 0 <= exact <= 1:
        raise ValueError(f"{text} is no probability")
    kept = round(exact * 0x80000000)
    share = Fraction(1, round(1 / exact)) if exact else exact
    # Writers cut their digits before the kernel rounds, which may lead to the neighbour of the nearest multiple.
    return share if abs(share * 0x80000000 - kept) <= 1 else Fraction(kept, 0x80000000)


def check_family(probe: Probe, family: Family) -> None:
    """Raises InvalidInput unless the probe's addresses are of FAMILY."""
    if family_of(probe.source) is not family or probe.family is not family:
        raise InvalidInput(f"{probe}: the rules are for {family}")


@lru_cache(65536)
def number(ip: str) -> int:
    """IP as a number. Raises InvalidInput when it is no address."""
    try:
        return int(ip_address(ip))
    except ValueError:
        raise InvalidInput(f"{ip!r} is not an IP address") from None
