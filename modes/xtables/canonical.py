"""The canonical form of a rule, equal for rules of the same meaning, whichever version, backend or program wrote them.

It has no option order, quoting, implied matches, and defaults that only some versions print, and one way to write a
mark. This is the slow path: text that is equal needs none of it. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from kproxy.kernel.constants import PROTOCOL_NUMBERS

Option = tuple[bool, str, tuple[str, ...]]
"""Whether it is negated, its name, its values."""
Rule = tuple[Option, ...]

IMPLIED = {"tcp", "udp", "sctp", "comment", "mark", "conntrack", "addrtype", "recent", "statistic", "set", "nfacct"}
"""The matches that are recognized by their options, or by -p."""
ALIASES = {
    "--source": "-s",
    "--src": "-s",
    "--destination": "-d",
    "--dst": "-d",
    "--protocol": "-p",
    "--in-interface": "-i",
    "--out-interface": "-o",
    "--jump": "-j",
    "--goto": "-g",
    "--match": "-m",
    "--destination-port": "--dport",
    "--source-port": "--sport",
}
DEFAULTS = {
    ("--reject-with", "icmp-port-unreachable"),
    ("--reject-with", "icmp6-port-unreachable"),
    ("--mask", "255.255.255.255"),
    ("--mask", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("--rsource", ""),
}
FULL_MASK = 0xFFFFFFFF

_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_ESCAPE = re.compile(r"\\(.)")


def tokens(rule: str) -> Iterator[tuple[str, bool]]:
    """The words of a rule, and whether each was in quotes: a quoted word is never an option."""
    for found in _TOKEN.finditer(rule):
        if found[1] is not None:
            yield _ESCAPE.sub(r"\1", found[1]), True
        else:
            yield found[2], False


def canonical(rule: str) -> Rule:
    """RULE (without "-A CHAIN ") as a sorted tuple of options; equal for rules that mean the same."""
    return tuple(sorted(o for negated, name, values in _options(rule) if (o := _fold(negated, name, values))))


def _options(rule: str) -> Iterator[Option]:
    negated, next_negated, name = False, False, ""
    values: list[str] = []
    for word, quoted in tokens(rule):
        if not quoted and word == "!":
            next_negated = True
        elif not quoted and word.startswith("-") and len(word) > 1 and not word[1].isdigit():
            if name:
                yield negated, name, tuple(values)
            negated, next_negated, name, values = next_negated, False, ALIASES.get(word, word), []
        else:
            values.append(word)
    if name:
        yield negated, name, tuple(values)


def _fold(negated: bool, name: str, values: tuple[str, ...]) -> Option | None:
    value = " ".join(values)
    if (name == "-m" and value in IMPLIED) or (name, value) in DEFAULTS:
        return None
    if name in _FOLDS:
        name, value = _FOLDS[name](name, value)
    elif name in ("-s", "-d"):
        value = _network(value)
        if value in ("0.0.0.0/0", "::/0") and not negated:
            return None
    return negated, name, (value,)


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        return value


def _probability(name: str, value: str) -> tuple[str, str]:
    try:
        return name, str(round(float(value) * 0x80000000))
    except (ValueError, OverflowError):
        return name, value


def _mark_set(name: str, value: str) -> tuple[str, str]:
    """All become --set-xmark `value`/MASK: clear the bits of MASK, then xor `value` (iptables-extensions(8), MARK)."""
    try:
        bits, mask = _value_mask(value)
    except ValueError:
        return name, value
    if name == "--or-mark":
        mask = bits
    elif name == "--xor-mark":
        mask = 0
    elif name == "--and-mark":
        bits, mask = 0, ~bits & FULL_MASK
    elif name == "--set-mark":
        mask |= bits
    return "--set-xmark", f"{bits:#x}/{mask:#x}"


def _mark(name: str, value: str) -> tuple[str, str]:
    try:
        bits, mask = _value_mask(value)
    except ValueError:
        return name, value
    return name, f"{bits:#x}/{mask:#x}"


def _value_mask(value: str) -> tuple[int, int]:
    bits, _, mask = value.partition("/")
    return int(bits, 0), int(mask, 0) if mask else FULL_MASK


def _states(name: str, value: str) -> tuple[str, str]:
    return name, ",".join(sorted(value.split(",")))


def _protocol(name: str, value: str) -> tuple[str, str]:
    return name, str(PROTOCOL_NUMBERS.get(value.lower(), value))


_FOLDS = {
    "--vproto": _protocol,
    "--probability": _probability,
    "--or-mark": _mark_set,
    "--xor-mark": _mark_set,
    "--and-mark": _mark_set,
    "--set-mark": _mark_set,
    "--set-xmark": _mark_set,
    "--mark": _mark,
    "--ctstate": _states,
}
