"""What is encoded is, byte by byte, what Linux lists, and its listings are decoded."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.kernel import netlink
from kproxy.model.plans import Family
from kproxy.netfilter import expressions as nft
from kproxy.netfilter import messages as codec
from kproxy.netfilter import rule_codec, set_codec
from kproxy.netfilter.element_codec import coder
from kproxy.netfilter.messages import ListedChain, Message
from kproxy.netfilter.objects import (
    AddressIn,
    Dnat,
    DnatByMap,
    Drop,
    Element,
    FibLocal,
    Field,
    Goto,
    InSet,
    InterfaceIs,
    MarkSet,
    Random,
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
    AddTable,
    DeleteChain,
    DeleteElements,
    DeleteSet,
    DeleteTable,
    FillSet,
    FlushChain,
    Operation,
)
from tests.netfilter.values import BASES, FRONTEND, any_elements, chains, elements, rules, sets

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are those of a little-endian host")
V4, V6 = Family
ANY_SET = st.sampled_from([spec for family in Family for spec in sets(family).values()])


def encoded_messages(family: Family, operation: Operation) -> list[Message]:
    return list(codec.messages(family, operation))


# ---------------------------------------------------------------- rules

# What Linux 6.18 lists for rules that nft 1.0.6 has loaded.
FIB = "28000100 08000100 66696200 1c000200 08000100 00000001 08000200 00000003 08000300 00000002"
LOCAL = "2c000100 08000100 636d7000 20000200 08000100 00000001 08000200 00000000 0c000300 08000100 02000000"
GOTO = (
    "3c000100 0e000100 696d6d6564696174650000002800020008000100000000001c00020018000200"
    "08000100 fffffffc 09000200 6c622d32 00000000"
)
NOT_PODS = (
    "34000100 0c000100 7061796c6f616400 24000200 08000100 00000001 08000200 00000001 08000300 0000000c"
    "08000400 00000002"
    "2c000100 08000100 636d7000 20000200 08000100 00000001 08000200 00000001 0c000300 06000100 0af40000"
)
SET_MARK = (
    "24000100 09000100 6d65746100000000 14000200 08000200 00000003 08000100 00000001"
    "4c000100 0c000100 6269747769736500 3c000200 08000100 00000001 08000200 00000001 08000300 00000004"
    "08000600 00000000"
    "0c000400 08000100 ffbfffff 0c000500 08000100 00400000"
    "24000100 09000100 6d65746100000000 14000200 08000200 00000003 08000300 00000001"
)
BY_MAP = (
    "34000100 0c000100 7061796c6f616400 24000200 08000100 00000001 08000200 00000001 08000300 00000010"
    "08000400 00000004"
    "24000100 09000100 6d65746100000000 14000200 08000200 00000010 08000100 00000009"
    "34000100 0c000100 7061796c6f616400 24000200 08000100 0000000a 08000200 00000002 08000300 00000002"
    "08000400 00000002"
    "34000100 0b000100 6e756d67656e0000 24000200 08000100 0000000b 08000200 00000002 08000300 00000001"
    "08000400 00000000"
    "38000100 0b000100 6c6f6f6b75700000 28000200 09000100 656e6473 00000000"
    "08000200 00000001 08000300 00000001 08000500 00000000"
    "48000100 08000100 6e617400 3c000200 08000100 00000001 08000200 00000002 08000300 00000001 08000400 00000001"
    "08000500 00000009 08000600 00000009 08000700 00000003"
)
LISTED: dict[str, tuple[Rule, str]] = {
    "fib daddr type local goto lb-2": ((FibLocal(Field.DADDR), Goto("lb-2")), FIB + LOCAL + GOTO),
    "ip saddr != 10.244.0.0/16 goto lb-2": (
        (AddressIn(Field.SADDR, "10.244.0.0/16", True), Goto("lb-2")),
        NOT_PODS + GOTO,
    ),
    "meta mark set meta mark | 0x4000": ((MarkSet(0x4000),), SET_MARK),
    "dnat ip to … numgen random mod 2 map @ends": ((DnatByMap((*FRONTEND, Random(2)), "ends"),), BY_MAP),
}


@little_endian
@pytest.mark.parametrize("text", LISTED)
def test_a_rule_is_encoded_as_linux_lists_it(text: str) -> None:
    rule, listed = LISTED[text]
    assert rule_codec.encode(V4, rule).hex() == listed.replace(" ", "")


def flagged(data: bytes) -> bytes:
    """The same list of expressions with the flags that libnftnl sets on what is nested, and in another order."""
    found = []
    for type_, expression in netlink.each_attribute(data):
        parts = netlink.attributes(expression)
        inner = list(netlink.each_attribute(parts[2]))
        random.Random(len(data)).shuffle(inner)
        again = b"".join(netlink.attribute(t | (0x8000 if _holds_data(parts[1], t) else 0), v) for t, v in inner)
        found.append(netlink.nested(type_, netlink.attribute(1, parts[1]), netlink.nested(2, again)))
    return b"".join(found)


def _holds_data(name: bytes, type_: int) -> bool:
    return (name.rstrip(b"\0"), type_) in {(b"cmp", 3), (b"immediate", 2), (b"bitwise", 4), (b"bitwise", 5)}


@pytest.mark.parametrize("family", Family)
def test_rules_are_equal_whoever_encoded_them(family: Family) -> None:
    for rule in (rule for listed in rules(family).values() for rule in listed):
        data = rule_codec.encode(family, rule)
        assert nft.canonical(flagged(data)) == rule_codec.expressions(family, rule)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((Goto("a"),), (Goto("b"),)),
        ((AddressIn(Field.SADDR, "10.0.0.0/8"),), (AddressIn(Field.SADDR, "10.0.0.0/8", True),)),
        ((InSet((Field.DADDR,), "s"),), (InSet((Field.DADDR,), "s", True),)),
        ((DnatByMap((Random(2),), "m"),), (DnatByMap((Random(2, 1),), "m"),)),
        ((Update("s", (Field.SADDR,)),), (Update("t", (Field.SADDR,)),)),
        ((MarkSet(1),), (MarkSet(2),)),
        ((Drop(),), ()),
    ],
)
def test_a_small_difference_between_rules_matters(one: Rule, other: Rule) -> None:
    assert rule_codec.expressions(V4, one) != rule_codec.expressions(V4, other)


@pytest.mark.parametrize(
    "rule",
    [
        (AddressIn(Field.SADDR, "10.0.0.0/33"),),
        (AddressIn(Field.SADDR, "fd00::/64"),),
        (AddressIn(Field.SADDR, "10.0.0.0"),),
        (AddressIn(Field.PROTO, "10.0.0.0/8"),),
        (InterfaceIs("a-name-of-16-chars"),),
        (InterfaceIs("", True),),
        (Dnat("fd00::1", 80),),
        (Dnat("10.0.0.1", 65536),),
    ],
)
def test_an_invalid_rule_is_refused(rule: Rule) -> None:
    with pytest.raises(ValueError, match=r"."):
        rule_codec.encode(V4, rule)


# ---------------------------------------------------------------- messages

HEAD = "02000000 0b000100 6b70726f78790000"  # struct nfgenmsg of IPv4, NFTA_*_TABLE kproxy
CHAIN = "06000200 63000000"
MESSAGES: dict[str, tuple[Operation, int, int, str]] = {
    "add table": (AddTable("kproxy", "hi"), 0xA00, 0x400, f"{HEAD} 08000200 00000000 09000600 0003686900 000000"),
    "delete table": (DeleteTable("kproxy"), 0xA02, 0, HEAD),
    "add chain": (AddChain("kproxy", "c"), 0xA03, 0x400, f"{HEAD} 06000300 63000000"),
    "add base chain": (
        AddChain("kproxy", "c", BASES["prerouting"]),
        0xA03,
        0x400,
        f"{HEAD} 06000300 63000000 14000400 08000100 00000000 08000200 ffffff9c 08000500 00000001 08000700 6e617400",
    ),
    "delete chain": (DeleteChain("kproxy", "c"), 0xA05, 0, f"{HEAD} 06000300 63000000"),
    "flush chain": (FlushChain("kproxy", "c"), 0xA08, 0, f"{HEAD} {CHAIN}"),
    "delete set": (DeleteSet("kproxy", "c"), 0xA0B, 0, f"{HEAD} {CHAIN}"),
    "empty set": (FillSet("kproxy", Set("c", (Type.IPV4,)), [], 0), 0xA0E, 0, f"{HEAD} {CHAIN}"),
    "add elements": (
        AddElements("kproxy", Set("c", (Type.IPV4,)), [Element("c", ("10.0.0.1",))]),
        0xA0C,
        0x400,
        f"{HEAD} {CHAIN} 14000300 10000100 0c000100 08000100 0a000001",
    ),
    "delete elements": (
        DeleteElements("kproxy", Set("c", (Type.PORT,), SetKind.VERDICTS), [Element("c", (80,), Verdict("x"))]),
        0xA0E,
        0,
        f"{HEAD} {CHAIN} 14000300 10000100 0c000100 06000100 00500000",
    ),
}


@little_endian
@pytest.mark.parametrize("verb", MESSAGES)
def test_each_operation_is_encoded_as_the_header_defines_it(verb: str) -> None:
    operation, type_, flags, payload = MESSAGES[verb]
    (message,) = encoded_messages(V4, operation)
    assert (message.type, message.flags, message.payload.hex()) == (type_, flags, payload.replace(" ", ""))


# Of the set that nft 1.0.6 makes of `typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : …`.
TYPEOF = (
    "000400000000 010400000000 0360 00040d000000 0158 0014 000407000000 010c 00040c000000 01040c000000"
    "010e 000409000000 0106 000410000000 0214 000407000000 010c 00040b000000 010402000000"
    "031a 000417000000 0112 000401000000 010400000100 020400000000"
    "0434 00040d000000 012c 0014 000407000000 010c 00040c000000 01040c000000"
    "0114 000407000000 010c 00040b000000 010402000000"
)


@little_endian
def test_userdata_tells_nft_how_to_print_a_key_with_a_number() -> None:
    found = netlink.attributes(set_codec.encode(V4, sets(V4)["endpoints"]))
    assert found[13].hex() == TYPEOF.replace(" ", "")
    assert (found[4].hex(), found[6].hex()) == ("001cc344", "000001cd")


@pytest.mark.parametrize("family", Family)
def test_a_set_is_decoded_as_it_was_encoded(family: Family) -> None:
    for spec in sets(family).values():
        found = netlink.attributes(set_codec.encode(family, spec))
        assert set_codec.set_of(found) == spec


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({4: b"\0\0\0\x09"}, id="a key of another type"),
        pytest.param({3: b"\0\0\x01\0"}, id="a flag of another use"),
        pytest.param({5: b"\0\0\0\x08"}, id="a key of another length"),
    ],
)
def test_a_set_of_another_form_is_none_of_ours(change: dict[int, bytes]) -> None:
    found = netlink.attributes(set_codec.encode(V4, sets(V4)["cluster-ips"]))
    assert set_codec.set_of(found | change) is None


def test_a_chain_is_decoded_as_it_was_encoded() -> None:
    for name, base in {**BASES, "plain": None}.items():
        (message,) = encoded_messages(V4, AddChain("kproxy", name, base))
        found = netlink.attributes(message.payload, 4)
        assert codec.chain_of(found) == (name, ListedChain(base, ordinary=True))
    drops = found = netlink.attributes(encoded_messages(V4, AddChain("kproxy", "c", BASES["forward"]))[0].payload, 4)
    assert not codec.chain_of(drops | {5: bytes(4)})[1].ordinary
    assert not codec.chain_of(found | {4: netlink.be32(1, 1) + netlink.be32(2, 0)})[1].ordinary


def test_a_listed_chain_is_compared_in_every_respect() -> None:
    for chain in chains(V4):
        done = tuple(rule_codec.expressions(V4, rule) for rule in chain.rules)
        listed = ListedChain(chain.base, ordinary=True, rules=done)
        assert listed.same_as(V4, chain)
        assert not listed._replace(rules=(*done, ())).same_as(V4, chain)
        assert not listed._replace(ordinary=False).same_as(V4, chain)
        assert not listed._replace(base=BASES["output"] if chain.name != "output" else None).same_as(V4, chain)
        if done:
            assert not listed._replace(rules=((), *done[1:])).same_as(V4, chain)


# ---------------------------------------------------------------- elements

ELEMENTS: dict[str, tuple[Family, Element, str]] = {
    "verdict": (
        V4,
        Element("services", ("10.0.0.1", "tcp", 80), Verdict("lb-2"), "x"),
        "3c000100 14000100 10000100 0a000001 06000000 00500000"
        "1c000200 18000200 08000100 fffffffc 09000200 6c622d32 00000000 08000600 00027800",
    ),
    "drop": (
        V4,
        Element("services", ("10.0.0.1", "tcp", 80), Verdict()),
        "28000100 14000100 10000100 0a000001 06000000 00500000 10000200 0c000200 08000100 00000000",
    ),
    "data": (
        V4,
        Element("endpoints", ("10.0.0.1", "tcp", 80, 1), ("1.2.3.4", 80)),
        "2c000100 18000100 14000100 0a000001 06000000 00500000 01000000 10000200 0c000100 01020304 00500000",
    ),
    "range": (
        V4,
        Element("sources", ("10.0.0.1", "tcp", 80, "1.0.0.0/8")),
        "34000100 18000100 14000100 0a000001 06000000 00500000 01000000"
        "18000a00 14000100 0a000001 06000000 00500000 01ffffff",
    ),
    "network": (
        V4,
        Element("networks", ("192.168.1.8/30",)),
        "10000100 0c000100 08000100 c0a80108 18000100 0c000100 08000100 c0a8010c 08000300 00000001",
    ),
    "network at the end": (V4, Element("networks", ("128.0.0.0/1",)), "10000100 0c000100 08000100 80000000"),
    "v6": (V6, Element("cluster-ips", ("fd00::1",)), "1c000100 18000100 14000100 fd000000000000000000000000000001"),
}  # fmt: skip


@little_endian
@pytest.mark.parametrize("kind", ELEMENTS)
def test_an_element_is_encoded_as_linux_lists_it(kind: str) -> None:
    family, element, listed = ELEMENTS[kind]
    assert [data.hex() for data in coder(sets(family)[element.set]).encode([element])] == [listed.replace(" ", "")]


@given(ANY_SET.flatmap(lambda spec: st.tuples(st.just(spec), any_elements(spec))))
def test_elements_are_decoded_as_they_were_encoded(drawn: tuple[Set, list[Element]]) -> None:
    spec, given_elements = drawn
    code = coder(spec)
    encoded = code.encode(given_elements)
    assert [code.decode(data) for data in encoded] == given_elements
    if not (spec.interval and len(spec.key) == 1):  # there neighbours grow together
        assert code.join(code.listed(b"".join(encoded))) == encoded


def test_an_element_that_the_kernel_lists_with_more_is_the_same() -> None:
    code = coder(sets(V4)["endpoints"])
    (wanted,) = elements(V4)["endpoints"][:1]
    (data,) = code.encode([wanted])
    flags, padding = netlink.be32(3, 0), netlink.attribute(8, b"")
    ((_, inner),) = netlink.each_attribute(data)
    listed = netlink.nested(1, inner + flags + padding)
    assert code.listed(listed) == [data]


def test_networks_that_touch_are_kept_apart() -> None:
    code = coder(Set("networks", (Type.IPV4,), interval=True))
    wanted = [Element("networks", (cidr,)) for cidr in ("10.0.0.0/9", "10.128.0.0/9", "0.0.0.0/5", "255.0.0.0/8")]
    halves = [half for data in code.encode(wanted) for half in code.listed(data)]
    random.Random(1).shuffle(halves)
    assert sorted(code.join(halves)) == sorted(code.encode(wanted))
    assert {code.decode(data).key[0] for data in code.join(halves)} == {e.key[0] for e in wanted}


WRONG = {
    "an address of the other family": ("endpoints", Element("endpoints", ("fd00::1", "tcp", 80, 0), ("10.0.0.1", 80))),
    "a port too high": ("endpoints", Element("endpoints", ("10.0.0.1", "tcp", 65536, 0), ("10.0.0.1", 80))),
    "an unknown protocol": ("endpoints", Element("endpoints", ("10.0.0.1", "icmp", 80, 0), ("10.0.0.1", 80))),
    "a part too few": ("endpoints", Element("endpoints", ("10.0.0.1", "tcp", 80), ("10.0.0.1", 80))),
    "no data": ("endpoints", Element("endpoints", ("10.0.0.1", "tcp", 80, 0))),
    "a verdict for data": ("endpoints", Element("endpoints", ("10.0.0.1", "tcp", 80, 0), Verdict("a"))),
    "data for a verdict": ("services", Element("services", ("10.0.0.1", "tcp", 80), ("10.0.0.1", 80))),
    "a network too long": ("networks", Element("networks", ("10.0.0.0/33",))),
}


@pytest.mark.parametrize("problem", WRONG)
def test_an_invalid_element_is_refused(problem: str) -> None:
    name, element = WRONG[problem]
    with pytest.raises(ValueError, match=f"not an element of {name}"):
        coder(sets(V4)[name]).encode([*elements(V4)[name], element])


@pytest.mark.parametrize("comment", ["", "x" * 40])
def test_many_elements_take_several_messages(comment: str) -> None:
    spec = sets(V4)["endpoints"]
    many = [
        Element("endpoints", (f"10.1.{i >> 8}.{i & 255}", "tcp", 80, 0), ("10.0.0.9", 1), comment) for i in range(5000)
    ]
    messages = encoded_messages(V4, AddElements("kproxy", spec, many))
    assert len(messages) > 3
    assert [m.first for m in messages] == [sum(len(m.elements) for m in messages[:i]) for i in range(len(messages))]
    encoded = coder(spec).encode(many)
    assert [data for m in messages for data in m.elements] == encoded
    for message in messages:
        assert len(message.payload) < 65536
        start = 16 + message.payload.index(message.elements[0])
        assert message.element_at(start) == message.first
        assert message.element_at(start + len(message.elements[0])) == message.first + 1
        assert message.element_at(0) is None
    alone = list(codec.messages(V4, AddElements("kproxy", spec, many[:7]), single=True))
    assert [m.first for m in alone] == list(range(7))
