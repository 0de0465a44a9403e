"""Tables of nf_tables in memory: what an operation does to them, and with which error the kernel would refuse it.

Leaves out: transactions, listings and faults (tests.fakes.nftables), packets, and elements that packets add.
Source: net/netfilter/nf_tables_api.c. Stricter than the kernel in one thing: it compares lengths, this compares types.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kproxy.model.plans import Family
from kproxy.netfilter.element_codec import coder
from kproxy.netfilter.element_fields import bounds
from kproxy.netfilter.objects import (
    BaseChain,
    Dnat,
    DnatByMap,
    Element,
    Field,
    Goto,
    Hook,
    InSet,
    Jump,
    Load,
    Lookup,
    Masquerade,
    Reject,
    Rule,
    Set,
    SetKind,
    Statement,
    Type,
    Update,
    Verdict,
)
from kproxy.netfilter.operations import (
    AddChain,
    AddElements,
    AddRules,
    AddSet,
    DeleteChain,
    DeleteElements,
    DeleteSet,
    FillSet,
    FlushChain,
)
from kproxy.netfilter.rule_codec import encode

JUMPS = 16  # NFT_JUMP_STACK_SIZE
INWARD, OUTWARD = frozenset({Hook.PREROUTING, Hook.OUTPUT}), frozenset({Hook.POSTROUTING})
REJECTING = frozenset({Hook.PREROUTING, Hook.FORWARD, Hook.OUTPUT})
TableOperation = AddChain | FlushChain | DeleteChain | AddRules | AddSet | DeleteSet | FillSet
ElementOperation = AddElements | DeleteElements


class Refused(Exception):
    """The kernel would refuse it. number: its errno."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


@dataclass(slots=True)
class Chain:
    """A chain."""

    base: BaseChain | None
    rules: tuple[Rule, ...] = ()


@dataclass(slots=True)
class Members:
    """A set. elements: by the bytes of their keys."""

    spec: Set
    elements: dict[bytes, Element] = field(default_factory=dict)


@dataclass(slots=True)
class Table:
    """One table."""

    family: Family
    chains: dict[str, Chain] = field(default_factory=dict)
    sets: dict[str, Members] = field(default_factory=dict)

    def copy(self) -> Table:
        """One that can be changed apart from this one."""
        chains = {name: Chain(chain.base, chain.rules) for name, chain in self.chains.items()}
        sets = {name: Members(members.spec, dict(members.elements)) for name, members in self.sets.items()}
        return Table(self.family, chains, sets)

    def do(self, operation: TableOperation) -> None:
        """Raises Refused."""
        match operation:
            case AddChain(_, name, base):
                there = self.chains.setdefault(name, Chain(base))
                if there.base != base:
                    raise Refused(errno.EEXIST, "the chain exists with another hook")
            case FlushChain(_, name):
                self._chain(name).rules = ()
            case DeleteChain(_, name):
                self._chain(name).rules = ()
                self._refuse_if_used(name)
                del self.chains[name]
            case AddRules(_, name, rules):
                chain = self._chain(name)
                for rule in rules:
                    self._check(rule)
                    chain.rules += (rule,)
                self.check_paths()
            case AddSet(_, spec):
                if self.sets.setdefault(spec.name, Members(spec)).spec != spec:
                    raise Refused(errno.EEXIST, "the set exists in another form")
            case DeleteSet(_, name):
                self._set(name)
                if any(_set_of(s) == name for _, s in self._statements()):
                    raise Refused(errno.EBUSY, "a rule uses the set")
                del self.sets[name]
            case FillSet(_, spec, encoded):
                self._set(spec.name).elements.clear()
                for data in (one for part in encoded for one in coder(spec).listed(part)):
                    self.put(AddElements(operation.table, spec, ()), coder(spec).decode(data))

    def put(self, operation: ElementOperation, element: Element) -> None:
        """Add or delete one element of `operation`; call `check_paths` after the last. Raises Refused."""
        members = self._set(operation.set.name)
        if members.spec != operation.set:
            raise Refused(errno.EINVAL, "the set is of another form")
        delete = isinstance(operation, DeleteElements)
        try:
            (key,) = coder(members.spec).encode([element], keys_only=True)
            if not delete:
                coder(members.spec).encode([element])
        except ValueError as error:
            raise Refused(errno.EINVAL, str(error)) from None
        there = members.elements.get(key)
        if delete:
            if there is None:
                raise Refused(errno.ENOENT, "no such element")
            del members.elements[key]
        else:
            self._add(members, key, element)

    def _add(self, members: Members, key: bytes, element: Element) -> None:
        if (there := members.elements.get(key)) is not None:
            if there.data != element.data:
                raise Refused(errno.EEXIST, "the element exists with other data")
            return
        if members.spec.interval and any(_overlap(members.spec, element, e) for e in members.elements.values()):
            raise Refused(errno.EEXIST, "the element overlaps with another")
        if members.spec.size and len(members.elements) >= members.spec.size:
            raise Refused(errno.ENFILE, "the set is full")
        if isinstance(element.data, Verdict) and element.data.chain:
            self._chain(element.data.chain)
        members.elements[key] = element

    # ---- what refers to what

    def _chain(self, name: str) -> Chain:
        if name not in self.chains:
            raise Refused(errno.ENOENT, f"no chain {name}")
        return self.chains[name]

    def _set(self, name: str) -> Members:
        if name not in self.sets:
            raise Refused(errno.ENOENT, f"no set {name}")
        return self.sets[name]

    def _statements(self) -> Iterator[tuple[str, Statement]]:
        for name, chain in self.chains.items():
            for rule in chain.rules:
                for statement in rule:
                    yield name, statement

    def _refuse_if_used(self, name: str) -> None:
        if any(isinstance(s, Jump | Goto) and s.chain == name for _, s in self._statements()):
            raise Refused(errno.EBUSY, "a rule jumps to the chain")
        for members in self.sets.values():
            if members.spec.kind is SetKind.VERDICTS and Verdict(name) in {e.data for e in members.elements.values()}:
                raise Refused(errno.EBUSY, "an element jumps to the chain")

    # ---- rules

    def _check(self, rule: Rule) -> None:
        try:
            encode(self.family, rule)
        except ValueError as error:
            raise Refused(errno.EINVAL, str(error)) from None
        for statement in rule:
            if isinstance(statement, Jump | Goto) and self._chain(statement.chain).base is not None:
                raise Refused(errno.EOPNOTSUPP, "nothing can jump to a base chain")
            self._check_use(statement)

    def _check_use(self, statement: Statement) -> None:
        address = Type.IPV4 if self.family is Family.IPV4 else Type.IPV6
        match statement:
            case InSet(key, name):
                fits = self._set(name).spec.kind is SetKind.SET
            case Update(name, key):
                fits = self._set(name).spec.timeout > 0
            case Lookup(key, name):
                fits = self._set(name).spec.kind is SetKind.VERDICTS
            case DnatByMap(key, name):
                fits = self._set(name).spec.data == (address, Type.PORT)
            case _:
                return
        if not fits or self._set(name).spec.key != tuple(_type_of(load, address) for load in key):
            raise Refused(errno.EINVAL, f"set {name} is of another form")

    def check_paths(self) -> None:
        """Raises Refused when jumps form a cycle, or reach a statement that is not allowed at their hook."""
        for name, chain in self.chains.items():
            if chain.base is not None:
                self._walk(name, chain.base, (), set())

    def _walk(self, name: str, base: BaseChain, path: tuple[str, ...], done: set[tuple[str, int]]) -> None:
        if name in path or len(path) >= JUMPS:
            raise Refused(errno.EMLINK, "jumps go too deep")
        if (name, len(path)) in done:
            return
        done.add((name, len(path)))
        for rule in self._chain(name).rules:
            for statement in rule:
                if not _allowed(statement, base):
                    raise Refused(errno.EOPNOTSUPP, f"{type(statement).__name__} at {base.type} {base.hook.value}")
                for target in self._targets(statement):
                    self._walk(target, base, (*path, name), done)

    def _targets(self, statement: Statement) -> frozenset[str]:
        if isinstance(statement, Jump | Goto):
            return frozenset({statement.chain})
        if isinstance(statement, Lookup):
            data = (e.data for e in self._set(statement.map).elements.values())
            return frozenset(d.chain for d in data if isinstance(d, Verdict) and d.chain)
        return frozenset()


def _allowed(statement: Statement, base: BaseChain) -> bool:
    match statement:
        case Dnat() | DnatByMap():
            return base.type == "nat" and base.hook in INWARD
        case Masquerade():
            return base.type == "nat" and base.hook in OUTWARD
        case Reject():
            return base.hook in REJECTING
        case _:
            return True


def _type_of(load: Load, address: Type) -> Type:
    if not isinstance(load, Field):
        return Type.SLOT
    return {Field.PROTO: Type.PROTO, Field.DPORT: Type.PORT}.get(load, address)


def _set_of(statement: Statement) -> str:
    match statement:
        case InSet(_, name) | Update(name, _) | Lookup(_, name) | DnatByMap(_, name):
            return name
        case _:
            return ""


def _overlap(spec: Set, one: Element, other: Element) -> bool:
    """Whether some key is in both, as each of their fields overlap."""
    pairs: Sequence[tuple[str | int, str | int]] = list(zip(one.key, other.key, strict=True))
    for type_, (left, right) in zip(spec.key, pairs, strict=True):
        if type_ not in (Type.IPV4, Type.IPV6):
            if left != right:
                return False
            continue
        (low, high), (other_low, other_high) = bounds(type_, str(left)), bounds(type_, str(right))
        if high < other_low or other_high < low:
            return False
    return True
