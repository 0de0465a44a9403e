"""Traces a probe through nftables mode's table, given as the values that are written to the kernel.

Chains of one hook are passed in the order of their priority. Other tables are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import product

from kproxy.errors import InvalidInput
from kproxy.model.addresses import contains
from kproxy.modes.nftables.names import TABLE
from kproxy.modes.nftables.render import Layout
from kproxy.modes.nftables.text import Writer
from kproxy.netfilter import objects
from kproxy.netfilter.objects import Chain, Element, Field, Load, Random, Rule, Statement
from kproxy.trace.comparisons import (
    PROTOCOLS,
    Among,
    Comparison,
    Dimension,
    Observer,
    OfInterface,
    Within,
    network,
    owned,
    unobserved,
)
from kproxy.trace.comparisons import protocol as compares_protocol
from kproxy.trace.hooks import ChainAtHook, Hook, HookTracer, Packet, Path
from kproxy.trace.outcome import Affinity, AffinityEntry, Fate, Host, Outcome, Probe, Step, check_family, number

MAX_DEPTH = 16  # NFT_JUMP_STACK_SIZE
Key = tuple[str | int, ...]


class NftablesTracer:
    """The table of one family on one host."""

    def __init__(self, layout: Layout, host: Host) -> None:
        """Raises InvalidInput when an element is given twice, or belongs to a set that the table does not have."""
        self.family = layout.family
        self._table = _Table(layout)
        self._host = host

    def trace(self, probe: Probe, affinity: Affinity | None = None, observe: Observer = unobserved) -> Outcome:
        """The outcome of PROBE. affinity: the elements of the sets of clients, as in Branch.remembers. observe: takes
        each comparison that is made of the probe.

        Raises InvalidInput when the probe is of another family, or a rule names a chain or map that does not exist.
        """
        check_family(probe, self.family)
        return _Trace(self._table, self._host, affinity or {}, observe).run(probe)

    def at_hooks(
        self, end: Callable[[Path, Fate], None], affinity: Affinity, observe: Observer
    ) -> dict[Hook, list[ChainAtHook]]:
        """The base chains, for whoever passes those of others as well. end: takes the paths that end in them."""
        trace = _Trace(self._table, self._host, affinity, observe, end)
        return {
            hook: [ChainAtHook(c.base.priority, c.base.type == "nat", partial(trace.base, c)) for c in chains if c.base]
            for hook, chains in self._table.hooks.items()
        }


class _Table:
    """A layout, indexed for lookups."""

    def __init__(self, layout: Layout) -> None:
        self.chains, self.sets = layout.chains, layout.sets
        self.hooks = _hooks(layout.chains.values())
        self._writer = Writer(layout.family)
        self._exact: dict[str, dict[Key, Element]] = {}
        self._intervals: dict[str, dict[Key, list[Element]]] = {}
        self._ranges: dict[str, frozenset[int]] = {}
        self._lookups: dict[tuple[str, tuple[int, ...]], KeyIndex] = {}
        self._texts: dict[int, str] = {}
        for name, elements in layout.elements.items():
            if self.set(name).interval:
                ranges = self._ranges[name] = _ranges(elements)
                of = self._intervals[name] = {}
                for element in elements:
                    of.setdefault(_exact_parts(element.key, ranges), []).append(element)
            else:
                self._exact[name] = {element.key: element for element in elements}
                if len(self._exact[name]) < len(elements):
                    raise InvalidInput(f"set {name}: an element is given twice")

    def set(self, name: str) -> objects.Set:
        if name not in self.sets:
            raise InvalidInput(f"set {name} is not in the table")
        return self.sets[name]

    def chain(self, name: str) -> Chain:
        if name not in self.chains:
            raise InvalidInput(f"chain {name} is not in the table")
        return self.chains[name]

    def find(self, name: str, key: Key) -> Element | None:
        """The element of a set or map that matches a packet's KEY."""
        if not self.set(name).interval:
            return self._exact.get(name, {}).get(key)
        exact = _exact_parts(key, self._ranges.get(name, frozenset()))
        candidates = self._intervals.get(name, {}).get(exact, ())
        return next((e for e in candidates if _within(e.key, key)), None)

    def index(self, name: str, first: Collection[int], length: int) -> tuple[KeyIndex, tuple[int, ...]]:
        """What keys a set or map has, and the order in which it has their fields: those of FIRST, ranges last."""
        ranges = self._ranges.get(name, frozenset())
        order = tuple(sorted(range(length), key=lambda at: (at in ranges, at not in first, at)))
        if (name, order) not in self._lookups:
            exact = self._exact.get(name, {})
            keys = exact or (e.key for of in self._intervals.get(name, {}).values() for e in of)
            self._lookups[name, order] = KeyIndex(tuple(key[at] for at in order) for key in keys)
        return self._lookups[name, order], order

    def text(self, rule: Rule, element: Element | None = None) -> str:
        """A rule as nft prints it, with the element that matched."""
        text = self._texts.get(id(rule))  # the layout keeps it
        if text is None:
            text = self._texts[id(rule)] = " ".join(self._writer.statement(statement) for statement in rule)
        return f"{text} {{ {self._writer.element(element)} }}" if element else text


class KeyIndex:
    """The keys of a set or map, field by field: which values the first field has, and for each the rest of the keys."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys: list[Key] | None = list(keys)
        self._rest: dict[str | int, KeyIndex] = {}
        self._has_ranges = False
        self._compared: list[Comparison] = []

    def lookup(self, parts: Sequence[tuple[Dimension | None, str | int]], observe: Observer) -> None:
        """Report what the lookup of a key compares. parts: of each field, in the order of the index, its dimension and
        the packet's value; None for a value that is not of the packet as it came in."""
        self._build()
        if not parts or not self._rest:
            return
        dimension, value = parts[0]
        if dimension is not None:
            self._compared = self._compared or list(_compared(dimension, self._rest))
            for comparison in self._compared:
                observe(comparison)
        for known, rest in self._matching(value):
            if _within((known,), (value,)):
                rest.lookup(parts[1:], observe)

    def _matching(self, value: str | int) -> Iterable[tuple[str | int, KeyIndex]]:
        if self._has_ranges:
            return self._rest.items()
        return ((value, self._rest[value]),) if value in self._rest else ()

    def _build(self) -> None:
        if self._keys is not None:
            of: dict[str | int, list[Key]] = {}
            for key in self._keys:
                if key:
                    of.setdefault(key[0], []).append(key[1:])
            self._rest = {value: KeyIndex(keys) for value, keys in of.items()}
            self._has_ranges = any(isinstance(value, str) and "/" in value for value in of)
            self._keys = None


def _compared(dimension: Dimension, values: Iterable[str | int]) -> Iterator[Comparison]:
    """What looking for a value among these compares."""
    cidrs = [value for value in values if isinstance(value, str) and "/" in value]
    if cidrs:
        yield from (Within(dimension, (network(cidr),)) for cidr in cidrs)
    else:
        yield Among(dimension, [_as_number(dimension, value) for value in values])


def _as_number(dimension: Dimension, value: str | int) -> int:
    if dimension is Dimension.PROTOCOL:
        return PROTOCOLS.index(str(value))
    return value if isinstance(value, int) else number(value)


def _ranges(elements: Iterable[Element]) -> frozenset[int]:
    """The places in an interval set's keys that hold CIDRs."""
    keys = (enumerate(element.key) for element in elements)
    return frozenset(at for key in keys for at, part in key if isinstance(part, str) and "/" in part)


def _exact_parts(key: Key, ranges: frozenset[int]) -> Key:
    return tuple(part for at, part in enumerate(key) if at not in ranges)


def _hooks(chains: Iterable[Chain]) -> Mapping[Hook, list[Chain]]:
    based = sorted(((c.base.priority, c.name, c) for c in chains if c.base), key=lambda entry: entry[:2])
    return {hook: [c for _, _, c in based if c.base and c.base.hook.value == hook.value] for hook in Hook}


def _within(pattern: Key, key: Key) -> bool:
    """Whether each part of KEY equals that of PATTERN, or lies within it if that is a CIDR."""
    return len(pattern) == len(key) and all(
        contains(part, str(value)) if isinstance(part, str) and "/" in part else part == value
        for part, value in zip(pattern, key, strict=True)
    )


Out = list[tuple[Path, bool]]


class _Trace(HookTracer):
    """The trace of one probe."""

    def __init__(
        self,
        table: _Table,
        host: Host,
        affinity: Affinity,
        observe: Observer,
        end: Callable[[Path, Fate], None] | None = None,
    ) -> None:
        """end: takes the paths that end, if they are not this trace's own."""
        super().__init__(host, observe)
        self._table, self._affinity = table, affinity
        self._finish = end or self._end

    def _hook(self, hook: Hook, path: Path, nat: bool) -> list[Path]:
        left = [path]
        for chain in self._table.hooks[hook]:
            if nat or chain.base is None or chain.base.type != "nat":
                left = [passed for each in left for passed in self.base(chain, each)]
        return left

    def base(self, chain: Chain, path: Path) -> list[Path]:
        """The paths that a base chain lets pass."""
        return [passed for passed, _ in self._chain(chain, path, 0)]

    def _chain(self, chain: Chain, path: Path, depth: int) -> Out:
        """The paths that leave a chain, each with whether it was accepted (True) or reached the end (False)."""
        if depth > MAX_DEPTH:
            raise InvalidInput(f"chain {chain.name}: jumps are nested too deeply")
        out: Out = []
        inside = [path]
        for rule in chain.rules:
            on: list[Path] = []
            for each in inside:
                self._rule(chain.name, rule, each, depth, on, out)
            inside = on
        return [*out, *((each, False) for each in inside)]

    def _rule(self, chain: str, rule: Rule, path: Path, depth: int, on: list[Path], out: Out) -> None:
        """Apply a rule. on: paths that continue with the next rule. out: paths that leave the chain."""
        going = [path]
        for statement in rule:
            before, going = going, []
            for each in before:
                if isinstance(statement, objects.Final):
                    self._final(chain, rule, statement, each, depth, on, out)
                else:
                    self._other(statement, each, going, on)
        on.extend(each.after(self._step(chain, rule)) for each in going)

    def _step(self, chain: str, rule: Rule, element: Element | None = None) -> Step:
        return Step(TABLE, chain, self._table.text(rule, element))

    # -- statements that match or change, after which the rule may continue

    def _other(
        self,
        statement: objects.Match | objects.Change,
        path: Path,
        going: list[Path],
        on: list[Path],
    ) -> None:
        match statement:
            case objects.OneIn(count):
                share = Fraction(1, count)
                going.append(path.part(share))
                if count > 1:
                    on.append(path.part(1 - share))
            case objects.MarkSet(mask):
                going.append(path.changed(mark=path.packet.mark | mask))
            case objects.MarkClear(mask):
                going.append(path.changed(mark=path.packet.mark & ~mask))
            case objects.Count():
                going.append(path)
            case objects.Update(name, key):
                memory = _affinity_entry(name, self._fields(key, path.packet))
                (on if self._full(name, memory) else going).append(path.remembering(memory))
            case _:
                (going if self._holds(statement, path.packet) else on).append(path)

    def _holds(self, statement: Statement, packet: Packet) -> bool:
        match statement:
            case objects.AddressIn(field, cidr, negate):
                if (dimension := _dimension(field, packet)) is not None:
                    self._observe(Within(dimension, (network(cidr),)))
                return contains(cidr, str(_field(field, packet))) is not negate
            case objects.InterfaceIs(name, prefix, negate):
                self._observe(OfInterface(name, prefix))
                found = packet.interface.startswith(name) if prefix else packet.interface == name
                return found is not negate
            case objects.ProtocolIs(protocol):
                self._observe(compares_protocol(protocol))
                return packet.protocol == protocol
            case objects.FibLocal(field):
                if (dimension := _dimension(field, packet)) is not None:
                    self._observe(owned(self._host.addresses, ":" in packet.source, dimension))
                return self._host.owns(str(_field(field, packet)))
            case objects.InSet(key, name, negate):
                if not self._table.set(name).timeout:  # what the packet path adds does not depend on the first packet
                    self._looks_up(name, key, packet)
                return self._has(name, self._fields(key, packet)) is not negate
            case objects.CtInvalid():
                return "INVALID" in packet.states
            case objects.CtTranslated():
                return packet.translated
            case objects.MarkHas(mask):
                return bool(packet.mark & mask)
        raise InvalidInput(f"statement {statement} is not known here")

    def _has(self, name: str, key: Key) -> bool:
        """Whether a set has KEY. The elements that the packet path adds are in the affinity."""
        if self._table.set(name).timeout:
            return self._fresh(name, _affinity_entry(name, key))
        return self._table.find(name, key) is not None

    def _fresh(self, name: str, memory: AffinityEntry) -> bool:
        age = self._affinity.get(memory)
        return age is not None and age < self._table.set(name).timeout

    def _full(self, name: str, memory: AffinityEntry) -> bool:
        size = self._table.set(name).size
        if not size or len(self._affinity) < size or self._fresh(name, memory):
            return False
        return sum(1 for known in self._affinity if known.where == name and self._fresh(name, known)) >= size

    # -- statements that end a rule

    def _final(
        self,
        chain: str,
        rule: Rule,
        statement: objects.Final,
        path: Path,
        depth: int,
        on: list[Path],
        out: Out,
    ) -> None:
        match statement:
            case objects.Lookup(key, name):
                self._looks_up(name, key, path.packet)
                self._lookup(chain, rule, self._table.find(name, self._fields(key, path.packet)), path, depth, on, out)
            case objects.DnatByMap(key, name):
                self._by_map(chain, rule, key, name, path, on, out)
            case objects.Dnat(address, port):
                out.append((path.after(self._step(chain, rule)).redirected(address, port), True))
            case objects.Masquerade():
                out.append((path.after(self._step(chain, rule)).changed(masqueraded=True), True))
            case objects.Reject():
                self._finish(path.after(self._step(chain, rule)), Fate.REJECTED)
            case objects.Drop():
                self._finish(path.after(self._step(chain, rule)), Fate.DROPPED)
            case objects.Jump(target) | objects.Goto(target):
                leaves = isinstance(statement, objects.Goto)
                self._enter(target, path.after(self._step(chain, rule)), depth, out if leaves else None, on, out)

    def _enter(self, target: str, path: Path, depth: int, end: Out | None, on: list[Path], out: Out) -> None:
        """Pass another chain. end: where to put paths that reach its end; None for the next rule."""
        for after, accepted in self._chain(self._table.chain(target), path, depth + 1):
            if accepted:
                out.append((after, True))
            elif end is None:
                on.append(after)
            else:
                end.append((after, False))

    def _lookup(
        self,
        chain: str,
        rule: Rule,
        element: Element | None,
        path: Path,
        depth: int,
        on: list[Path],
        out: Out,
    ) -> None:
        if element is None:
            on.append(path)
            return
        path = path.after(self._step(chain, rule, element))
        if not isinstance(element.data, objects.Verdict):
            raise InvalidInput(f"set {element.set}: {element.key} has no verdict")
        if element.data.chain:
            self._enter(element.data.chain, path, depth, out, on, out)
        else:
            self._finish(path, Fate.DROPPED)

    def _by_map(
        self,
        chain: str,
        rule: Rule,
        key: tuple[Load, ...],
        name: str,
        path: Path,
        on: list[Path],
        out: Out,
    ) -> None:
        """Translate by a map. Each random number is a path of its own."""
        self._looks_up(name, key, path.packet)
        choices = [self._values(load, path.packet) for load in key]
        combined = list(product(*choices))
        for values in combined:
            part = path.part(Fraction(1, len(combined))) if len(combined) > 1 else path
            element = self._table.find(name, values)
            if element is None:
                on.append(part)
                continue
            if not isinstance(element.data, tuple) or isinstance(element.data, objects.Verdict):
                raise InvalidInput(f"set {name}: {element.key} has no address and port")
            ip, port = element.data
            out.append((part.after(self._step(chain, rule, element)).redirected(str(ip), int(port)), True))

    def _looks_up(self, name: str, key: Sequence[Load], packet: Packet) -> None:
        """Report what a lookup compares of the packet."""
        if self._observe is unobserved:
            return
        fields = [None if isinstance(load, Random) else _dimension(load, packet) for load in key]
        fixed = [at for at, load in enumerate(key) if fields[at] is None and not isinstance(load, Random)]
        index, order = self._table.index(name, fixed, len(key))
        parts = [(fields[at], _value(key[at], packet)) for at in order]
        index.lookup(parts, self._observe)

    def _fields(self, key: Iterable[Load], packet: Packet) -> Key:
        """The values of a key; a random number out of one is that one."""
        return tuple(load.offset if isinstance(load, Random) else _field(load, packet) for load in key)

    def _values(self, load: Load, packet: Packet) -> list[str | int]:
        if isinstance(load, Random):
            return list(range(load.offset, load.offset + load.modulus))
        return [_field(load, packet)]


def _affinity_entry(name: str, key: Key) -> AffinityEntry:
    """The affinity entry for a key of a set that the packet path fills; the key begins with the client."""
    client, *rest = map(str, key)
    return AffinityEntry(name, client, " . ".join(rest))


def _dimension(field: Field, packet: Packet) -> Dimension | None:
    """The dimension of a field, None where the packet was translated."""
    match field:
        case Field.SADDR:
            return Dimension.SOURCE
        case Field.PROTO:
            return Dimension.PROTOCOL
        case Field.DADDR:
            return None if packet.translated else Dimension.DESTINATION
        case Field.DPORT:
            return None if packet.translated else Dimension.PORT


def _value(load: Load, packet: Packet) -> str | int:
    """The value of a part of a key; of the numbers that a random one may be, the first: all have the same keys."""
    return load.offset if isinstance(load, Random) else _field(load, packet)


def _field(field: Field, packet: Packet) -> str | int:
    match field:
        case Field.SADDR:
            return packet.source
        case Field.DADDR:
            return packet.destination
        case Field.PROTO:
            return packet.protocol
        case Field.DPORT:
            return packet.port
