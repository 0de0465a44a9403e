"""Reads iptables-save text, and compares it with rendered rules. Pure.

Decides: which saved rules are equal to rendered ones, and which frontend a saved rule is about. Text is compared first,
in the form in which the tools print it; only what differs is parsed. Leaves out: what to do about differences
(reconcile).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType

from kproxy.kernel.constants import PROTOCOL_NUMBERS
from kproxy.model.plans import Family, Frontend, Protocol
from kproxy.modes.xtables.canonical import canonical

REJECT_WITH = {Family.IPV4: "icmp-port-unreachable", Family.IPV6: "icmp6-port-unreachable"}
RECENT_MASK = {Family.IPV4: "255.255.255.255", Family.IPV6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}

_TABLE = re.compile(r"^\*(\S+)$", re.MULTILINE)
_CHAIN = re.compile(r"^:(\S+) (\S+)", re.MULTILINE)
# All rules of one chain: the tools print them together.
_BLOCK = re.compile(r"^-A (\S+)(?: .*)?\n(?:-A \1(?: .*)?\n)*", re.MULTILINE)
_PROBABILITY = re.compile(r"--probability (\S+)")
_VPROTO = re.compile(rf"--vproto ({'|'.join(PROTOCOL_NUMBERS)})(?= )")
_RECENT = re.compile(r"(-m recent .*?--name \S+)")


class Saved:
    """The tables of one family as saved. Keeps the text and the position of each chain's rules in it, so that 170,000
    rules are read in a fraction of a second, and only chains that are asked for become strings of their own."""

    def __init__(self, text: str, unreadable: Mapping[str, str] = MappingProxyType({})) -> None:
        """unreadable: the tables of which TEXT has only what `kproxy.modes.xtables.reading` found out, with reasons."""
        self.unreadable = unreadable
        self._text = text if text.endswith("\n") else text + "\n"
        self._spans: dict[str, dict[str, tuple[int, int]]] = {}
        self._scattered: dict[tuple[str, str], str] = {}
        self._builtin: set[tuple[str, str]] = set()
        for table, start, end in self._sections():
            self._read(table, start, end)

    def chains(self, table: str) -> Iterable[str]:
        """The chains of a table, in the order of the text."""
        return self._spans.get(table, {})

    @property
    def tables(self) -> Iterable[str]:
        return self._spans

    def has(self, table: str, chain: str) -> bool:
        return chain in self._spans.get(table, ())

    def builtin(self, table: str, chain: str) -> bool:
        """Whether it is one of the table's built-in chains, which have a policy and cannot be deleted."""
        return (table, chain) in self._builtin

    def block(self, table: str, chain: str) -> str:
        """The chain's rules as text, each line "-A CHAIN RULE"; "" when it is empty or missing."""
        if (table, chain) in self._scattered:
            return self._scattered[table, chain]
        start, end = self._spans.get(table, {}).get(chain, (0, 0))
        return self._text[start:end]

    def rules(self, table: str, chain: str) -> list[str]:
        """The chain's rules without "-A CHAIN "."""
        skip = len(chain) + 4
        return [line[skip:] for line in self.block(table, chain).splitlines()]

    def _sections(self) -> Iterator[tuple[str, int, int]]:
        for found in _TABLE.finditer(self._text):
            end = self._text.find("\nCOMMIT\n", found.end())
            yield found[1], found.end() + 1, len(self._text) if end < 0 else end + 1

    def _read(self, table: str, start: int, end: int) -> None:
        spans = self._spans.setdefault(table, {})
        first = self._text.find("\n-A ", start - 1, end)
        for found in _CHAIN.finditer(self._text, start, end if first < 0 else first + 1):
            spans.setdefault(found[1], (0, 0))
            if found[2] != "-":
                self._builtin.add((table, found[1]))
        for found in _BLOCK.finditer(self._text, start, end):
            chain = found[1]
            if spans.get(chain, (0, 0)) != (0, 0):
                self._scattered[table, chain] = self.block(table, chain) + found[0]
            else:
                spans[chain] = found.span()


def as_saved(rule: str, family: Family) -> str:
    """A rendered rule as iptables-save prints it: with the defaults written out, and the probability as the multiple of
    2^-31 that the kernel keeps (include/uapi/linux/netfilter/xt_statistic.h)."""
    if "--probability " in rule:
        return _PROBABILITY.sub(_kept, rule)
    if "-m recent " in rule:
        return _RECENT.sub(rf"\1 --mask {RECENT_MASK[family]} --rsource", rule)
    if rule.endswith(" -j REJECT"):
        return f"{rule} --reject-with {REJECT_WITH[family]}"
    if "--nfacct-name " in rule:
        return rule.replace("--nfacct-name ", "--nfacct-name  ", 1)  # two blanks, as libxt_nfacct prints it
    if " --vproto " in rule:
        return _VPROTO.sub(lambda found: f"--vproto {PROTOCOL_NUMBERS[found[1]]}", rule)
    return rule


def _kept(found: re.Match[str]) -> str:
    return f"--probability {_quantised(found[1])}"


@lru_cache(4096)
def _quantised(text: str) -> str:
    return f"{round(float(text) * 0x80000000) / 0x80000000:.11f}"


def same_rules(chain: str, block: str, rules: Iterable[str], family: Family) -> bool:
    """Whether the saved BLOCK of CHAIN equals RULES, in their order."""
    wanted = [as_saved(rule, family) for rule in rules]
    if block == "".join([f"-A {chain} {rule}\n" for rule in wanted]):
        return True
    lines = block.splitlines()
    skip = len(chain) + 4
    return len(lines) == len(wanted) and all(
        line[skip:] == rule or canonical(line[skip:]) == canonical(rule)
        for line, rule in zip(lines, wanted, strict=True)
    )


_DESTINATION = re.compile(r"(?:^| )-d (\S+?)(?:/\d+)? ")
_PORT = re.compile(r" --dport (\d{1,5})(?: |$)")
_PROTOCOL = re.compile(r"(?:^| )-p (tcp|udp|sctp) ")


def frontend(rule: str) -> Frontend | None:
    """The frontend that a rule in iptables-save form matches; None for rules without protocol and port.

    A node port's rule has no destination, or the loopback network when it counts in an nfacct counter.
    """
    protocol, port, to = _PROTOCOL.search(rule), _PORT.search(rule), _DESTINATION.search(rule)
    if not protocol or not port:
        return None
    ip = to[1] if to and to[1] != "127.0.0.0" else ""
    return Frontend(ip, int(port[1]), Protocol(protocol[1].upper()))
