"""iptables rules as typed values: what they match and what they do.

Knows the matches and targets that Service proxies and common other rules use. A rule with any other has `unknown` set,
so that a trace can tell whether it matters. Leaves out: parsing (iptables_parser) and tracing (iptables).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from kproxy.trace.comparisons import Dimension, Observer, OfInterface, Within, owned, protocol, unobserved
from kproxy.trace.hooks import Packet
from kproxy.trace.outcome import Affinity, AffinityEntry, Host, NotKnown

SetLookup = Callable[[str, tuple[str, ...], Packet], bool]
"""Returns whether the ipset has an entry for a packet; directions: "src" or "dst" for each part of the entry."""


@dataclass(frozen=True, slots=True)
class MatchContext:
    """What matches depend on besides the packet. observe: takes what they compare."""

    host: Host
    affinity: Affinity
    sets: SetLookup
    observe: Observer = unobserved


ANY_IPV4, ANY_IPV6 = (1 << 32) - 1, (1 << 128) - 1


def _dimension(of_source: bool) -> Dimension:
    return Dimension.SOURCE if of_source else Dimension.DESTINATION


class Match(Protocol):
    """One condition of a rule."""

    def holds(self, packet: Packet, context: MatchContext) -> bool: ...


@dataclass(frozen=True, slots=True)
class Address:
    """-s or -d: whether the masked address equals the network."""

    of_source: bool
    network: int
    mask: int
    negated: bool = False

    def holds(self, packet: Packet, context: MatchContext) -> bool:
        value = packet.source_number if self.of_source else packet.destination_number
        if self.of_source or not packet.translated:
            # The bits that a netmask leaves out are the lowest ones.
            last = self.network | (ANY_IPV6 if ":" in packet.source else ANY_IPV4) & ~self.mask
            context.observe(Within(_dimension(self.of_source), ((self.network, last),)))
        return (value & self.mask == self.network) is not self.negated


@dataclass(frozen=True, slots=True)
class IsProtocol:
    """-p: whether the packet has this protocol."""

    name: str
    negated: bool = False

    def holds(self, packet: Packet, context: MatchContext) -> bool:
        context.observe(protocol(self.name))
        return (packet.protocol == self.name) is not self.negated


@dataclass(frozen=True, slots=True)
class Port:
    """--dport: whether the destination port is this one, or in this range."""

    low: int
    high: int
    negated: bool = False

    def holds(self, packet: Packet, context: MatchContext) -> bool:
        context.observe(Within(Dimension.PORT, ((self.low, self.high),)))
        return (self.low <= packet.port <= self.high) is not self.negated


@dataclass(frozen=True, slots=True)
class Ports:
    """-m multiport --dports: whether the destination port is in one of these ranges."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def holds(self, packet: Packet, context: MatchContext) -> bool:
        return any(low <= packet.port <= high for low, high in self.ranges) is not self.negated


@dataclass(frozen=True, slots=True)
class Interface:
    """-i, -o: whether it came in, or leaves, by this interface ("+" ends a prefix). What the node itself sends came in
    by none."""

    name: str
    negated: bool = False
    output: bool = False

    def holds(self, packet: Packet, context: MatchContext) -> bool:
        interface = packet.output if self.output else packet.interface
        if interface is None:
            raise NotKnown("the output interface")
        if not self.output:
            prefix = self.name.endswith("+")
            context.observe(OfInterface(self.name[:-1] if prefix else self.name, prefix))
        found = interface.startswith(self.name[:-1]) if self.name.endswith("+") else interface == self.name
        return found is not self.negated


@dataclass(frozen=True, slots=True)
class AddressType:
    """-m addrtype: whether an address is of type LOCAL."""

    of_source: bool
    negated: bool = False

    def holds(self, packet: Packet, context: MatchContext) -> bool:
        ip = packet.source if self.of_source else packet.destination
        if self.of_source or not packet.translated:
            context.observe(owned(context.host.addresses, ":" in ip, _dimension(self.of_source)))
        return context.host.owns(ip) is not self.negated


@dataclass(frozen=True, slots=True)
class States:
    """-m conntrack --ctstate: whether the packet has one of these states."""

    names: frozenset[str]
    negated: bool = False

    def holds(self, packet: Packet, context: MatchContext) -> bool:
        return (not self.names.isdisjoint(packet.states)) is not self.negated


@dataclass(frozen=True, slots=True)
class MarkIs:
    """-m mark, -m connmark: whether the masked mark of the packet, or of its connection, equals the value."""

    value: int
    mask: int
    negated: bool = False
    of_connection: bool = False

    def holds(self, packet: Packet, context: MatchContext) -> bool:
        if self.of_connection and not packet.seen:
            return False
        mark = packet.ct_mark if self.of_connection else packet.mark
        return (mark & self.mask == self.value) is not self.negated


@dataclass(frozen=True, slots=True)
class Recent:
    """-m recent --rcheck: whether the source was added to the list within so many seconds (0: ever)."""

    name: str
    seconds: int = 0
    negated: bool = False

    def holds(self, packet: Packet, context: MatchContext) -> bool:
        age = context.affinity.get(AffinityEntry(self.name, packet.source))
        return (age is not None and (not self.seconds or age <= self.seconds)) is not self.negated


@dataclass(frozen=True, slots=True)
class WithinSet:
    """-m set --match-set: whether the ipset has the packet's addresses and ports."""

    name: str
    directions: tuple[str, ...]
    negated: bool = False

    def holds(self, packet: Packet, context: MatchContext) -> bool:
        return context.sets(self.name, self.directions, packet) is not self.negated


def set_entry(type: str, directions: tuple[str, ...], packet: Packet) -> str:
    """What a rule looks for in an ipset of this type, as ipset(8) writes it. Raises NotKnown."""
    parts = type.partition(":")[2].split(",")
    words = []
    for part, direction in zip(parts, directions, strict=False):
        if part in ("ip", "net"):
            words.append(packet.source if direction == "src" else packet.destination)
        elif part == "port" and direction == "dst":
            words.append(str(packet.port) if parts == ["port"] else f"{packet.protocol}:{packet.port}")
        else:
            raise NotKnown("the client's port" if part == "port" else f"an ipset of type {type}")
    if len(words) < len(parts):
        raise NotKnown(f"an ipset of type {type} by {','.join(directions)}")
    return ",".join(words)


@dataclass(frozen=True, slots=True)
class Bridged:
    """-m physdev --physdev-is-in: whether the packet came in by a port of a bridge."""

    negated: bool = False

    def holds(self, packet: Packet, context: MatchContext) -> bool:
        return packet.bridged is not self.negated


# ---------------------------------------------------------------- targets


@dataclass(frozen=True, slots=True)
class Plain:
    """A target without options that decide: ACCEPT, DROP, REJECT, RETURN, MASQUERADE, NOTRACK; "" for none, and for one
    that changes nothing that rules or routes decide by."""

    name: str


@dataclass(frozen=True, slots=True)
class Jump:
    """-j to a chain, or with `goto` -g, which does not return here."""

    chain: str
    goto: bool = False


@dataclass(frozen=True, slots=True)
class MarkSet:
    """-j MARK, -j CONNMARK, as --set-xmark: clear the bits of the mask, then xor the value."""

    value: int
    mask: int
    of_connection: bool = False


@dataclass(frozen=True, slots=True)
class MarkCopy:
    """-j CONNMARK --save-mark or --restore-mark: between the packet's mark and its connection's."""

    packet_mask: int
    connection_mask: int
    restores: bool


@dataclass(frozen=True, slots=True)
class Snat:
    """-j SNAT to one address."""

    ip: str


@dataclass(frozen=True, slots=True)
class Dnat:
    """-j DNAT to one address; port 0 keeps the packet's."""

    ip: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class Redirect:
    """-j REDIRECT to a port of the node (0 keeps the packet's).

    The address is that of loopback for what the node itself sends, else that of the input interface.
    """

    port: int = 0

    def destination(self, packet: Packet, host: Host) -> str | None:
        """The address; None if the interface's is not known."""
        if packet.interface and packet.interface != "lo":
            return host.interfaces.get(packet.interface)
        return "::1" if ":" in packet.destination else "127.0.0.1"


Target = Plain | Jump | MarkSet | MarkCopy | Snat | Dnat | Redirect


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. It matches if all of `matches` hold, and then with the probability `chance`.

    destination, port: the only ones that it matches, None for any; allows skipping it quickly. remembers: the `recent`
    list that it adds the source to, "" for none. unknown: what is not understood, "" if everything is.
    """

    text: str
    matches: tuple[Match, ...] = ()
    target: Target = Plain("")
    chance: Fraction = Fraction(1)
    destination: int | None = None
    port: int | None = None
    remembers: str = ""
    unknown: str = ""

    def holds(self, packet: Packet, context: MatchContext) -> tuple[bool, str]:
        """Whether it matches, and what that depends on that is not known, "" for nothing."""
        doubts = [self.unknown] if self.unknown else []
        for match in self.matches:
            try:
                if not match.holds(packet, context):
                    return False, ""
            except NotKnown as why:
                doubts.append(str(why))
        return True, ", ".join(doubts)
