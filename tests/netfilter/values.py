"""Sets, rules and elements of every kind, and the operations that make a table of them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from kproxy.model.plans import Family
from kproxy.netfilter.element_codec import coder
from kproxy.netfilter.kernel import ListedSet, Listing, Nftables
from kproxy.netfilter.objects import (
    AddressIn,
    BaseChain,
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
    Hook,
    InSet,
    InterfaceIs,
    Jump,
    Lookup,
    MarkClear,
    MarkHas,
    MarkSet,
    Masquerade,
    OneIn,
    ProtocolIs,
    Random,
    Reject,
    Rule,
    Set,
    SetKind,
    Type,
    Update,
    Verdict,
)
from kproxy.netfilter.operations import (
    AddChain,
    AddElements,
    AddRules,
    AddSet,
    AddTable,
    DeleteTable,
    FillSet,
    Operation,
)

TABLE = "kproxy"
ADDRESS = {Family.IPV4: Type.IPV4, Family.IPV6: Type.IPV6}
FRONTEND = (Field.DADDR, Field.PROTO, Field.DPORT)
BASES = {
    "prerouting": BaseChain("nat", Hook.PREROUTING, -100),
    "postrouting": BaseChain("nat", Hook.POSTROUTING, 100),
    "forward": BaseChain("filter", Hook.FORWARD, -10),
    "output": BaseChain("filter", Hook.OUTPUT, 0),
}


def address(family: Family, number: int) -> str:
    """10.0.0.NUMBER, fd00::NUMBER (hexadecimal)"""
    return f"10.0.0.{number}" if family is Family.IPV4 else f"fd00::{number:x}"


def sets(family: Family) -> dict[str, Set]:
    """A set of every form, by name."""
    ip = ADDRESS[family]
    key = (ip, Type.PROTO, Type.PORT)
    made = (
        Set("services", key, SetKind.VERDICTS),
        Set("node-ports", (Type.PROTO, Type.PORT), SetKind.VERDICTS),
        Set("ports", (Type.PORT,), SetKind.VERDICTS),
        Set("endpoints", (*key, Type.SLOT), SetKind.MAP, (ip, Type.PORT)),
        Set("slots", (Type.SLOT,), SetKind.MAP, (ip, Type.PORT)),
        Set("hairpins", (ip, ip)),
        Set("cluster-ips", (ip,)),
        Set("protocols", (Type.PROTO,)),
        Set("sources", (*key, ip), interval=True),
        Set("networks", (ip,), interval=True),
        Set("clients", (ip, *key), timeout=10800, size=65535),
    )
    return {found.name: found for found in made}


def rules(family: Family) -> dict[str, tuple[Rule, ...]]:
    """Rules with every statement, by the chain in which they may stand."""
    v4 = family is Family.IPV4
    pods, odd = ("10.244.0.0/16", "10.0.0.0/15") if v4 else ("fd00:244::/32", "fd00::/63")
    host, everything = ("10.0.0.1/32", "0.0.0.0/0") if v4 else ("fd00::1/128", "::/0")
    return {
        "prerouting": (
            (AddressIn(Field.SADDR, pods, True), Goto("other")),
            (AddressIn(Field.DADDR, odd), MarkSet(0x4000), Drop()),
            (AddressIn(Field.DADDR, host), AddressIn(Field.SADDR, everything), Jump("other")),
            (InterfaceIs("veth", True), MarkClear(0x4000)),
            (InterfaceIs("cbr0", False, True), FibLocal(Field.SADDR), Drop()),
            (FibLocal(Field.DADDR), Lookup((Field.PROTO, Field.DPORT), "node-ports")),
            (InSet((*FRONTEND, Field.SADDR), "sources", True), Drop()),
            (InSet((Field.DADDR,), "networks"), Lookup(FRONTEND, "services")),
            (InSet((Field.SADDR, Field.DADDR), "hairpins"), Lookup((Field.DPORT,), "ports")),
            (Update("clients", (Field.SADDR, *FRONTEND)), OneIn(3), DnatByMap((*FRONTEND, Random(2, 1)), "endpoints")),
            (ProtocolIs("tcp"), DnatByMap((Random(3),), "slots")),
            (ProtocolIs("sctp"), Dnat(address(family, 9), 8080)),
        ),
        "postrouting": ((MarkHas(0x4000), Masquerade()), (CtTranslated(), Masquerade(False))),
        "forward": ((CtInvalid(), Drop()), (ProtocolIs("tcp"), Count(), Reject(tcp_reset=True)), (Reject(),)),
        "output": (),
        "other": ((InSet((Field.PROTO,), "protocols"), Drop()),),
    }


def elements(family: Family) -> dict[str, list[Element]]:
    """Elements of each set, with every form of key and data."""
    ip, other = address(family, 1), address(family, 2)
    wide, narrow = ("10.0.0.0/8", "192.168.4.0/30") if family is Family.IPV4 else ("fd00::/16", "fe80::/126")
    everything = "0.0.0.0/0" if family is Family.IPV4 else "::/0"
    return {
        "services": [
            Element("services", (ip, "tcp", 80), Verdict("other"), "default/web:http"),
            Element("services", (ip, "udp", 53), Verdict()),
            Element("services", (other, "sctp", 65535), Verdict("lb")),
        ],
        "node-ports": [Element("node-ports", ("tcp", 30080), Verdict("lb"), "default/web")],
        "ports": [Element("ports", (80,), Verdict("lb"))],
        "endpoints": [Element("endpoints", (ip, "tcp", 80, i), (other, 8080 + i)) for i in range(3)],
        "slots": [Element("slots", (i,), (other, 8080)) for i in (0, 1, 300)],
        "hairpins": [Element("hairpins", (ip, other), None, "both")],
        "cluster-ips": [Element("cluster-ips", (ip,)), Element("cluster-ips", (other,))],
        "protocols": [Element("protocols", ("udp",))],
        "sources": [
            Element("sources", (ip, "tcp", 80, wide), None, "allowed"),
            Element("sources", (ip, "tcp", 81, everything)),
        ],
        "networks": [Element("networks", (wide,)), Element("networks", (narrow,))],
        "clients": [],
    }


def emptied(spec: Set) -> FillSet:
    """Deletes all elements of a set."""
    return FillSet(TABLE, spec, [], 0)


def settled(listed: str) -> list[str]:
    """A ruleset that nft lists as JSON, sorted and without what depends on history: handles, counters, order."""
    return sorted(json.dumps(_settled(item), sort_keys=True) for item in json.loads(listed)["nftables"][1:])


def _settled(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _settled(item) for key, item in value.items() if key not in {"handle", "index", "expires"}}
        if isinstance(kept.get("elem"), list):
            kept["elem"] = sorted(json.dumps(item, sort_keys=True) for item in kept["elem"])
        return kept
    return [_settled(item) for item in value] if isinstance(value, list) else value


def listed(nftables: Nftables, family: Family = Family.IPV4, sizes: Mapping[str, int] | None = None) -> Listing:
    """The table, which is there."""
    found = nftables.listing(family, TABLE, sizes or {})
    assert found is not None
    return found


def difference(listed: ListedSet, wanted: Sequence[Element]) -> tuple[list[Element], list[Element]]:
    """What a listed set has besides WANTED, and what it lacks."""
    assert listed.spec is not None
    assert listed.elements is not None
    code, there = coder(listed.spec), set(listed.elements)
    encoded = dict(zip(code.encode(wanted), wanted, strict=True))
    surplus = [code.decode(data) for data in there - encoded.keys()]
    return surplus, [element for data, element in encoded.items() if data not in there]


def table(
    sets: Iterable[Set], chains: Iterable[Chain], elements: Mapping[str, Sequence[Element]], replace: bool = True
) -> list[Operation]:
    """The operations that make a table of all this, in place of the one that is there."""
    known = {found.name: found for found in sets}
    made = list(chains)
    before: list[Operation] = [AddTable(TABLE), DeleteTable(TABLE)] if replace else []
    return [
        *before,
        AddTable(TABLE),
        *(AddSet(TABLE, found) for found in known.values()),
        *(AddChain(TABLE, chain.name, chain.base) for chain in made),
        *(AddRules(TABLE, chain.name, chain.rules) for chain in made if chain.rules),
        *(AddElements(TABLE, known[name], found) for name, found in elements.items() if found),
    ]


def chains(family: Family) -> list[Chain]:
    """Chains with the `rules`, and an empty one."""
    found = [Chain(name, listed, BASES.get(name)) for name, listed in rules(family).items()]
    return [*found, Chain("lb")]


def everything(family: Family) -> list[Operation]:
    """The operations that make a table with all of the above."""
    return table(sets(family).values(), chains(family), elements(family))


# ---------------------------------------------------------------- any elements

PARTS: dict[Type, st.SearchStrategy[str | int]] = {
    Type.IPV4: st.binary(min_size=4, max_size=4).map(lambda packed: socket.inet_ntop(socket.AF_INET, packed)),
    Type.IPV6: st.binary(min_size=16, max_size=16).map(lambda packed: socket.inet_ntop(socket.AF_INET6, packed)),
    Type.PROTO: st.sampled_from(["tcp", "udp", "sctp"]),
    Type.PORT: st.integers(0, 65535),
    Type.SLOT: st.integers(0, 2**32 - 1),
}


@st.composite
def any_elements(draw: st.DrawFn, spec: Set, most: int = 8) -> list[Element]:
    """Elements of SPEC, with different keys; networks in interval sets do not overlap, as they are single addresses."""
    key = st.tuples(*(_part(spec, type_) for type_ in spec.key))
    keys = draw(st.lists(key, max_size=most, unique=True))
    data: st.SearchStrategy[object] = st.none()
    if spec.kind is SetKind.VERDICTS:
        data = st.sampled_from([Verdict(), Verdict("lb"), Verdict("other")])
    elif spec.kind is SetKind.MAP:
        data = st.tuples(*(PARTS[type_] for type_ in spec.data))
    comment = st.sampled_from(["", "", "default/web:http", "ü"])
    return [Element(spec.name, k, draw(data), draw(comment)) for k in keys]  # type: ignore[arg-type]


def _part(spec: Set, type_: Type) -> st.SearchStrategy[str | int]:
    if not spec.interval or type_ not in (Type.IPV4, Type.IPV6):
        return PARTS[type_]
    length = 32 if type_ is Type.IPV4 else 128
    return PARTS[type_].map(lambda address: f"{address}/{length}")
