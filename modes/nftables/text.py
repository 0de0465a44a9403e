"""Writes the table as the text that `nft -f` loads. Pure. Source: nft(8)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kproxy.model.plans import Family, address_port
from kproxy.modes.nftables import names
from kproxy.modes.nftables.render import Layout
from kproxy.netfilter.objects import (
    AddressIn,
    Chain,
    Count,
    CtInvalid,
    CtTranslated,
    Dnat,
    DnatByMap,
    Drop,
    Element,
    FibLocal,
    Field,
    Goto,
    InSet,
    InterfaceIs,
    Jump,
    Load,
    Lookup,
    MarkClear,
    MarkHas,
    MarkSet,
    Masquerade,
    OneIn,
    ProtocolIs,
    Random,
    Reject,
    Set,
    SetKind,
    Statement,
    Type,
    Update,
    Verdict,
)

WHOLE = 0xFFFFFFFF  # a packet mark has 32 bits


def table_text(layout: Layout) -> str:
    """The table as a text that replaces whatever there is: chains before the elements that refer to them."""
    writer = Writer(layout.family)
    table = f"{writer.ip} {names.TABLE}"
    lines = [f"add table {table}", f"delete table {table}", f"table {table} {{"]
    for found in layout.sets.values():
        lines += ["\t" + line for line in writer.set(found)]
    for chain in layout.chains.values():
        lines += ["\t" + line for line in writer.chain(chain)]
    lines.append("}")
    for name, elements in layout.elements.items():
        body = ",\n".join("\t" + writer.element(e) for e in elements)
        lines.append(f"add element {table} {name} {{\n{body}\n}}")
    return "\n".join(lines) + "\n"


class Writer:
    """Writes values of one family. ip: "ip" or "ip6", both the table's family and the word before addresses."""

    def __init__(self, family: Family) -> None:
        self.ip = "ip" if family is Family.IPV4 else "ip6"

    # -- sets and elements

    def set(self, found: Set) -> Iterator[str]:
        """`set NAME { … }` or `map NAME { … }`, line by line."""
        yield f"{'set' if found.kind is SetKind.SET else 'map'} {found.name} {{"
        word, write = ("typeof", self._example) if Type.SLOT in found.key else ("type", _name)
        key = " . ".join(write(type_) for type_ in found.key)
        if found.kind is SetKind.VERDICTS:
            key += " : verdict"
        elif found.data:
            key += " : " + " . ".join(write(type_) for type_ in found.data)
        yield f"\t{word} {key}"
        flags = [word for word, has in (("interval", found.interval), ("dynamic,timeout", found.timeout)) if has]
        if found.size:
            yield f"\tsize {found.size}"
        if flags:
            yield f"\tflags {','.join(flags)}"
        if found.timeout:
            yield f"\ttimeout {found.timeout}s"
        yield "}"

    def _example(self, type_: Type) -> str:
        """An expression of that type, as `typeof` takes it; a type for any 32-bit number has no name."""
        if type_ is Type.SLOT:
            return "numgen random mod 65536"
        return {Type.PROTO: "meta l4proto", Type.PORT: "th dport"}.get(type_, f"{self.ip} daddr")

    def element(self, element: Element) -> str:
        """`KEY comment "…" : DATA`"""
        line = " . ".join(map(str, element.key))
        if element.comment:
            line += f' comment "{element.comment}"'
        if element.data is None:
            return line
        data = element.data
        return f"{line} : {data if isinstance(data, Verdict) else ' . '.join(map(str, data))}"

    # -- chains

    def chain(self, chain: Chain) -> Iterator[str]:
        """`chain NAME { … }`, line by line."""
        yield f"chain {chain.name} {{"
        if base := chain.base:
            yield f"\ttype {base.type} hook {base.hook.value} priority {base.priority}; policy accept;"
        for rule in chain.rules:
            yield "\t" + " ".join(self.statement(s) for s in rule)
        yield "}"

    def statement(self, statement: Statement) -> str:
        """One statement; the docstrings of kproxy.netfilter.objects show the text of each."""
        match statement:
            case AddressIn(field, cidr, negate):
                return f"{self.field(field)} {'!= ' if negate else ''}{cidr}"
            case InterfaceIs(name, prefix, negate):
                return f'iifname {"!= " if negate else ""}"{name}{"*" if prefix else ""}"'
            case ProtocolIs(protocol):
                return f"meta l4proto {protocol}"
            case FibLocal(field):
                return f"fib {field.value.removeprefix('IP ')} type local"
            case InSet(key, set_, negate):
                return f"{self.key(key)} {'!= ' if negate else ''}@{set_}"
            case CtInvalid():
                return "ct state invalid"
            case CtTranslated():
                return "ct status dnat"
            case MarkHas(mask):
                return f"meta mark & {mask:#010x} != 0"
            case OneIn(count):
                return f"numgen random mod {count} 0"
            case MarkSet(mask):
                return f"meta mark set meta mark | {mask:#010x}"
            case MarkClear(mask):
                return f"meta mark set meta mark & {WHOLE ^ mask:#010x}"
            case Count():
                return "counter"
            case Update(set_, key):
                return f"update @{set_} {{ {self.key(key)} }}"
            case Lookup(key, map_):
                return f"{self.key(key)} vmap @{map_}"
            case DnatByMap(key, map_):
                return f"dnat {self.ip} addr . port to {self.key(key)} map @{map_}"
            case Dnat(address, port):
                return f"dnat to {address_port(address, port)}"
            case Masquerade(fully_random):
                return "masquerade fully-random" if fully_random else "masquerade"
            case Reject(tcp_reset):
                return "reject with tcp reset" if tcp_reset else "reject"
            case Drop():
                return "drop"
            case Jump(chain):
                return f"jump {chain}"
            case Goto(chain):
                return f"goto {chain}"

    def key(self, loads: Iterable[Load]) -> str:
        """`ip daddr . meta l4proto . numgen random mod 3`"""
        return " . ".join(self.field(load) if isinstance(load, Field) else _random(load) for load in loads)

    def field(self, field: Field) -> str:
        return field.value.replace("IP", self.ip)


def _random(random: Random) -> str:
    return f"numgen random mod {random.modulus}" + (f" offset {random.offset}" if random.offset else "")


def _name(type_: Type) -> str:
    return type_.value
