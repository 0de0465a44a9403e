"""Cuts the space of first packets into classes that two sets of rules treat in one way each, and walks them all. Pure.

A class is found from a packet: the packet is traced through both sets of rules, which report every comparison that they
make of it. All packets that compare alike take the same paths, so they are one class. Each other answer to one of the
comparisons, given the answers to those before it, is a part of the space that is looked at next in the same way, until
nothing is left. So the classes are disjoint, together they are the whole space, and no constant is compared with
packets that never reach its rule.

Leaves out: clients that session affinity knows, ports of bridges (physdev), packets that come in by loopback without
having been sent by the node, and from the node itself those from loopback to elsewhere: the kernel lets none of the
latter two pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple
from typing import Protocol as Interface

from kproxy.model.node_info import family_of
from kproxy.model.plans import Family, Protocol
from kproxy.trace.comparisons import (
    PROTOCOLS,
    Among,
    Comparison,
    Dimension,
    Intervals,
    Observer,
    common,
    has,
    network,
    owned,
    without,
)
from kproxy.trace.outcome import Affinity, Outcome, Probe

LONG = 64
"""Ranges of a set from which on it is not cut again by what cut it before: that would take time and change nothing."""
USUAL = {
    Dimension.SOURCE: ("192.0.2.77", "127.0.0.1", "2001:db8:77::7", "::1"),
    Dimension.DESTINATION: ("198.51.100.77", "127.0.0.1", "2001:db8:5::77", "::1"),
}
"""Addresses of examples, where a class has them; before these, the node's."""


class Tracer(Interface):
    """A set of rules: IptablesTracer, NftablesTracer."""

    def trace(self, probe: Probe, affinity: Affinity | None = None, observe: Observer = ...) -> Outcome: ...


@dataclass(frozen=True)
class Space:
    """The first packets of one family on one node.

    addresses: the node's own, without loopback. interfaces: names, of which each stands for all that no rule
    distinguishes from it; see `interface_names`. node_ip: the one for examples, "" for any.
    """

    family: Family
    addresses: frozenset[str]
    interfaces: tuple[str, ...] = ("eth0",)
    node_ip: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The values of Dimension.INTERFACE: from the node itself, and each interface."""
        return "", *self.interfaces

    def boxes(self) -> tuple[Box, ...]:
        """The whole space, as disjoint boxes."""
        ipv6 = self.family is Family.IPV6
        every: Intervals = ((0, (1 << (128 if ipv6 else 32)) - 1),)
        loopback = (network("::1" if ipv6 else "127.0.0.0/8"),)
        ours = owned(self.addresses, ipv6, Dimension.SOURCE).values
        kinds = ((0, len(PROTOCOLS) - 1),), ((1, 65535),)
        node, others = ((0, 0),), ((1, len(self.interfaces)),)
        boxes = (
            Box((without(every, ours), every, *kinds, others)),
            Box((without(ours, loopback), every, *kinds, node)),
            Box((loopback, ours, *kinds, node)),
        )
        return tuple(box for box in boxes if all(box.values))

    def probe(self, box: Box) -> Probe:
        """A packet of a box: one with usual addresses, if it has such."""
        chosen = [self._one(dimension, values) for dimension, values in zip(Dimension, box.values, strict=True)]
        return self.packet(*chosen)

    def packet(self, source: int, destination: int, protocol: int, port: int, interface: int) -> Probe:
        """The packet that has these values."""
        name = PROTOCOLS[protocol]
        kind = "ICMP" if name == "icmp" else Protocol(name.upper())
        return Probe(self._text(source), self._text(destination), kind, port, self.names[interface])  # type: ignore[arg-type]

    def _one(self, dimension: Dimension, values: Intervals) -> int:
        for ip in (self.node_ip, *USUAL[dimension]) if dimension in USUAL else ():
            if ip and family_of(ip) is self.family and has(values, network(ip)[0]):
                return network(ip)[0]
        return values[0][0]

    def _text(self, address: int) -> str:
        return str(IPv6Address(address) if self.family is Family.IPV6 else IPv4Address(address))


class Box(NamedTuple):
    """Packets of which each field is in a set of values, in the order of Dimension. compared: the comparisons that cut
    a long set already."""

    values: tuple[Intervals, ...]
    compared: frozenset[Comparison] = frozenset()

    def part(self, comparison: Comparison, values: Intervals) -> Box:
        """The box with other values where COMPARISON looks."""
        dimension = comparison.dimension
        new = (*self.values[:dimension], values, *self.values[dimension + 1 :])
        return Box(new, self.compared | {comparison} if len(values) > LONG else self.compared)

    def has(self, packet: tuple[int, ...]) -> bool:
        """Whether the packet is in it."""
        return all(has(values, value) for values, value in zip(self.values, packet, strict=True))


class Class(NamedTuple):
    """Packets that both sets of rules treat as they treat `probe`, which is one of them."""

    box: Box
    probe: Probe
    before: Outcome
    after: Outcome

    @property
    def differs(self) -> bool:
        """Whether the fate, an endpoint, its probability or masquerading differs."""
        return self.before.chances != self.after.chances


def classes(space: Space, before: Tracer, after: Tracer) -> Iterator[Class]:
    """All classes. Raises what the tracers raise."""
    names = space.names
    left = list(space.boxes())
    while left:
        box = left.pop()
        probe = space.probe(box)
        compared: dict[Comparison, None] = {}
        outcomes = [tracer.trace(probe, None, compared.setdefault) for tracer in (before, after)]
        values = _values(probe, names)
        for comparison in compared:
            current = box.values[comparison.dimension]
            if (len(current) == 1 and current[0][0] == current[0][1]) or comparison in box.compared:
                continue
            same, others = comparison.parts(current, values[comparison.dimension], names)
            if others:
                left += [box.part(comparison, other) for other in others]
                box = box.part(comparison, same)
            elif isinstance(comparison, Among) and len(same) > LONG:
                box = box.part(comparison, same)
        yield Class(box, probe, *outcomes)


def _values(probe: Probe, names: tuple[str, ...]) -> tuple[int, ...]:
    return (
        network(probe.source)[0],
        network(probe.destination)[0],
        PROTOCOLS.index(probe.protocol.lower()),
        probe.port,
        names.index(probe.interface),
    )


def overlap(left: Box, right: Box) -> bool:
    """Whether any packet is in both."""
    return all(common(a, b) for a, b in zip(left.values, right.values, strict=True))


def interface_names(patterns: set[str], known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """One name for each way in which names can compare with PATTERNS ("veth+" is a prefix): KNOWN ones first."""
    exact = sorted(each for each in patterns if not each.endswith("+"))
    prefixes = sorted(each[:-1] for each in patterns if each.endswith("+"))
    longer = "~" * (max(map(len, patterns), default=0) + 1)  # equal to no pattern: veth+ and veth0 may both be compared
    candidates = [*known, *exact, *(f"{each}{end}" for each in prefixes for end in ("0", longer)), "eth0", longer]
    found: dict[frozenset[str], str] = {}
    for name in candidates:
        found.setdefault(_matching(name, patterns), name)
    return tuple(name for name in found.values() if name != "lo")


def _matching(name: str, patterns: set[str]) -> frozenset[str]:
    return frozenset(each for each in patterns if (name.startswith(each[:-1]) if each[-1:] == "+" else name == each))
