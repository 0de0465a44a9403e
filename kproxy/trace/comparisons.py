"""Comparisons that rules make with the fields of a packet, and the parts into which each cuts the values of a field.

A tracer that is given an observer reports every comparison that it makes of the packet as it came in. Two packets that
compare alike each time take the same path, so these comparisons are all that an outcome depends on
(kproxy.preflight.classes). One that is reported without need only cuts finer. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from functools import lru_cache
from ipaddress import ip_network
from typing import NamedTuple


class Dimension(IntEnum):
    """A field of a first packet; its values are numbers: an address, a port, a place in PROTOCOLS or in a list of
    interfaces."""

    SOURCE = 0
    DESTINATION = 1
    PROTOCOL = 2
    PORT = 3
    INTERFACE = 4


PROTOCOLS = ("tcp", "udp", "sctp", "icmp")
"""The protocols of probes; icmp stands for all that have no ports."""

Intervals = tuple[tuple[int, int], ...]
"""A set of numbers as disjoint ranges, first and last included, in order."""


def united(ranges: Iterable[tuple[int, int]]) -> Intervals:
    """The set of all numbers in RANGES."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = out[-1][0], max(out[-1][1], high)
        else:
            out.append((low, high))
    return tuple(out)


def common(left: Intervals, right: Intervals) -> Intervals:
    """The numbers that are in both sets."""
    out, at, of = [], 0, 0
    while at < len(left) and of < len(right):
        low, high = max(left[at][0], right[of][0]), min(left[at][1], right[of][1])
        if low <= high:
            out.append((low, high))
        if left[at][1] < right[of][1]:
            at += 1
        else:
            of += 1
    return tuple(out)


def without(left: Intervals, right: Intervals) -> Intervals:
    """The numbers of LEFT that are not in RIGHT."""
    out, of = [], 0
    for low, last in left:
        at = low
        while of < len(right) and right[of][1] < at:
            of += 1
        behind = of
        while behind < len(right) and right[behind][0] <= last:
            if at < right[behind][0]:
                out.append((at, right[behind][0] - 1))
            at = right[behind][1] + 1
            behind += 1
        if at <= last:
            out.append((at, last))
    return tuple(out)


def has(values: Intervals, value: int) -> bool:
    """Whether VALUE is in the set."""
    at = bisect_right(values, value, key=lambda each: each[0])
    return bool(at) and value <= values[at - 1][1]


@lru_cache(4096)
def network(cidr: str) -> tuple[int, int]:
    """The first and last address of a CIDR or address, as numbers."""
    found = ip_network(cidr, strict=False)
    return int(found.network_address), int(found.broadcast_address)


class Within(NamedTuple):
    """Whether a field is in a set."""

    dimension: Dimension
    values: Intervals

    def parts(self, current: Intervals, value: int, interfaces: Sequence[str]) -> tuple[Intervals, list[Intervals]]:
        """The part of CURRENT that compares as VALUE does, and the others."""
        inside = common(current, self.values)
        if has(self.values, value):
            rest = without(current, self.values)
            return inside, [rest] if rest else []
        return without(current, self.values), [inside] if inside else []


class Among:
    """Which of many values a field has, if any: the key of a map, or that of an index of rules. Compared by identity,
    so it is made once."""

    def __init__(self, dimension: Dimension, values: Iterable[int]) -> None:
        self.dimension = dimension
        self._values = sorted(values)
        self._ranges = united((value, value) for value in self._values)

    def parts(self, current: Intervals, value: int, interfaces: Sequence[str]) -> tuple[Intervals, list[Intervals]]:
        """As Within.parts: a part for each value, and one for what is none of them."""
        at = bisect_left(self._values, value)
        known = at < len(self._values) and self._values[at] == value
        others: list[Intervals] = [((each, each),) for each in self._values if each != value and has(current, each)]
        rest = without(current, self._ranges)
        if not known:
            return rest, others
        return ((value, value),), [*others, rest] if rest else others


class OfInterface(NamedTuple):
    """Whether the packet came in by this interface. prefix: by one whose name begins so."""

    name: str
    prefix: bool = False
    dimension: Dimension = Dimension.INTERFACE

    def parts(self, current: Intervals, value: int, interfaces: Sequence[str]) -> tuple[Intervals, list[Intervals]]:
        """As Within.parts. interfaces: the names; values of the field are places in it."""
        matching = united((at, at) for at, name in enumerate(interfaces) if self._holds(name))
        return Within(self.dimension, matching).parts(current, value, interfaces)

    def _holds(self, name: str) -> bool:
        return name.startswith(self.name) if self.prefix else name == self.name


Comparison = Within | Among | OfInterface
Observer = Callable[[Comparison], None]


def unobserved(comparison: Comparison) -> None:
    """The observer of whoever wants to know the outcome alone."""


@lru_cache(64)
def protocol(name: str) -> Within:
    """Whether the packet is of this protocol."""
    values = tuple((at, at) for at, known in enumerate(PROTOCOLS) if known == name)
    return Within(Dimension.PROTOCOL, values)


@lru_cache(64)
def owned(addresses: frozenset[str], ipv6: bool, dimension: Dimension) -> Within:
    """Whether an address is one of the node's, loopback included."""
    ours = [network(ip) for ip in addresses if (":" in ip) is ipv6]
    return Within(dimension, united([*ours, network("::1" if ipv6 else "127.0.0.0/8")]))
