"""iptables rules as typed values: what they match and what they do.

Only matches and targets that Service proxies and their surroundings use are known. A rule with any other is kept with
`unknown` set, so that whoever walks can tell whether it matters. Leaves out: reading text (parsing) and walking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from kproxy.trace.flows import Packet
from kproxy.trace.verdicts import Affinity, Host, Memory

SetOracle = Callable[[str, tuple[str, ...], Packet], bool]
"""Whether an ipset of this name has an entry for a packet, by these directions ("src" or "dst" for each part)."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What matches ask of the host."""

    host: Host
    affinity: Affinity
    sets: SetOracle


class Match(Protocol):
    """One condition of a rule."""

    def holds(self, packet: Packet, around: Surroundings) -> bool: ...


@dataclass(frozen=True, slots=True)
class Address:
    """-s or -d: the address, masked, equals the network; or, negated, does not."""

    of_source: bool
    network: int
    mask: int
    negated: bool = False

    def holds(self, packet: Packet, around: Surroundings) -> bool:
        value = packet.source_number if self.of_source else packet.destination_number
        return (value & self.mask == self.network) is not self.negated


@dataclass(frozen=True, slots=True)
class IsProtocol:
    """-p"""

    name: str
    negated: bool = False

    def holds(self, packet: Packet, around: Surroundings) -> bool:
        return (packet.protocol == self.name) is not self.negated


@dataclass(frozen=True, slots=True)
class Port:
    """--dport, one or a range."""

    low: int
    high: int
    negated: bool = False

    def holds(self, packet: Packet, around: Surroundings) -> bool:
        return (self.low <= packet.port <= self.high) is not self.negated


@dataclass(frozen=True, slots=True)
class Interface:
    """-i, where a name that ends in "+" stands for all that begin so. What the node itself sends has none."""

    name: str
    negated: bool = False

    def holds(self, packet: Packet, around: Surroundings) -> bool:
        if self.name.endswith("+"):
            found = packet.interface.startswith(self.name[:-1])
        else:
            found = packet.interface == self.name
        return found is not self.negated


@dataclass(frozen=True, slots=True)
class AddressType:
    """-m addrtype with type LOCAL."""

    of_source: bool
    negated: bool = False

    def holds(self, packet: Packet, around: Surroundings) -> bool:
        ip = packet.source if self.of_source else packet.destination
        return around.host.owns(ip) is not self.negated


@dataclass(frozen=True, slots=True)
class States:
    """-m conntrack --ctstate: one of them is the packet's."""

    names: frozenset[str]
    negated: bool = False

    def holds(self, packet: Packet, around: Surroundings) -> bool:
        return (not self.names.isdisjoint(packet.states)) is not self.negated


@dataclass(frozen=True, slots=True)
class MarkIs:
    """-m mark"""

    value: int
    mask: int
    negated: bool = False

    def holds(self, packet: Packet, around: Surroundings) -> bool:
        return (packet.mark & self.mask == self.value) is not self.negated


@dataclass(frozen=True, slots=True)
class Recent:
    """-m recent --rcheck: the source was put into the list, within so many seconds (0: ever)."""

    name: str
    seconds: int = 0
    negated: bool = False

    def holds(self, packet: Packet, around: Surroundings) -> bool:
        age = around.affinity.get(Memory(self.name, packet.source))
        return (age is not None and (not self.seconds or age <= self.seconds)) is not self.negated


@dataclass(frozen=True, slots=True)
class WithinSet:
    """-m set --match-set"""

    name: str
    directions: tuple[str, ...]
    negated: bool = False

    def holds(self, packet: Packet, around: Surroundings) -> bool:
        return around.sets(self.name, self.directions, packet) is not self.negated


@dataclass(frozen=True, slots=True)
class Bridged:
    """-m physdev --physdev-is-in"""

    negated: bool = False

    def holds(self, packet: Packet, around: Surroundings) -> bool:
        return packet.bridged is not self.negated


# ---------------------------------------------------------------- targets


@dataclass(frozen=True, slots=True)
class Plain:
    """A target without options: ACCEPT, DROP, REJECT, RETURN, MASQUERADE; "" for a rule that has none."""

    name: str


@dataclass(frozen=True, slots=True)
class Jump:
    """-j to a chain, or with `goto` -g, from which nothing comes back here."""

    chain: str
    goto: bool = False


@dataclass(frozen=True, slots=True)
class MarkSet:
    """-j MARK, as --set-xmark: clear the bits of the mask, then xor the value."""

    value: int
    mask: int


@dataclass(frozen=True, slots=True)
class Dnat:
    """-j DNAT to one address; port 0 keeps the packet's."""

    ip: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class Redirect:
    """-j REDIRECT to a port (0 keeps the packet's) of the node: on loopback for what the node sends itself, else on the
    interface by which the packet came."""

    port: int = 0

    def destination(self, packet: Packet, host: Host) -> str | None:
        """None when the host does not say which address the interface has."""
        if packet.interface and packet.interface != "lo":
            return host.interfaces.get(packet.interface)
        return "::1" if ":" in packet.destination else "127.0.0.1"


Target = Plain | Jump | MarkSet | Dnat | Redirect


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. It takes hold when all of `matches` hold and the lot with `chance` falls on it.

    destination, port: what it asks of these exactly, None for anything else; a quick way to pass over it.
    remembers: the `recent` list that it puts the source into, "" for none. unknown: what is not understood, "" if all.
    """

    text: str
    matches: tuple[Match, ...] = ()
    target: Target = Plain("")
    chance: Fraction = Fraction(1)
    destination: int | None = None
    port: int | None = None
    remembers: str = ""
    unknown: str = ""

    def holds(self, packet: Packet, around: Surroundings) -> bool:
        return all(match.holds(packet, around) for match in self.matches)
