"""The nf_tables rules of a network namespace, whoever wrote them, read by netlink as they are asked for.

Decides: what is read and when, so that a packet's path through a table of 100,000 chains costs the chains on that path.
Leaves out: what expressions mean (kproxy.trace). Nothing is ever written.
Sources: include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Mapping

from kproxy.errors import NetlinkError
from kproxy.kernel import netlink
from kproxy.kernel.constants import NETLINK_NETFILTER
from kproxy.kernel.netlink_sockets import Socket
from kproxy.netfilter import expressions as nft
from kproxy.netfilter import messages
from kproxy.netfilter.kernel import decoding, generation
from kproxy.netfilter.live_rules import Data, Expression, HookedChain, LiveRule, Place
from kproxy.netfilter.set_codec import SET_KEY_LEN

PROTOCOLS = {"inet": 1, "ip": 2, "ip6": 10}
"""Families of tables whose hooks IP packets pass (NFPROTO_*)."""
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")  # enum nf_inet_hooks
RULE_USERDATA, COMMENT = 7, 0  # NFTA_RULE_USERDATA, NFTNL_UDATA_RULE_COMMENT (and ..._SET_ELEM_COMMENT)
ELEM_KEY, ELEM_DATA, ELEM_USERDATA = 1, 2, 6  # NFTA_SET_ELEM_*
DROP = 0  # NF_DROP
DATA = {"cmp": (3,), "immediate": (2,), "bitwise": (4, 5, 7), "range": (3, 4)}
"""The attributes of expressions that hold a value or a verdict."""


class Ruleset:
    """The rules of the network namespace of the thread that makes it. Close it after use. Every method raises
    NetlinkError."""

    def __init__(self) -> None:
        self._socket = Socket(NETLINK_NETFILTER)
        self._chains: list[HookedChain] | None = None
        self._names: dict[Place, set[str]] = {}
        self._rules: dict[tuple[Place, str], tuple[LiveRule, ...]] = {}
        self._elements: dict[tuple[Place, str, bytes], Data | None] = {}
        self._lengths: dict[tuple[Place, str], int] = {}
        self.generation = generation(self._socket)
        """The generation at which reading began."""

    def close(self) -> None:
        self._socket.close()

    def changed(self) -> bool:
        """Whether anybody wrote to nf_tables since reading began, so that the parts may not belong together."""
        return generation(self._socket) != self.generation

    def base_chains(self) -> list[HookedChain]:
        """All base chains that IP packets pass, in the order of their priority."""
        if self._chains is None:
            found = [chain for family in PROTOCOLS for chain in self._hooked(family)]
            self._chains = sorted(found, key=lambda chain: chain.priority)
        return self._chains

    def chain_names(self, place: Place) -> Collection[str]:
        """The names of all chains of a table."""
        self.base_chains()
        return self._names.get(place, ())

    def rules(self, place: Place, chain: str) -> tuple[LiveRule, ...]:
        """The rules of a chain, in order."""
        known = self._rules.get((place, chain))
        if known is None:
            named = netlink.text(messages.TABLE, place.table) + netlink.text(messages.RULE_CHAIN, chain)
            listed = self._dump(place.family, messages.GETRULE, named)
            known = tuple(_rule(each) for each in listed if _is_in(each, place.table, chain))
            self._rules[place, chain] = known
        return known

    def key_length(self, place: Place, name: str) -> int:
        """The length of a set's keys in bytes."""
        if (place, name) not in self._lengths:
            payload = netlink.netfilter(PROTOCOLS[place.family]) + netlink.text(messages.TABLE, place.table)
            payload += netlink.text(messages.OBJECT_NAME, name)
            request = f"look for set {place.table} {name}"
            answers = self._socket.ask(messages.SUBSYSTEM << 8 | messages.GETSET, payload, request)
            with decoding(request):
                attributes = netlink.attributes(answers[0].payload, start=4)
                self._lengths[place, name] = netlink.to_int(attributes[SET_KEY_LEN])
        return self._lengths[place, name]

    def element(self, place: Place, name: str, key: bytes) -> Data | None:
        """What a set or map has for a key: its data, without a value for a set; None when the key is not in it."""
        at = place, name, key
        if at not in self._elements:
            self._elements[at] = self._element(*at)
        return self._elements[at]

    # ---- requests

    def _hooked(self, family: str) -> Iterator[HookedChain]:
        for attributes in self._dump(family, messages.GETCHAIN, b""):
            place = Place(family, netlink.to_text(attributes[messages.TABLE]))
            name = netlink.to_text(attributes[messages.CHAIN_NAME])
            self._names.setdefault(place, set()).add(name)
            if messages.CHAIN_HOOK in attributes:
                hook = netlink.attributes(attributes[messages.CHAIN_HOOK])
                number = netlink.to_int(hook.get(messages.HOOK_NUMBER, b""))
                yield HookedChain(
                    place,
                    name,
                    netlink.to_text(attributes.get(messages.CHAIN_TYPE, b"")),
                    HOOKS[number] if number < len(HOOKS) else "ingress",
                    int.from_bytes(hook.get(messages.HOOK_PRIORITY, b""), "big", signed=True),
                    netlink.to_int(attributes.get(messages.CHAIN_POLICY, b"\1")) == DROP,
                )

    def _element(self, place: Place, name: str, key: bytes) -> Data | None:
        wanted = netlink.nested(nft.LIST_ELEM, netlink.nested(ELEM_KEY, netlink.attribute(nft.DATA_VALUE, key)))
        payload = netlink.netfilter(PROTOCOLS[place.family]) + netlink.text(messages.TABLE, place.table)
        payload += netlink.text(messages.OBJECT_NAME, name) + netlink.nested(messages.ELEMENTS, wanted)
        request = f"look up an element of set {place.table} {name}"
        try:
            answers = self._socket.ask(messages.SUBSYSTEM << 8 | messages.GETSETELEM, payload, request)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        with decoding(request):
            for answer in answers:
                attributes = netlink.attributes(answer.payload, start=4)
                for _, element in netlink.each_attribute(attributes.get(messages.ELEMENTS, b"")):
                    parts = netlink.attributes(element)
                    data = data_of(parts[ELEM_DATA]) if ELEM_DATA in parts else Data()
                    return data._replace(comment=_comment(parts.get(ELEM_USERDATA, b"")))
        return None

    def _dump(self, family: str, number: int, named: bytes) -> Iterator[dict[int, bytes]]:
        kind = messages.SUBSYSTEM << 8 | number
        request = f"list rules of family {family}"
        chunks = self._socket.dump(kind, netlink.netfilter(PROTOCOLS[family]) + named, request)
        with decoding(request):
            for data in chunks:
                for answer in netlink.messages(data):
                    if answer.type == kind - 1:  # the answer to a request to get is a new one
                        yield netlink.attributes(answer.payload, start=4)


def data_of(payload: bytes) -> Data:
    """Decodes struct nft_data as an attribute holds it. Raises ValueError."""
    parts = netlink.attributes(payload)
    if nft.DATA_VALUE in parts:
        return Data(parts[nft.DATA_VALUE])
    verdict = netlink.attributes(parts.get(nft.DATA_VERDICT, b""))
    code = int.from_bytes(verdict.get(nft.VERDICT_CODE, b""), "big", signed=True)
    return Data(b"", code, netlink.to_text(verdict.get(nft.VERDICT_CHAIN, b"")))


def _is_in(attributes: Mapping[int, bytes], table: str, chain: str) -> bool:
    """Whether a listed rule is of this chain: not every kernel filters by it."""
    at = (netlink.to_text(attributes.get(kind, b"")) for kind in (messages.TABLE, messages.RULE_CHAIN))
    return tuple(at) == (table, chain)


def _rule(attributes: Mapping[int, bytes]) -> LiveRule:
    found = []
    for _, each in netlink.each_attribute(attributes.get(messages.RULE_EXPRESSIONS, b"")):
        parts = netlink.attributes(each)
        name = netlink.to_text(parts.get(nft.EXPR_NAME, b""))
        values = netlink.attributes(parts.get(nft.EXPR_DATA, b""))
        nested = DATA.get(name, ())
        found.append(Expression(name, values, {n: data_of(value) for n, value in values.items() if n in nested}))
    return LiveRule(tuple(found), _comment(attributes.get(RULE_USERDATA, b"")))


def _comment(userdata: bytes) -> str:
    """The comment in a rule's or element's userdata, which are nft's own: type, length, value (libnftnl, udata.h)."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == COMMENT:
            return netlink.to_text(userdata[at + 2 : at + 2 + length])
        at += 2 + length
    return ""
