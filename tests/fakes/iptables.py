"""A kernel with iptables in memory: strict where the real one is, so that wrong restores fail in tests too.

Restore texts have the semantics of iptables-restore --noflush: a table takes effect at its COMMIT or not at all, those
before it stay; declaring a chain empties it; a jump must find its chain; a rule to delete must exist; a chain that is
led to or not empty cannot be deleted. Saved text is in the tools' own form: options in order, defaults spelt out.
Leaves out: what packets meet, counters, and extensions that kube-proxy does not use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kproxy.errors import CommandError, RestoreError
from kproxy.kernel.iptables import Backend
from kproxy.model.plans import Family
from tests.fakes.iptables_rules import BadRule, ParsedRule, parse_rule

BUILTIN = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
MAX_NAME = 28
VERDICTS = {"ACCEPT", "DROP", "RETURN", "QUEUE"}
TARGETS = {"REJECT", "DNAT", "SNAT", "MASQUERADE", "MARK", "REDIRECT", "LOG", "NOTRACK", "CT", "TCPMSS", "CONNMARK"}
NAT_ONLY = {"DNAT", "SNAT", "MASQUERADE", "REDIRECT"}


@dataclass(slots=True)
class _Table:
    policies: dict[str, str]
    chains: dict[str, list[ParsedRule]] = field(default_factory=dict)

    def copy(self) -> _Table:
        return _Table(dict(self.policies), {chain: list(rules) for chain, rules in self.chains.items()})

    def references(self, chain: str) -> bool:
        return any(rule.target == chain for rules in self.chains.values() for rule in rules)


class _Refused(Exception):
    """A line that is not taken; line 0 stands for the one being read."""

    def __init__(self, why: str, line: int = 0) -> None:
        super().__init__(why)
        self.line = line


class FakeTables:
    """Tables in memory.

    Faults to inject: `refuse`, a predicate over (table, chain, rule as saved) of rules that the kernel will not take,
    named by line on nft and only at COMMIT on legacy; `fail_at`, the numbers of the restores (from 1) that fail as a
    whole, as when the lock cannot be had; `hidden`, the chains (table, chain) with something of another program that
    iptables cannot read, so that no rule of them can be deleted, nor their table be saved.
    """

    def __init__(self, family: Family = Family.IPV4, backend: Backend = Backend.NFT) -> None:
        self.refuse: Callable[[str, str, str], bool] = lambda table, chain, rule: False
        self.fail_at: set[int] = set()
        self.hidden: set[tuple[str, str]] = set()
        self.restores: list[str] = []
        self.saves = 0
        self._family = family
        self._backend = backend
        self._tables: dict[str, _Table] = {}

    @property
    def family(self) -> Family:
        return self._family

    @property
    def backend(self) -> Backend:
        return self._backend

    def save(self) -> str:
        self.saves += 1
        return "".join(self._lines())

    def chains(self, table: str) -> list[str]:
        return list(self._tables[table].chains)

    def list_chain(self, table: str, chain: str) -> str:
        held = self._tables[table]
        if chain not in held.chains or (table, chain) in self.hidden:
            raise CommandError([self._command], 1, "incompatible, use 'nft' tool.")
        rules = "".join(f"-A {chain} {rule.text}\n" for rule in held.chains[chain])
        return f":{chain} {held.policies.get(chain, '-')} [0:0]\n{rules}"

    def holds(self, table: str, chain: str, rule: str) -> bool:
        return parse_rule(rule, self._family) in self._tables[table].chains[chain]

    def flush(self, table: str, keep_chains: bool = False) -> None:
        """What other programs do: drop a table's rules, and its chains unless kept."""
        held = self._tables.setdefault(table, _new_table(table))
        held.chains = {c: [] for c in held.chains if keep_chains or c in held.policies}

    def restore(self, text: bytes | str) -> None:
        text = text.decode(errors="surrogateescape") if isinstance(text, bytes) else text
        self.restores.append(text)
        if len(self.restores) in self.fail_at:
            raise CommandError([self._command], 4, "Another app is currently holding the xtables lock.")
        work: _Table | None = None
        name = ""
        started: dict[int, tuple[str, ParsedRule]] = {}
        for number, line in enumerate(text.splitlines(), 1):
            try:
                if line.startswith("#") or not line:
                    continue
                if line.startswith("*"):
                    name, started = line[1:], {}
                    work = self._begin(name, work)
                elif work is None:
                    raise _Refused("no table")
                elif line == "COMMIT":
                    self._judge(name, work, started)
                    self._tables[name], work = work, None
                else:
                    self._line(name, work, line, number, started)
            except (_Refused, BadRule) as error:
                at = getattr(error, "line", 0) or number
                raise RestoreError([self._command, "--noflush"], 1, f"line {at} failed: {error}", at) from None
        if work is not None:
            number = text.count("\n") + 1
            raise RestoreError([self._command, "--noflush"], 1, f"COMMIT expected at line {number}", number)

    # ---------------------------------------------------------------- reading a restore

    @property
    def _command(self) -> str:
        stem = "iptables" if self._family is Family.IPV4 else "ip6tables"
        return f"{stem}-{self._backend}-restore"

    def _begin(self, name: str, work: _Table | None) -> _Table:
        if work is not None:
            raise _Refused("COMMIT expected")
        if name not in BUILTIN:
            raise _Refused(f"table name '{name}' invalid")
        return self._tables[name].copy() if name in self._tables else _new_table(name)

    def _line(
        self, name: str, work: _Table, line: str, number: int, started: dict[int, tuple[str, ParsedRule]]
    ) -> None:
        if line.startswith(":"):
            declared, policy = line[1:].split()[:2]
            _declare(work, declared, policy)
            if declared not in work.policies:
                self.hidden.discard((name, declared))
            return
        verb, _, rest = line.partition(" ")
        chain, _, rest = rest.partition(" ")
        if verb == "-N":
            if chain in work.chains:
                raise _Refused("Chain already exists.")
            _declare(work, chain, "-")
            return
        if chain not in work.chains:
            raise _Refused("No chain/target/match by that name.")
        if verb == "-D" and (name, chain) in self.hidden:
            raise _Refused("Parsing nftables rule failed")
        if verb == "-X":
            _delete_chain(work, chain)
        elif verb == "-F":
            work.chains[chain].clear()
        elif verb in ("-A", "-I", "-D"):
            self._rule(work, verb, chain, rest, number, started)
        else:
            raise _Refused(f"unknown option {verb}")

    def _rule(
        self, work: _Table, verb: str, chain: str, rest: str, number: int, started: dict[int, tuple[str, ParsedRule]]
    ) -> None:
        rules = work.chains[chain]
        position = 1
        first, _, after = rest.partition(" ")
        if verb == "-I" and first.isdigit():
            position, rest = int(first), after
        rule = parse_rule(rest, self._family)
        if verb == "-D":
            if rule not in rules:
                raise _Refused("Bad rule (does a matching rule exist in that chain?).")
            rules.remove(rule)
            return
        if self._backend is Backend.LEGACY:
            _check_target(work, rule)
        if position > len(rules) + 1 or position < 1:
            raise _Refused("Index of insertion too big.")
        rules.insert(len(rules) if verb == "-A" else position - 1, rule)
        started[number] = (chain, rule)

    def _judge(self, name: str, work: _Table, started: dict[int, tuple[str, ParsedRule]]) -> None:
        """What the kernel finds at COMMIT. nft says at which line, legacy does not."""
        for number, (chain, rule) in started.items():
            at = number if self._backend is Backend.NFT else 0
            _check_target(work, rule, at)
            if rule.target in NAT_ONLY and name != "nat":
                raise _Refused("Invalid argument", at)
            if self.refuse(name, chain, rule.text):
                raise _Refused("RULE_APPEND failed (No such file or directory)", at)

    # ---------------------------------------------------------------- saving

    def _lines(self) -> Iterator[str]:
        for name, builtin in BUILTIN.items():
            if (table := self._tables.get(name)) is None:
                continue
            if any(of == name for of, _ in self.hidden):
                yield f"# Table `{name}' is incompatible, use 'nft' tool.\n"
                continue
            own = sorted(chain for chain in table.chains if chain not in builtin)
            yield f"# Generated by the fake\n*{name}\n"
            for chain in (*builtin, *own):
                yield f":{chain} {table.policies.get(chain, '-')} [0:0]\n"
            for chain in (*builtin, *own):
                for rule in table.chains[chain]:
                    yield f"-A {chain} {rule.text}".rstrip() + "\n"
            yield "COMMIT\n# Completed\n"


def _new_table(name: str) -> _Table:
    return _Table(dict.fromkeys(BUILTIN[name], "ACCEPT"), {chain: [] for chain in BUILTIN[name]})


def _declare(work: _Table, chain: str, policy: str) -> None:
    if len(chain) > MAX_NAME:
        raise _Refused(f"chain name `{chain}' too long")
    if chain in work.policies:
        # Built-in chains keep their rules under --noflush.
        work.policies[chain] = work.policies[chain] if policy == "-" else policy
        return
    work.chains[chain] = []


def _delete_chain(work: _Table, chain: str) -> None:
    if chain in work.policies:
        raise _Refused("a built-in chain")
    if work.chains[chain]:
        raise _Refused("Directory not empty")
    if work.references(chain):
        raise _Refused(f"CHAIN_DEL failed (Device or resource busy): chain {chain}")
    del work.chains[chain]


def _check_target(work: _Table, rule: ParsedRule, line: int = 0) -> None:
    target = rule.target
    if not target or target in VERDICTS or target in TARGETS:
        return
    if target not in work.chains or target in work.policies:
        raise _Refused(f"Chain '{target}' does not exist", line)
