"""Traces a packet through the live rules of nf_tables, expression by expression, as the kernel evaluates them.

Decides: what each expression does to the registers, and where a packet branches: at random numbers. What a first packet
does not determine (its source port, its time to live, limits, sockets) is not known here; a rule that asks for it, or
has an expression that is not known, is named and passed as if it did not match. Leaves out: reading the rules
(kproxy.netfilter.ruleset) and the order of base chains (kproxy.trace.live).
Sources: net/netfilter/nf_tables_core.c, net/netfilter/nft_*.c, include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from ipaddress import ip_address
from typing import Protocol

from kproxy.kernel.constants import NFPROTO, PROTOCOL_NUMBERS
from kproxy.model.plans import Family
from kproxy.netfilter.live_rules import Data, Expression, HookedChain, LiveRule, Place
from kproxy.trace.hooks import Packet, Path
from kproxy.trace.nft_text import rule_text, word_of
from kproxy.trace.outcome import Fate, Host, NotKnown, Step

MAX_DEPTH = 16  # NFT_JUMP_STACK_SIZE
CONTINUE, BREAK, JUMP, GOTO, RETURN, DROP, ACCEPT = -1, -2, -3, -4, -5, 0, 1
INVALID, NEW, UNTRACKED, SNAT, DNAT = 1, 8, 64, 0x10, 0x20  # NF_CT_STATE_BIT, IPS_SRC_NAT, IPS_DST_NAT
RTN_UNICAST, RTN_LOCAL = 1, 2
PASSED = frozenset({"counter", "log", "last", "objref", "flow_offload", "dup", "dynset"})
"""Expressions that change neither the packet's fate nor what later expressions see. A dynset only stops a rule when its
set is full."""
MOST_BRANCHES = 4096


class Rules(Protocol):
    """Where rules come from: kproxy.netfilter.ruleset."""

    def rules(self, place: Place, chain: str) -> Sequence[LiveRule]: ...

    def key_length(self, place: Place, name: str) -> int: ...

    def element(self, place: Place, name: str, key: bytes) -> Data | None: ...


@dataclass(slots=True)
class Registers:
    """The registers: 16 words of 32 bits, and which of their bytes are not known. fate: the end of the packet's way.
    element: the comment of the element that was found last. doubt: why it is not known whether the rule matches, "" if
    it is."""

    data: bytearray = field(default_factory=lambda: bytearray(64))
    unknown: bytearray = field(default_factory=lambda: bytearray(64))
    verdict: Data | None = None
    fate: Fate | None = None
    doubt: str = ""
    element: str = ""

    def copy(self) -> Registers:
        return replace(self, data=bytearray(self.data), unknown=bytearray(self.unknown))

    def doubted(self, why: str, register: int) -> Registers:
        """The registers when what the expression does is not known. register: that it would have written, 0 for none.
        The rest of the rule may still exclude the packet."""
        found = self.copy()
        found.doubt = found.doubt or why
        if register:
            found.put(register, bytes(16), b"\1" * 16)
        return found

    def put(self, register: int, value: bytes, unknown: bytes = b"") -> None:
        """Store a value; the rest of its last word is cleared."""
        at = word_of(register) * 4
        size = (len(value) + 3) & ~3
        self.data[at : at + size] = value.ljust(size, b"\0")
        self.unknown[at : at + size] = unknown.ljust(size, b"\0")

    def get(self, register: int, length: int) -> bytes:
        """A value. Raises NotKnown."""
        at = word_of(register) * 4
        if any(self.unknown[at : at + length]):
            raise NotKnown("what a first packet does not determine")
        return bytes(self.data[at : at + length])

    def raw(self, register: int, length: int) -> tuple[bytes, bytes]:
        """A value, and which of its bytes are not known."""
        at = word_of(register) * 4
        return bytes(self.data[at : at + length]), bytes(self.unknown[at : at + length])


State = tuple[Path, Registers]


class NftChains:
    """Passes packets through chains. end: takes the paths that end here. unknown: takes the rules that are not known,
    each with the reason."""

    def __init__(
        self,
        rules: Rules,
        host: Host,
        end: Callable[[Path, Fate], None],
        unknown: Callable[[Step, str], None],
    ) -> None:
        self._rules, self._host, self._end, self._unknown = rules, host, end, unknown

    def base(self, chain: HookedChain, path: Path) -> list[Path]:
        """The paths that a base chain lets pass."""
        passed = []
        for after, accepted in self._chain(chain.place, chain.name, path, 0):
            if accepted or not chain.drops:
                passed.append(after)
            else:
                self._end(after.after(Step(_table(chain.place), chain.name, "policy drop")), Fate.DROPPED)
        return passed

    def _chain(self, place: Place, name: str, path: Path, depth: int) -> list[tuple[Path, bool]]:
        """The paths that leave a chain, each with whether it was accepted (True) or reached the end (False)."""
        out: list[tuple[Path, bool]] = []
        inside = [path]
        for rule in self._rules.rules(place, name) if depth < MAX_DEPTH else ():
            on: list[Path] = []
            for each in inside:
                self._rule(place, name, rule, each, depth, on, out)
            inside = on
            if not inside:
                break
        return [*out, *((each, False) for each in inside)]

    def _rule(
        self,
        place: Place,
        chain: str,
        rule: LiveRule,
        path: Path,
        depth: int,
        on: list[Path],
        out: list[tuple[Path, bool]],
    ) -> None:
        """Apply a rule. on: paths that continue with the next rule. out: paths that leave the chain."""
        states: list[State] = [(path, Registers())]
        for expression in rule.expressions:
            states = [after for before in states for after in self._apply(place, expression, *before, on)]
        for after, registers in states:
            step = Step(_table(place), chain, rule_text(rule, place.family), registers.element)
            if registers.doubt:
                self._unknown(step, registers.doubt)
                on.append(path._replace(probability=after.probability))
            elif registers.fate is not None:
                self._end(after.after(step), registers.fate)
            else:
                self._decide(place, step, path, after, registers.verdict, depth, on, out)

    def _decide(
        self,
        place: Place,
        step: Step,
        before: Path,
        after: Path,
        verdict: Data | None,
        depth: int,
        on: list[Path],
        out: list[tuple[Path, bool]],
    ) -> None:
        code = CONTINUE if verdict is None else verdict.verdict
        if code == CONTINUE:
            on.append(after.after(step) if after.packet != before.packet else after)
            return
        after = after.after(step)
        match code:
            case 0:
                self._end(after, Fate.DROPPED)
            case 1 | -5:
                out.append((after, code == ACCEPT))
            case -2:
                on.append(before._replace(probability=after.probability))
            case -3 | -4 if verdict is not None:
                for left, accepted in self._chain(place, verdict.chain, after, depth + 1):
                    if accepted or code == GOTO:
                        out.append((left, accepted))
                    else:
                        on.append(left)
            case _:
                self._unknown(step, "it hands packets to another program")
                on.append(before._replace(probability=after.probability))

    # ---- expressions

    def _apply(self, place: Place, e: Expression, path: Path, registers: Registers, on: list[Path]) -> list[State]:
        """The states after one expression; none when it does not match, and then the path is in `on`."""
        if registers.verdict is not None or registers.fate is not None or e.name in PASSED:
            return [(path, registers)]
        try:
            if e.name == "numgen":
                return self._numbers(e, path, registers)
            if e.name not in _EXPRESSIONS:
                raise NotKnown(f"{e.name} {e.text(1)}" if e.name in ("match", "target") else e.name)
            following = registers.copy()
            after = _EXPRESSIONS[e.name](self, place, e, path, following)
        except NotKnown as why:
            return [(path, registers.doubted(str(why), e.number(_WRITES[e.name]) if e.name in _WRITES else 0))]
        if after is None:
            on.append(path)
            return []
        return [(after, following)]

    def _numbers(self, e: Expression, path: Path, registers: Registers) -> list[State]:
        modulus, offset = e.number(2), e.number(4)
        if not 0 < modulus <= MOST_BRANCHES:
            raise NotKnown(f"a random number out of {modulus}")
        states = []
        for value in range(modulus):
            part = registers.copy()
            part.put(e.number(1), (value + offset).to_bytes(4, sys.byteorder))
            states.append((path.part(Fraction(1, modulus)), part))
        return states

    def _meta(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        packet = path.packet
        if 3 in e.attributes:
            if e.number(2) == 3:
                return path.changed(mark=int.from_bytes(r.get(e.number(3), 4), sys.byteorder))
            if e.number(2) in (2, 11, 14, 12):  # priority, trace, secmark: nothing that rules of IP decide by
                return path
            raise NotKnown(f"meta key {e.number(2)} set")
        r.put(e.number(1), self._meta_value(e.number(2), packet))
        return path

    def _meta_value(self, key: int, packet: Packet) -> bytes:
        is_ipv6 = ":" in packet.destination
        match key:
            case 1:
                return b"\x86\xdd" if is_ipv6 else b"\x08\x00"
            case 3:
                return packet.mark.to_bytes(4, sys.byteorder)
            case 6:
                return packet.interface.encode().ljust(16, b"\0")
            case 7:
                return self._output(packet).encode().ljust(16, b"\0")
            case 4 | 5:
                name = packet.interface if key == 4 else self._output(packet)
                if name and name not in self._host.numbers:
                    raise NotKnown(f"the number of interface {name}")
                return self._host.numbers.get(name, 0).to_bytes(4, sys.byteorder)
            case 15:
                return bytes([NFPROTO[Family.IPV6] if is_ipv6 else NFPROTO[Family.IPV4]])
            case 16:
                return bytes([PROTOCOL_NUMBERS[packet.protocol]])
            case 19:
                return b"\0"  # PACKET_HOST
        raise NotKnown(f"meta key {key}")

    def _output(self, packet: Packet) -> str:
        """The name of the output interface, "" before routing. Raises NotKnown."""
        if packet.output is None:
            raise NotKnown("the output interface")
        return packet.output

    def _payload(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        base, offset, length = e.number(2), e.number(3), e.number(4)
        if 1 not in e.attributes:
            raise NotKnown("a change of the packet's payload")
        if base not in (1, 2):
            raise NotKnown("the link layer's header")
        header, unknown = _network(path.packet) if base == 1 else _transport(path.packet)
        part = header[offset : offset + length]
        if len(part) < length:
            raise NotKnown("what is beyond the headers")
        r.put(e.number(1), part, unknown[offset : offset + length])
        return path

    def _compare(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        wanted = e.value(3)
        value = r.get(e.number(1), len(wanted))
        return path if _COMPARE[e.number(2)](value, wanted) else None

    def _range(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        low, high = e.value(3), e.value(4)
        within = low <= r.get(e.number(1), len(low)) <= high
        return path if within is not bool(e.number(2)) else None

    def _bitwise(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        length = e.number(3)
        value, unknown = r.raw(e.number(1), length)
        if e.number(6) == 0:
            mask, xor = (e.value(n).ljust(length, b"\0") for n in (4, 5))
            r.put(
                e.number(2),
                bytes(v & m ^ x for v, m, x in zip(value, mask, xor, strict=False)),
                bytes(u if m else 0 for u, m in zip(unknown, mask, strict=False)),
            )
            return path
        if e.number(6) in (1, 2) and not any(unknown):
            number = int.from_bytes(value, sys.byteorder)
            by = int.from_bytes(e.value(7), sys.byteorder)
            shifted = number << by if e.number(6) == 1 else number >> by
            r.put(e.number(2), (shifted & (1 << 8 * length) - 1).to_bytes(length, sys.byteorder))
            return path
        raise NotKnown(f"bitwise operation {e.number(6)}")

    def _byteorder(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        length, size = e.number(4), e.number(5)
        value, unknown = r.raw(e.number(1), length)
        if sys.byteorder == "little" and length >= size:
            value, unknown = (
                b"".join(part[at : at + size][::-1] for at in range(0, length, size)) for part in (value, unknown)
            )
        r.put(e.number(2), value, unknown)
        return path

    def _immediate(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        found = e.data[2]
        if found.verdict is not None:
            r.verdict = found
        else:
            r.put(e.number(1), found.value)
        return path

    def _lookup(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        name, inverted = e.text(1), bool(e.number(5) & 1)
        found = self._rules.element(place, name, r.get(e.number(2), self._rules.key_length(place, name)))
        if (found is None) is not inverted:
            return None
        if found is not None:
            r.element = found.comment or r.element
        if found is not None and 3 in e.attributes:
            if e.number(3) == 0:
                r.verdict = found
            else:
                r.put(e.number(3), found.value)
        return path

    def _ct(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        packet, key = path.packet, e.number(2)
        if key and not packet.seen:
            return None if 1 in e.attributes else path
        if 1 not in e.attributes:
            if key == 3:
                return path.changed(ct_mark=int.from_bytes(r.get(e.number(4), 4), sys.byteorder))
            raise NotKnown(f"ct key {key} set")
        number = {
            0: UNTRACKED if packet.untracked else NEW if packet.seen else INVALID,
            2: SNAT * packet.masqueraded | DNAT * (packet.translated and not packet.balanced),
            3: packet.ct_mark,
        }.get(key)
        if key == 1:
            r.put(e.number(1), b"\0")
        elif number is not None:
            r.put(e.number(1), number.to_bytes(4, sys.byteorder))
        else:
            raise NotKnown(f"ct key {key}")
        return path

    def _fib(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        flags = e.number(3)
        if e.number(2) != 3 or flags & 3 not in (1, 2):
            raise NotKnown("the routing table")
        ip = path.packet.source if flags & 1 else path.packet.destination
        type_ = RTN_LOCAL if self._host.owns(ip) else _address_type(ip)
        r.put(e.number(1), type_.to_bytes(4, sys.byteorder))
        return path

    def _notrack(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        return path.changed(untracked=True)

    def _reject(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        r.fate = Fate.REJECTED
        return path

    def _masquerade(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        r.verdict = Data(b"", ACCEPT)
        return path.changed(masqueraded=True)

    def _nat(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        r.verdict = Data(b"", ACCEPT)
        length = 16 if e.number(2) == NFPROTO[Family.IPV6] else 4
        if e.number(1) == 0:
            chosen = str(ip_address(r.get(e.number(3), length))) if 3 in e.attributes else path.packet.source
            return path.changed(masqueraded=True, source_to=chosen)
        packet = path.packet
        ip = str(ip_address(r.get(e.number(3), length))) if 3 in e.attributes else packet.destination
        port = int.from_bytes(r.get(e.number(5), 2), "big") if 5 in e.attributes else packet.port
        for low, high, size in ((3, 4, length), (5, 6, 2)):
            if high in e.attributes and r.get(e.number(low), size) != r.get(e.number(high), size):
                raise NotKnown("a choice out of a range of addresses or ports")
        return path.redirected(ip, port)

    def _redirect(self, place: Place, e: Expression, path: Path, r: Registers) -> Path | None:
        r.verdict = Data(b"", ACCEPT)
        packet = path.packet
        loopback = "::1" if ":" in packet.destination else "127.0.0.1"
        local = not packet.interface or packet.interface == "lo"
        ip = loopback if local else self._host.interfaces.get(packet.interface)
        if ip is None:
            raise NotKnown(f"the address of interface {packet.interface}")
        return path.redirected(ip, int.from_bytes(r.get(e.number(1), 2), "big") if 1 in e.attributes else packet.port)


def _table(place: Place) -> str:
    return f"{place.family} {place.table}"


def _address_type(ip: str) -> int:
    address = ip_address(ip)
    if address.is_multicast:
        return 5
    if ip == "255.255.255.255":
        return 3
    return RTN_UNICAST


def _network(packet: Packet) -> tuple[bytes, bytes]:
    """The network header of a first packet, and which of its bytes it does not determine."""
    protocol = PROTOCOL_NUMBERS[packet.protocol]
    addresses = b"".join(ip_address(ip).packed for ip in (packet.source, packet.destination))
    if ":" in packet.destination:
        return bytes((0x60, 0, 0, 0, 0, 0, protocol, 0)) + addresses, bytes((0, 1, 1, 1, 1, 1, 0, 1)) + bytes(32)
    header = bytes((0x45, 0, 0, 0, 0, 0, 0, 0, 0, protocol, 0, 0)) + addresses
    return header, bytes((0, 1, 1, 1, 1, 1, 0, 0, 1, 0, 1, 1)) + bytes(8)


def _transport(packet: Packet) -> tuple[bytes, bytes]:
    """The transport header of a first packet (TCP: SYN), and which of its bytes it does not determine."""
    ports = bytes(2) + packet.port.to_bytes(2, "big")
    if packet.protocol == "tcp":
        rest = bytearray(16)
        rest[9] = 0x02
        return ports + bytes(rest), bytes((1, 1, 0, 0, *[1] * 9, 0, *[1] * 6))
    return ports + bytes(4), bytes((1, 1, 0, 0, 1, 1, 1, 1))


_COMPARE: tuple[Callable[[bytes, bytes], bool], ...] = (
    lambda a, b: a == b,
    lambda a, b: a != b,
    lambda a, b: a < b,
    lambda a, b: a <= b,
    lambda a, b: a > b,
    lambda a, b: a >= b,
)
_WRITES = {
    "meta": 1,
    "payload": 1,
    "ct": 1,
    "fib": 1,
    "numgen": 1,
    "hash": 2,
    "bitwise": 2,
    "byteorder": 2,
    "lookup": 3,
}
"""The attribute of an expression that names the register it writes."""
_EXPRESSIONS = {
    "meta": NftChains._meta,
    "payload": NftChains._payload,
    "cmp": NftChains._compare,
    "range": NftChains._range,
    "bitwise": NftChains._bitwise,
    "byteorder": NftChains._byteorder,
    "immediate": NftChains._immediate,
    "lookup": NftChains._lookup,
    "ct": NftChains._ct,
    "fib": NftChains._fib,
    "notrack": NftChains._notrack,
    "reject": NftChains._reject,
    "masq": NftChains._masquerade,
    "nat": NftChains._nat,
    "redir": NftChains._redirect,
}
