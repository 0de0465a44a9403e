"""Parses iptables-save text into typed rules: that of the tools, of `kproxy render` and of kube-proxy.

A rule that is not understood is not an error here. It becomes one when a packet reaches it and nothing else in it rules
the packet out, so that other programs' rules for other traffic do no harm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from ipaddress import ip_network
from operator import itemgetter

from kproxy.errors import InvalidInput
from kproxy.model.plans import Family
from kproxy.modes.xtables.canonical import ALIASES, tokens
from kproxy.modes.xtables.saved import Saved
from kproxy.trace import iptables_rules as r
from kproxy.trace.comparisons import Among, Dimension, Observer
from kproxy.trace.hooks import Packet
from kproxy.trace.outcome import number, probability_of

PROTOCOLS = {"6": "tcp", "17": "udp", "132": "sctp", "tcp": "tcp", "udp": "udp", "sctp": "sctp"}
FULL = 0xFFFFFFFF
MANY = 8
"""Rules in a chain from which on it is worth while to look them up by destination and port."""
WIDTH = {Family.IPV4: 32, Family.IPV6: 128}
WHOLE_ADDRESS = {"255.255.255.255", ":".join(["ffff"] * 8)}
PLAIN = {"ACCEPT", "DROP", "REJECT", "RETURN", "MASQUERADE", "NOTRACK"}
PASSED = {"LOG", "NFLOG", "TRACE", "AUDIT", "TCPMSS", "CHECKSUM", "CLASSIFY", "DSCP", "TOS", "SECMARK", "CONNSECMARK"}
"""Targets that change nothing that rules or routes decide by; their options do not matter."""
# Options of plain targets that do not change the verdict.
PLAIN_OPTIONS = {"--reject-with", "--random-fully", "--random", "--to-ports", "--persistent"}

UNREADABLE = '-m comment --comment "iptables cannot read this chain" -j UNREADABLE'

_POLICY = re.compile(r":(\S+) (\S+)")
_COUNTED = re.compile(r"^\s*(?:\[\d+:\d+\] )?")  # iptables-save -c puts counters before rules
_EXACT = re.compile(r"(?:-s \S+ )?-d (\S+)/(?:32|128) ")  # as iptables orders options
_OPTION = re.compile(r"--?[A-Za-z]")


class Chain:
    """A chain, of which only the rules are parsed that a packet may match: one chain may have 10,000.

    policy: the verdict at the end of a built-in chain, "-" for none. lines: the rules without "-A CHAIN". chains: those
    of its table, to which they may jump.
    """

    def __init__(self, name: str, policy: str, lines: Iterable[str], family: Family, chains: Collection[str]) -> None:
        self.name, self.policy = name, policy
        self._family, self._chains, self._lines = family, chains, tuple(lines)
        self._parsed: dict[str, r.Rule] = {}
        self._destinations: Among | None = None
        self._by_destination: dict[int | None, list[tuple[int, str]]] = {}
        self._by_port: dict[int | None, tuple[dict[int | None, list[r.Rule]], Among]] = {}

    @property
    def rules(self) -> tuple[r.Rule, ...]:
        return tuple(map(self._rule, self._lines))

    def relevant(self, packet: Packet, observe: Observer) -> Sequence[r.Rule]:
        """The rules that a packet with this destination and port may match, in order."""
        if len(self._lines) < MANY:
            return self.rules
        if self._destinations is None:
            self._destinations = self._index()
        by_port, ports = self._of_destination(packet.destination_number)
        if not packet.translated and self._destinations:
            observe(self._destinations)
        if ports:
            observe(ports)
        return by_port.get(packet.port, by_port[None])

    def _index(self) -> Among:
        """Sorts the rules by destination, unparsed; returns the destinations."""
        for place, line in enumerate(self._lines):
            exact = _EXACT.match(line)
            self._by_destination.setdefault(number(exact[1]) if exact else None, []).append((place, line))
        return Among(Dimension.DESTINATION, (each for each in self._by_destination if each is not None))

    def _of_destination(self, destination: int) -> tuple[dict[int | None, list[r.Rule]], Among]:
        """The rules that one destination may match by port, in order, None for all other ports; and these ports."""
        key = destination if destination in self._by_destination else None
        if key not in self._by_port:
            lines = [*self._by_destination.get(None, ()), *(self._by_destination[key] if key is not None else ())]
            rules = [self._rule(line) for _, line in sorted(lines, key=itemgetter(0))]
            ports = {rule.port for rule in rules if rule.port is not None}
            lists: dict[int | None, list[r.Rule]] = {port: [] for port in (*ports, None)}
            for rule in rules:
                for port in (rule.port,) if rule.port is not None else lists:
                    lists[port].append(rule)
            self._by_port[key] = lists, Among(Dimension.PORT, ports)
        return self._by_port[key]

    def _rule(self, line: str) -> r.Rule:
        if line not in self._parsed:
            self._parsed[line] = parse_rule(line, self._family, self._chains)
        return self._parsed[line]


class ListedTables:
    """The tables of one family, whose chains are read when a packet reaches them.

    read: what `iptables -S CHAIN` prints for a table and chain, None if it cannot read it. chains: a table's.
    """

    def __init__(
        self,
        family: Family,
        read: Callable[[str, str], list[str] | None],
        chains: Callable[[str], Collection[str]],
    ) -> None:
        self._family, self._read, self._chains = family, read, chains
        self._known: dict[tuple[str, str], Chain | None] = {}

    def chain(self, table: str, name: str) -> Chain | None:
        """The chain, None if it does not exist, or iptables cannot read it."""
        if (table, name) not in self._known:
            lines = self._read(table, name)
            self._known[table, name] = None if lines is None else self._listed(table, name, lines)
        return self._known[table, name]

    def _listed(self, table: str, name: str, lines: list[str]) -> Chain:
        head, rules = f"-A {name} ", lines[1:]
        policy = lines[0].split()[2] if lines and lines[0].startswith("-P ") else "-"
        return Chain(name, policy, [line.removeprefix(head) for line in rules], self._family, self._chains(table))

    def __getitem__(self, place: tuple[str, str]) -> Chain:
        """A chain that a rule jumps to. What it does is not known if iptables cannot read it."""
        return self.chain(*place) or Chain(place[1], "-", [UNREADABLE], self._family, ())


class Tables:
    """All tables of one family. Chains are parsed when they are looked up."""

    def __init__(self, text: str, family: Family) -> None:
        lines = [_COUNTED.sub("", line).rstrip() for line in text.splitlines()]
        self._family = family
        self._saved = Saved("".join(f"{line}\n" for line in lines))
        self._policies = _policies(lines)
        self._names = {table: frozenset(self._saved.chains(table)) for table in self._saved.tables}
        self._read: dict[tuple[str, str], Chain] = {}

    def __iter__(self) -> Iterator[Chain]:
        """All chains of all tables."""
        for table, names in self._names.items():
            yield from (self[table, name] for name in names)

    def chain(self, table: str, name: str) -> Chain | None:
        """The chain, None if it does not exist."""
        return self[table, name] if name in self._names.get(table, ()) else None

    def __getitem__(self, place: tuple[str, str]) -> Chain:
        """The chain of a table, which must exist; parse_rule ensures that for jumps."""
        table, name = place
        found = self._read.get(place)
        if found is None:
            policy, lines = self._policies.get(place, "-"), self._saved.rules(table, name)
            found = self._read[place] = Chain(name, policy, lines, self._family, self._names[table])
        return found


def _policies(lines: Iterable[str]) -> dict[tuple[str, str], str]:
    found, table = {}, ""
    for line in lines:
        if line.startswith("*"):
            table = line[1:]
        elif match := _POLICY.match(line):
            found[table, match[1]] = match[2]
    return found


def parse_rule(text: str, family: Family, chains: Collection[str]) -> r.Rule:
    """One rule, without "-A CHAIN". chains: those of its table, to which it may jump."""
    return _Reader(text, family, chains).rule()


Option = tuple[bool, str, str]
"""Negated or not, name, value."""


def _options(text: str) -> Iterator[Option]:
    """The options of a rule. Values of several words are joined, as comments may have lost their quotes."""
    negated, name = False, ""
    ahead = False
    values: list[str] = []
    for word, quoted in tokens(text):
        if not quoted and word == "!":
            ahead = True
        elif not quoted and _OPTION.match(word):
            if name:
                yield negated, name, " ".join(values)
            negated, ahead, name, values = ahead, False, ALIASES.get(word, word), []
        else:
            values.append(word)
    if name:
        yield negated, name, " ".join(values)


@dataclass(slots=True)
class _Module:
    """A match extension, or the target, with its options."""

    name: str
    options: dict[str, tuple[bool, str]] = field(default_factory=dict)

    def take(self, option: str) -> tuple[bool, str] | None:
        return self.options.pop(option, None)

    def value(self, option: str, default: str = "") -> str:
        """The value of an option that must not be negated. Raises ValueError if it is."""
        negated, value = self.options.pop(option, (False, default))
        if negated:
            raise ValueError(f"! {option}")
        return value


class _Reader:
    """Parses one rule."""

    def __init__(self, text: str, family: Family, chains: Collection[str]) -> None:
        self._text, self._family, self._chains = text, family, chains
        self._matches: list[r.Match] = []
        self._chance = Fraction(1)
        self._remembers = ""
        self._target: r.Target = r.Plain("")
        self._unknown: list[str] = []
        self._exact: dict[str, int] = {}

    def rule(self) -> r.Rule:
        basics, modules, target = self._sorted()
        for option in basics:
            self._try(lambda option=option: self._basic(*option), " ".join(option[1:]))  # type: ignore[misc]
        for module in modules:
            self._try(lambda module=module: self._module(module), f"match {module.name}")  # type: ignore[misc]
        if target:
            self._try(lambda: self._aim(target), f"target {target.name}")
        return r.Rule(
            self._text,
            tuple(self._matches),
            self._target,
            self._chance,
            self._exact.get("-d"),
            self._exact.get("--dport"),
            self._remembers,
            ", ".join(self._unknown),
        )

    def _sorted(self) -> tuple[list[Option], list[_Module], _Module | None]:
        """The options grouped by owner: the packet's own fields, each match, the target."""
        basics: list[Option] = []
        modules: list[_Module] = []
        target: _Module | None = None
        for negated, name, value in _options(self._text):
            if name == "-m":
                modules.append(_Module(value))
            elif name in ("-j", "-g"):
                target = _Module(value, {"-g": (False, "")} if name == "-g" else {})
            elif name in ("-s", "-d", "-i", "-o", "-p", "-f", "-c"):
                basics.append((negated, name, value))
            elif target:
                target.options[name] = (negated, value)
            else:
                _owner(modules, basics, name).options[name] = (negated, value)
        return basics, modules, target

    def _try(self, part: Callable[[], None], what: str) -> None:
        try:
            part()
        except (ValueError, InvalidInput) as error:
            self._unknown.append(f"{what} ({error})")

    # -- the packet's own fields

    def _basic(self, negated: bool, name: str, value: str) -> None:
        match name:
            case "-s" | "-d":
                self._matches.append(self._address(name, value, negated))
            case "-p" if value not in ("all", "0"):
                self._matches.append(r.IsProtocol(PROTOCOLS.get(value.lower(), value), negated))
            case "-i" | "-o":
                self._matches.append(r.Interface(value, negated, name == "-o"))
            case "-f":
                raise ValueError("not known here")
            case _:
                pass

    def _address(self, name: str, value: str, negated: bool) -> r.Address:
        network = ip_network(value, strict=False)
        if network.max_prefixlen != WIDTH[self._family]:
            raise ValueError(f"of another family than {self._family}")
        if name == "-d" and network.prefixlen == network.max_prefixlen and not negated:
            self._exact["-d"] = int(network.network_address)
        return r.Address(name == "-s", int(network.network_address), int(network.netmask), negated)

    # -- matches

    def _module(self, module: _Module) -> None:
        read = _MATCHES.get(module.name)
        if read is None:
            raise ValueError("not known here")
        self._matches.extend(read(self, module))
        if module.options:
            raise ValueError(f"{' '.join(module.options)} not known here")

    def _ports(self, module: _Module) -> Iterator[r.Match]:
        if found := module.take("--dport"):
            low, _, high = found[1].partition(":")
            numbers = int(low or 0), int(high or 65535) if ":" in found[1] else int(low)
            if numbers[0] == numbers[1] and not found[0]:
                self._exact["--dport"] = numbers[0]
            yield r.Port(*numbers, found[0])

    def _addrtype(self, module: _Module) -> Iterator[r.Match]:
        for option in ("--src-type", "--dst-type"):
            if found := module.take(option):
                if found[1] != "LOCAL":
                    raise ValueError(f"{option} {found[1]} not known here")
                yield r.AddressType(option == "--src-type", found[0])

    def _conntrack(self, module: _Module) -> Iterator[r.Match]:
        if found := module.take("--ctstate"):
            yield r.States(frozenset(found[1].split(",")), found[0])

    def _mark(self, module: _Module) -> Iterator[r.Match]:
        if found := module.take("--mark"):
            yield r.MarkIs(*_bits(found[1]), found[0])

    def _connmark(self, module: _Module) -> Iterator[r.Match]:
        if found := module.take("--mark"):
            yield r.MarkIs(*_bits(found[1]), found[0], of_connection=True)

    def _multiport(self, module: _Module) -> Iterator[r.Match]:
        if found := module.take("--dports"):
            ends = (each.partition(":") for each in found[1].split(","))
            yield r.Ports(tuple((int(low), int(high or low)) for low, _, high in ends), found[0])

    def _statistic(self, module: _Module) -> Iterator[r.Match]:
        if module.value("--mode") != "random":
            raise ValueError("only --mode random is known here")
        negated, text = module.take("--probability") or (False, "1")
        self._chance = 1 - probability_of(text) if negated else probability_of(text)
        return iter(())

    def _recent(self, module: _Module) -> Iterator[r.Match]:
        name, seconds = module.value("--name", "DEFAULT"), int(module.value("--seconds", "0"))
        module.value("--reap")
        module.value("--rsource")
        if (mask := module.value("--mask")) and mask not in WHOLE_ADDRESS:
            raise ValueError(f"--mask {mask} not known here")
        if module.take("--set"):
            self._remembers = name
        elif found := module.take("--rcheck"):
            yield r.Recent(name, seconds, found[0])
        else:
            raise ValueError("only --set and --rcheck are known here")

    def _set(self, module: _Module) -> Iterator[r.Match]:
        if found := module.take("--match-set"):
            name, _, directions = found[1].partition(" ")
            yield r.WithinSet(name, tuple(directions.split(",")), found[0])

    def _physdev(self, module: _Module) -> Iterator[r.Match]:
        if found := module.take("--physdev-is-in"):
            yield r.Bridged(found[0])

    def _comment(self, module: _Module) -> Iterator[r.Match]:
        module.take("--comment")
        return iter(())

    def _nfacct(self, module: _Module) -> Iterator[r.Match]:
        module.take("--nfacct-name")  # counts and always matches
        return iter(())

    # -- the target

    def _aim(self, target: _Module) -> None:
        goto = target.take("-g") is not None
        if target.name in self._chains:
            self._target = r.Jump(target.name, goto)
        else:
            self._target = self._known(target)
        if target.options:
            raise ValueError(f"{' '.join(target.options)} not known here")

    def _known(self, target: _Module) -> r.Target:
        match target.name:
            case "MARK":
                return _mark_set(target)
            case "CONNMARK":
                return _connection_mark(target)
            case "CT" if target.take("--notrack"):
                return r.Plain("NOTRACK")
            case "SNAT":
                return r.Snat(self._dnat(target.value("--to-source")).ip)
            case name if name in PASSED:
                target.options.clear()
                return r.Plain("")
            case "DNAT":
                return self._dnat(target.value("--to-destination"))
            case "REDIRECT":
                return r.Redirect(int(target.value("--to-ports", "0")))
            case name if name in PLAIN:
                for option in PLAIN_OPTIONS & target.options.keys():
                    target.take(option)
                return r.Plain(name)
        raise ValueError("neither a target that is known here nor a chain of the table")

    def _dnat(self, text: str) -> r.Dnat:
        ip, port = text, ""
        if text.startswith("["):
            ip, _, port = text[1:].partition("]")
            port = port.removeprefix(":")
        elif self._family is Family.IPV4:
            ip, _, port = text.partition(":")
        if ip_network(ip).max_prefixlen != WIDTH[self._family]:
            raise ValueError(f"of another family than {self._family}")
        return r.Dnat(ip, int(port or 0))


_MATCHES: dict[str, Callable[[_Reader, _Module], Iterator[r.Match]]] = {
    "tcp": _Reader._ports,
    "udp": _Reader._ports,
    "sctp": _Reader._ports,
    "addrtype": _Reader._addrtype,
    "conntrack": _Reader._conntrack,
    "mark": _Reader._mark,
    "connmark": _Reader._connmark,
    "multiport": _Reader._multiport,
    "statistic": _Reader._statistic,
    "recent": _Reader._recent,
    "set": _Reader._set,
    "physdev": _Reader._physdev,
    "comment": _Reader._comment,
    "nfacct": _Reader._nfacct,
}


def _owner(modules: list[_Module], basics: list[Option], option: str) -> _Module:
    """The match that was loaded last; a port option loads the protocol's match."""
    if option in ("--dport", "--sport"):
        protocol = next((PROTOCOLS.get(value.lower(), value) for _, name, value in basics if name == "-p"), "")
        for module in modules:
            if module.name in PROTOCOLS:
                return module
        modules.append(_Module(protocol))
    if not modules:
        modules.append(_Module(option))
    return modules[-1]


def _bits(text: str) -> tuple[int, int]:
    value, _, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if mask else FULL


def _connection_mark(target: _Module) -> r.MarkSet | r.MarkCopy:
    """Every way to set the mark of a connection, and to copy it (iptables-extensions(8), CONNMARK)."""
    for option in ("--save-mark", "--restore-mark"):
        if target.take(option):
            both = target.value("--mask", f"{FULL}")
            packet, connection = (int(target.value(name, both), 0) for name in ("--nfmask", "--ctmask"))
            return r.MarkCopy(packet, connection, option == "--restore-mark")
    found = _mark_set(target)
    return r.MarkSet(found.value, found.mask, of_connection=True)


def _mark_set(target: _Module) -> r.MarkSet:
    """Every way to set a mark, as --set-xmark (iptables-extensions(8), MARK)."""
    for option in ("--set-xmark", "--set-mark", "--or-mark", "--xor-mark", "--and-mark"):
        if option in target.options:
            value, mask = _bits(target.value(option))
            match option:
                case "--set-mark":
                    mask |= value
                case "--or-mark":
                    mask = value
                case "--xor-mark":
                    mask = 0
                case "--and-mark":
                    value, mask = 0, ~value & FULL
            return r.MarkSet(value, mask)
    raise ValueError("nothing to set")
