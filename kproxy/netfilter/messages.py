"""Encodes operations as netlink messages of nf_tables, and decodes the kernel's listings of chains and rules. Pure.

Decides: which messages an operation becomes, and how many elements go into one. Leaves out: sets, rules and elements
themselves (the codec modules of this package), and sending (kproxy.netfilter.kernel).
Sources: include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from kproxy.kernel import netlink
from kproxy.kernel.constants import NFNL_SUBSYS_NFTABLES, NFPROTO
from kproxy.model.plans import Family
from kproxy.netfilter import element_codec, rule_codec, set_codec
from kproxy.netfilter import expressions as nft
from kproxy.netfilter.expressions import Expressions
from kproxy.netfilter.objects import BaseChain, Chain, Element, Hook, Set
from kproxy.netfilter.operations import (
    AddChain,
    AddElements,
    AddRules,
    AddSet,
    AddTable,
    DeleteChain,
    DeleteElements,
    DeleteSet,
    DeleteTable,
    FillSet,
    FlushChain,
    Operation,
)

SUBSYSTEM = NFNL_SUBSYS_NFTABLES
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE = range(9)  # NFT_MSG_*
NEWSET, GETSET, DELSET, NEWSETELEM, GETSETELEM, DELSETELEM, NEWGEN, GETGEN = range(9, 17)
NLM_F_APPEND = 0x800
CREATE = netlink.NLM_F_CREATE

TABLE, OBJECT_NAME = 1, 2  # attribute 1 names the table in all messages, attribute 2 the chain or set in most
TABLE_COMMENT = 6  # NFTA_TABLE_USERDATA
CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE = 3, 4, 5, 7  # NFTA_CHAIN_*
HOOK_NUMBER, HOOK_PRIORITY = 1, 2  # NFTA_HOOK_*
ACCEPT = 1  # NF_ACCEPT
RULE_CHAIN, RULE_HANDLE, RULE_EXPRESSIONS = 2, 3, 4  # NFTA_RULE_*
ELEMENTS, GENERATION_ID = 3, 1  # NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_GEN_ID

HEADER_BYTES = 16  # struct nlmsghdr
HOOKS = {Hook.PREROUTING: 0, Hook.FORWARD: 2, Hook.OUTPUT: 3, Hook.POSTROUTING: 4}  # enum nf_inet_hooks
HOOK_OF = {number: hook for hook, number in HOOKS.items()}


class Message(NamedTuple):
    """A message: its type and flags, and what follows its header.

    first: the index of the first of the operation's elements in it; elements: the bytes of those elements, with which
    the payload ends; none in a message about something else.
    """

    type: int
    flags: int
    payload: bytes
    first: int = 0
    elements: Sequence[bytes] = ()

    def element_at(self, offset: int) -> int | None:
        """The index, in the operation, of the element at OFFSET from the start of the message; None for no element."""
        if len(self.elements) == 1:
            return self.first
        at = HEADER_BYTES + len(self.payload) - sum(map(len, self.elements))
        for index, data in enumerate(self.elements, self.first):
            if at <= offset < at + len(data):
                return index
            at += len(data)
        return None


def messages(family: Family, operation: Operation, single: bool = False) -> Iterator[Message]:
    """Encodes OPERATION. single: one element per message. Raises ValueError for invalid values."""
    match operation:
        case AddTable(table, comment):
            named = netlink.text(TABLE, table) + netlink.be32(2, 0)
            yield _message(family, NEWTABLE, named + element_codec.comment_data(TABLE_COMMENT, comment), CREATE)
        case DeleteTable(table):
            yield _message(family, DELTABLE, netlink.text(TABLE, table))
        case AddChain(table, chain, base):
            named = netlink.text(TABLE, table) + netlink.text(CHAIN_NAME, chain)
            yield _message(family, NEWCHAIN, named + (_hooked(base) if base else b""), CREATE)
        case FlushChain(table, chain):
            yield _message(family, DELRULE, _named(table, chain))
        case DeleteChain(table, chain):
            yield _message(family, DELCHAIN, netlink.text(TABLE, table) + netlink.text(CHAIN_NAME, chain))
        case AddRules(table, chain, rules):
            for rule in rules:
                listed = netlink.attribute(RULE_EXPRESSIONS, rule_codec.encode(family, rule))
                yield _message(family, NEWRULE, _named(table, chain) + listed, CREATE | NLM_F_APPEND)
        case AddSet(table, spec):
            yield _message(family, NEWSET, netlink.text(TABLE, table) + set_codec.encode(family, spec), CREATE)
        case DeleteSet(table, name):
            yield _message(family, DELSET, _named(table, name))
        case FillSet(table, spec, encoded):
            yield _message(family, DELSETELEM, _named(table, spec.name))
            for part in encoded:
                listed = netlink.attribute(ELEMENTS, part)
                yield _message(family, NEWSETELEM, _named(table, spec.name) + listed, CREATE)
        case AddElements(table, spec, members):
            yield from _filled(family, (NEWSETELEM, CREATE), _named(table, spec.name), spec, members, single)
        case DeleteElements(table, spec, members):
            yield from _filled(family, (DELSETELEM, 0), _named(table, spec.name), spec, members, single)


def _message(family: Family, number: int, attributes: bytes, flags: int = 0) -> Message:
    return Message(SUBSYSTEM << 8 | number, flags, netlink.netfilter(NFPROTO[family]) + attributes)


def _named(table: str, name: str) -> bytes:
    return netlink.text(TABLE, table) + netlink.text(OBJECT_NAME, name)


def _hooked(base: BaseChain) -> bytes:
    priority = base.priority & 0xFFFFFFFF
    hook = netlink.be32(HOOK_NUMBER, HOOKS[base.hook]) + netlink.be32(HOOK_PRIORITY, priority)
    return (
        netlink.attribute(CHAIN_HOOK, hook) + netlink.be32(CHAIN_POLICY, ACCEPT) + netlink.text(CHAIN_TYPE, base.type)
    )


def _filled(
    family: Family, kind: tuple[int, int], named: bytes, spec: Set, members: Sequence[Element], single: bool
) -> Iterator[Message]:
    encoded = element_codec.coder(spec).encode(members, keys_only=kind[0] == DELSETELEM)
    start = 0
    while start < len(encoded):
        end = start + 1 if single else element_codec.fitting(encoded, start)
        listed = netlink.attribute(ELEMENTS, b"".join(encoded[start:end]))
        payload = netlink.netfilter(NFPROTO[family]) + named + listed
        yield Message(SUBSYSTEM << 8 | kind[0], kind[1], payload, start, encoded[start:end])
        start = end


# ---------------------------------------------------------------- listings


class ListedChain(NamedTuple):
    """A chain as the kernel has it. base: None for one that is not called by a hook. ordinary: False for a base chain
    with a hook that kproxy does not use, or another policy than accept."""

    base: BaseChain | None
    ordinary: bool
    rules: tuple[Expressions, ...] = ()

    def same_as(self, family: Family, chain: Chain) -> bool:
        """Whether it is equivalent to CHAIN. Raises ValueError for an invalid rule."""
        if not self.ordinary or self.base != chain.base or len(self.rules) != len(chain.rules):
            return False
        wanted = (rule_codec.expressions(family, rule) for rule in chain.rules)
        return all(rule == other for rule, other in zip(wanted, self.rules, strict=True))


def chain_of(attributes: Mapping[int, bytes]) -> tuple[str, ListedChain]:
    """Decodes a listed chain: its name and form, without its rules."""
    name = netlink.to_text(attributes.get(CHAIN_NAME, b""))
    if CHAIN_HOOK not in attributes:
        return name, ListedChain(None, True)
    hook = netlink.attributes(attributes[CHAIN_HOOK])
    found = HOOK_OF.get(netlink.to_int(hook.get(HOOK_NUMBER, b"")))
    if found is None:
        return name, ListedChain(None, False)
    priority = int.from_bytes(hook.get(HOOK_PRIORITY, b""), "big", signed=True)
    type_ = netlink.to_text(attributes.get(CHAIN_TYPE, b""))
    accepts = netlink.to_int(attributes.get(CHAIN_POLICY, b"")) == ACCEPT
    return name, ListedChain(BaseChain(type_, found, priority), accepts)


def counted(attributes: Mapping[int, bytes]) -> int | None:
    """The packets that a listed rule counted; None when it counts none."""
    return nft.counted(attributes.get(RULE_EXPRESSIONS, b""))


def rule_of(attributes: Mapping[int, bytes]) -> tuple[str, Expressions]:
    """Decodes a listed rule: the name of its chain, and its expressions."""
    chain = netlink.to_text(attributes.get(RULE_CHAIN, b""))
    return chain, nft.canonical(attributes.get(RULE_EXPRESSIONS, b""))
