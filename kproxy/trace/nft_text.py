"""Writes rules of nf_tables as nft would, from the expressions that the kernel lists. Pure.

It is for people: an expression that is not known here is named in brackets. Source: nft(8).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import NamedTuple

from kproxy.kernel.constants import NFPROTO, PROTOCOL_NAMES
from kproxy.model.plans import Family
from kproxy.netfilter.live_rules import Data, Expression, LiveRule

META = {
    1: ("meta protocol", "int"), 3: ("meta mark", "mark"), 4: ("iif", "int"), 5: ("oif", "int"),
    6: ("iifname", "name"), 7: ("oifname", "name"), 10: ("meta skuid", "int"), 11: ("meta skgid", "int"),
    13: ("meta rtclassid", "int"), 15: ("meta nfproto", "nfproto"), 16: ("meta l4proto", "proto"),
    19: ("meta pkttype", "int"), 23: ("meta cgroup", "int"),
}  # fmt: skip
CT = {0: ("ct state", "state"), 1: ("ct direction", "int"), 2: ("ct status", "status"), 3: ("ct mark", "mark"),
      17: ("ct zone", "int")}  # fmt: skip
FIB = {1: ("oif", "int"), 2: ("oifname", "name"), 3: ("type", "type")}
STATES = {1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked"}
STATUSES = {0x10: "snat", 0x20: "dnat"}
ADDRESS_TYPES = {1: "unicast", 2: "local", 3: "broadcast", 5: "multicast"}
OPERATORS = ("", "!= ", "< ", "<= ", "> ", ">= ")  # enum nft_cmp_ops
NETWORK = {(9, 1): ("ip protocol", "proto"), (6, 1): ("ip6 nexthdr", "proto")}
_IMPLIED = (
    *((f"meta l4proto {name} {name} ", f"{name} ") for name in PROTOCOL_NAMES.values()),
    ("meta nfproto ipv4 ip ", "ip "),
    ("meta nfproto ipv6 ip6 ", "ip6 "),
)
"""What nft leaves out, as the statement after it implies it."""
CODES = {0: "drop", 1: "accept", -1: "continue", -2: "break", -5: "return"}
LITTLE = sys.byteorder == "little"


class Value(NamedTuple):
    """What a register holds, in words, and the kind of value that it is. data: a constant, whose kind shows when it is
    used."""

    text: str
    kind: str
    mask: str = ""
    data: bytes = b""

    def as_kind(self, kind: str) -> str:
        return shown(self.data, kind) if self.data else self.text


def word_of(register: int) -> int:
    """The first 32-bit word of a register, by its number (enum nft_registers)."""
    return (register - 1) * 4 if register < 8 else register - 8


def rule_text(rule: LiveRule, family: str) -> str:
    """One rule in a table of FAMILY ("ip", "ip6", "inet")."""
    words = " ".join(filter(None, _Writer(family).write(rule.expressions)))
    for implied, short in _IMPLIED:
        words = words.replace(implied, short)
    return f'{words} comment "{rule.comment}"' if rule.comment else words


class _Writer:
    """Writes one rule, and keeps what each register holds."""

    def __init__(self, family: str) -> None:
        self._family = family
        self._held: dict[int, Value] = {}
        self._protocol = ""

    def write(self, expressions: Iterable[Expression]) -> Iterator[str]:
        for each in expressions:
            text = self._one(each)
            if text is not None:
                yield text

    def _one(self, e: Expression) -> str | None:
        match e.name:
            case "meta":
                return self._meta(e)
            case "payload":
                return self._hold(e.number(1), self._payload(e.number(2), e.number(3), e.number(4)))
            case "ct" if 1 in e.attributes:
                return self._hold(e.number(1), Value(*CT.get(e.number(2), (f"ct key {e.number(2)}", "int"))))
            case "fib":
                name, kind = FIB.get(e.number(2), ("result", "int"))
                fields = [text for bit, text in ((1, "saddr"), (2, "daddr"), (4, "mark"), (8, "iif"), (16, "oif"))
                          if e.number(3) & bit]  # fmt: skip
                return self._hold(e.number(1), Value(f"fib {' . '.join(fields)} {name}", kind))
            case "numgen":
                how = "random" if e.number(3) else "inc"
                offset = f" offset {e.number(4)}" if e.number(4) else ""
                return self._hold(e.number(1), Value(f"numgen {how} mod {e.number(2)}{offset}", "host"))
            case "byteorder":
                return self._hold(e.number(2), self._at(e.number(1)))
            case "bitwise":
                return self._bitwise(e)
            case "cmp":
                return self._compare(self._at(e.number(1)), OPERATORS[e.number(2) % 6], e.value(3))
            case "range":
                value = self._at(e.number(1))
                low, high = (shown(e.value(n), value.kind) for n in (3, 4))
                return f"{value.text} {'!= ' if e.number(2) else ''}{low}-{high}"
            case "lookup":
                return self._lookup(e)
            case "immediate":
                return self._immediate(e)
            case "nat":
                return self._nat(e)
            case "reject":
                return "reject"
            case "masq":
                return "masquerade"
            case "redir":
                return f"redirect to :{self._at(e.number(1)).as_kind('port')}" if e.number(1) else "redirect"
            case "counter" | "last":
                return None
            case "log" | "notrack" | "limit" | "quota" | "queue" | "socket" | "dynset" | "objref" | "connlimit":
                return f"[{e.name}{' ' + e.text(1) if e.name == 'dynset' else ''}]"
            case "match" | "target":
                return f"[xt {e.name} {e.text(1)}]"
        return f"[{e.name}]"

    def _hold(self, register: int, value: Value) -> str | None:
        self._held[word_of(register)] = value
        return None

    def _at(self, register: int) -> Value:
        return self._held.get(word_of(register), Value("?", "int"))

    def _meta(self, e: Expression) -> str | None:
        name, kind = META.get(e.number(2), (f"meta key {e.number(2)}", "int"))
        if 3 in e.attributes:  # it is set
            return f"{name} set {self._at(e.number(3)).as_kind(kind)}"
        return self._hold(e.number(1), Value(name, kind))

    def _payload(self, base: int, offset: int, length: int) -> Value:
        if base == 1:
            for family, places in (("ip", ((12, "saddr"), (16, "daddr"))), ("ip6", ((8, "saddr"), (24, "daddr")))):
                size = 4 if family == "ip" else 16
                for start, name in places:
                    if offset == start and length <= size and self._family in (family, "inet"):
                        return Value(f"{family} {name}", "address" if length == size else f"prefix {size}")
            return Value(*NETWORK.get((offset, length), (f"@nh,{offset * 8},{length * 8}", "int")))
        if base == 2 and length in (2, 4) and offset in (0, 2):
            return Value(f"{self._protocol or 'th'} {'dport' if offset else 'sport'}", "port")
        return Value(f"@{'th' if base == 2 else 'll'},{offset * 8},{length * 8}", "int")

    def _bitwise(self, e: Expression) -> str | None:
        value = self._at(e.number(1))
        mask, xor = (e.value(n) for n in (4, 5))
        bits = "".join(f"{byte:08b}" for byte in mask)
        if value.kind == "address" and "01" not in bits and not any(xor):
            return self._hold(e.number(2), value._replace(mask=f"/{sum(byte.bit_count() for byte in mask)}"))
        if value.kind in ("state", "status"):
            return self._hold(e.number(2), value._replace(mask=shown(mask, value.kind)))
        if any(xor) and not any(m & x for m, x in zip(mask, xor, strict=False)):
            return self._hold(e.number(2), Value(f"{value.text} | {shown(xor, 'mark')}", value.kind))
        text = value.text
        if "0" in bits:
            text = f"{text} & {shown(mask, value.kind if value.kind == 'address' else 'mark')}"
        if any(xor):
            text = f"{text} ^ {shown(xor, 'mark')}"
        return self._hold(e.number(2), Value(text, value.kind))

    def _compare(self, value: Value, how: str, data: bytes) -> str | None:
        if value.kind in ("state", "status") and value.mask:
            return f"{value.text} {'' if how else '!= '}{value.mask}" if not any(data) else f"{value.text} {value.mask}"
        if value.text == "meta l4proto" and not how:
            self._protocol = shown(data, "proto")
        if " & " in value.text and not how:
            how = "== "
        return f"{value.text} {how}{shown(data, value.kind)}{value.mask}"

    def _key(self, first: int) -> str:
        return " . ".join(value.text for word, value in sorted(self._held.items()) if word >= word_of(first))

    def _lookup(self, e: Expression) -> str | None:
        key, name = self._key(e.number(2)), e.text(1)
        if 3 not in e.attributes:
            self._held.clear()
            return f"{key} {'!= ' if e.number(5) & 1 else ''}@{name}"
        if e.number(3) == 0:
            return f"{key} vmap @{name}"
        self._held = {word_of(e.number(3)): Value(f"{key} map @{name}", "int")}
        return None

    def _immediate(self, e: Expression) -> str | None:
        found = e.data[2]
        if found.verdict is not None:
            return verdict_text(found)
        return self._hold(e.number(1), Value(shown(found.value, "int"), "int", "", found.value))

    def _nat(self, e: Expression) -> str:
        places = ((3, "address"), (5, "port"))
        parts = [self._at(e.number(at)).as_kind(kind) for at, kind in places if at in e.attributes]
        return f"{'dnat' if e.number(1) else 'snat'} to {':'.join(part for part in parts if part != '?')}"


def verdict_text(data: Data) -> str:
    """A verdict as nft prints it."""
    if data.verdict in (-3, -4):
        return f"{'jump' if data.verdict == -3 else 'goto'} {data.chain}"
    return CODES.get(data.verdict or 0, f"verdict {data.verdict}")


def shown(data: bytes, kind: str) -> str:
    """A value of a kind as nft prints it."""
    match kind:
        case "address" if len(data) in (4, 16):
            return str(ip_address(data))
        case "proto" if len(data) == 1:
            return PROTOCOL_NAMES.get(data[0], {1: "icmp", 58: "ipv6-icmp"}.get(data[0], str(data[0])))
        case "port":
            return str(int.from_bytes(data[:2], "big"))
        case "name":
            text = data.rstrip(b"\0").decode(errors="replace")
            return f'"{text}"' if b"\0" in data else f'"{text}*"'
        case "mark":
            return f"{int.from_bytes(data, sys.byteorder):#010x}"
        case "state" | "status":
            names, bits = STATES if kind == "state" else STATUSES, int.from_bytes(data, sys.byteorder)
            return ",".join(name for bit, name in names.items() if bits & bit) or str(bits)
        case "type":
            number = int.from_bytes(data, sys.byteorder)
            return ADDRESS_TYPES.get(number, str(number))
        case "nfproto" if data in (b"\x02", b"\x0a"):
            return "ipv4" if data[0] == NFPROTO[Family.IPV4] else "ipv6"
        case "host":
            return str(int.from_bytes(data, sys.byteorder))
        case str() if kind.startswith("prefix"):
            size = int(kind.split()[1])
            return f"{ip_address(data.ljust(size, bytes(1)))}/{len(data) * 8}"
    return str(int.from_bytes(data, "big")) if len(data) <= 8 else data.hex()
