"""Rules of the fake kernel: parsed as iptables parses them, printed as iptables-save prints them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from kproxy.model.plans import Family

PROTOCOLS = {"tcp", "udp", "sctp"}
PROTOCOL_NUMBERS = {"tcp": "6", "udp": "17", "sctp": "132"}
# The options of each match in the order in which they are printed, with the number of their values.
OPTIONS: dict[str, dict[str, int]] = {
    **{protocol: {"--sport": 1, "--dport": 1} for protocol in PROTOCOLS},
    "comment": {"--comment": 1},
    "mark": {"--mark": 1},
    "conntrack": {"--ctstate": 1},
    "addrtype": {"--src-type": 1, "--dst-type": 1},
    "recent": {
        "--set": 0,
        "--rcheck": 0,
        "--seconds": 1,
        "--reap": 0,
        "--name": 1,
        "--mask": 1,
        "--rsource": 0,
    },
    "statistic": {"--mode": 1, "--probability": 1},
    "nfacct": {"--nfacct-name": 1},
    "set": {"--match-set": 2},
    "physdev": {"--physdev-is-in": 0, "--physdev-is-out": 0, "--physdev-is-bridged": 0},
    "ipvs": {"--vproto": 1, "--vaddr": 1, "--vport": 1},
}
MATCHES = OPTIONS.keys()
TARGET_OPTIONS = {
    "--to-destination": 1,
    "--to-source": 1,
    "--to-ports": 1,
    "--reject-with": 1,
    "--random-fully": 0,
    "--random": 0,
    "--set-xmark": 1,
    "--set-mark": 1,
    "--or-mark": 1,
    "--xor-mark": 1,
    "--and-mark": 1,
}
BASIC = {"-s": 1, "-d": 1, "-i": 1, "-o": 1, "-p": 1, "-j": 1, "-g": 1, "-m": 1}
LONG = {"--source": "-s", "--destination": "-d", "--src": "-s", "--dst": "-d", "--protocol": "-p", "--jump": "-j"}
TWO_31 = 0x80000000

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


class BadRule(ValueError):
    """A rule that iptables would not parse."""


@dataclass(eq=False, slots=True)
class ParsedRule:
    """One rule. Equal when the kernel would keep the same; `text` as iptables-save prints it without the chain."""

    target: str = ""
    text: str = ""
    basics: dict[str, str] = field(default_factory=dict)
    matches: dict[str, dict[str, str]] = field(default_factory=dict)
    jump: str = ""
    target_options: dict[str, str] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParsedRule) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def parse_rule(text: str, family: Family) -> ParsedRule:
    """Raises BadRule."""
    rule = ParsedRule()
    words = _Words(text)
    for negated, option in words.options():
        if option in BASIC:
            _basic(rule, words, negated, option)
        elif not _match_option(rule, words, negated, option):
            if option not in TARGET_OPTIONS or not rule.target:
                raise BadRule(f'unknown option "{option}"')
            rule.target_options[option] = words.value() if TARGET_OPTIONS[option] else ""
    _complete(rule, family)
    rule.text = " ".join(_printed(rule))
    return rule


class _Words:
    """The words of a rule, taken one by one. A quoted word is no option; unquoted words may follow --comment."""

    def __init__(self, text: str) -> None:
        self._words = [
            (re.sub(r"\\(.)", r"\1", m[1]), True) if m[1] is not None else (m[2], False) for m in _WORD.finditer(text)
        ]
        self._at = 0

    def options(self) -> Iterator[tuple[bool, str]]:
        while self._at < len(self._words):
            negated = self._words[self._at] == ("!", False)
            self._at += negated
            option = self.value()
            if not option.startswith("-"):
                raise BadRule(f"Bad argument `{option}'")
            yield negated, LONG.get(option, option)

    def value(self) -> str:
        if self._at >= len(self._words):
            raise BadRule("an option needs a value")
        self._at += 1
        return self._words[self._at - 1][0]

    def phrase(self) -> str:
        """A value of several words where quotes were lost."""
        found = [self.value()]
        while not self._words[self._at - 1][1] and self._at < len(self._words):
            word, quoted = self._words[self._at]
            if quoted or (word.startswith("-") and len(word) > 1 and word != "->") or word == "!":
                break
            found.append(self.value())
        return " ".join(found)


def _basic(rule: ParsedRule, words: _Words, negated: bool, option: str) -> None:
    value = words.value()
    if option == "-m":
        if value not in MATCHES:
            raise BadRule(f"Couldn't load match `{value}'")
        rule.matches.setdefault(value, {})
    elif option in ("-j", "-g"):
        rule.target, rule.jump = value, option
    elif option in ("-s", "-d"):
        try:
            value = str(ipaddress.ip_network(value, strict=False))
        except ValueError:
            raise BadRule(f"host/network `{value}' not found") from None
        rule.basics[option] = f"{'! ' if negated else ''}{option} {value}"
    else:
        rule.basics[option] = f"{'! ' if negated else ''}{option} {value}"


def _match_option(rule: ParsedRule, words: _Words, negated: bool, option: str) -> bool:
    """Give `option` to the match that was loaded last and has it, or that -p implies."""
    protocol = rule.basics.get("-p", "").removeprefix("-p ")
    if protocol in PROTOCOLS and protocol not in rule.matches and option in OPTIONS[protocol]:
        rule.matches[protocol] = {}
    for match in reversed(rule.matches):
        if option in OPTIONS[match]:
            count = OPTIONS[match][option]
            value = words.phrase() if option == "--comment" else " ".join(words.value() for _ in range(count))
            rule.matches[match][option] = f"{'! ' if negated else ''}{option}{_valued(option, value)}"
            return True
    return False


def _valued(option: str, value: str) -> str:
    if option == "--comment":
        value = value[:255]
        return f" {value}" if _PLAIN.fullmatch(value) else ' "' + re.sub(r"([\"'\\])", r"\\\1", value) + '"'
    if option in ("--dport", "--sport") and not (value.isdigit() and int(value) < 65536):
        raise BadRule(f"invalid port/service `{value}' specified")
    if option == "--probability":
        return f" {round(float(value) * TWO_31) / TWO_31:.11f}"
    if option == "--mark":
        bits, _, mask = value.partition("/")
        return f" {int(bits, 0):#x}" + (f"/{int(mask, 0):#x}" if mask else "")
    if option == "--ctstate":
        order = ["INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT"]
        return " " + ",".join(sorted(value.split(","), key=order.index))
    if option == "--vproto":
        return f" {PROTOCOL_NUMBERS.get(value, value)}"
    if option == "--nfacct-name":
        return f"  {value}"
    return f" {value}" if value else ""


def _complete(rule: ParsedRule, family: Family) -> None:
    """What the tools add by default."""
    ipv4 = family is Family.IPV4
    if "recent" in rule.matches:
        mask = "255.255.255.255" if ipv4 else ":".join(["ffff"] * 8)
        rule.matches["recent"].setdefault("--mask", f"--mask {mask}")
        rule.matches["recent"].setdefault("--rsource", "--rsource")
    if rule.target == "REJECT":
        rule.target_options.setdefault("--reject-with", f"icmp{'' if ipv4 else '6'}-port-unreachable")
    if rule.target == "MARK":
        rule.target_options = {"--set-xmark": _xmark(*next(iter(rule.target_options.items())))}
    for match in PROTOCOLS & rule.matches.keys():
        if rule.basics.get("-p") != f"-p {match}":
            raise BadRule(f"match {match} needs -p {match}")


def _xmark(option: str, value: str) -> str:
    bits, _, mask = value.partition("/")
    number, clear = int(bits, 0), int(mask, 0) if mask else 0xFFFFFFFF
    if option == "--or-mark":
        clear = number
    elif option == "--xor-mark":
        clear = 0
    elif option == "--and-mark":
        number, clear = 0, ~number & 0xFFFFFFFF
    elif option == "--set-mark":
        clear |= number
    return f"{number:#x}/{clear:#x}"


def _printed(rule: ParsedRule) -> Iterator[str]:
    yield from (rule.basics[option] for option in ("-s", "-d", "-i", "-o", "-p") if option in rule.basics)
    for match, options in rule.matches.items():
        yield f"-m {match}"
        yield from (options[option] for option in OPTIONS[match] if option in options)
    if rule.target:
        yield f"{rule.jump} {rule.target}"
        yield from (f"{option} {value}".rstrip() for option, value in rule.target_options.items())
