"""The kernel's nf_tables, by netlink: transactions, listings, generations and notifications.

Decides: what an error says of an operation and of an element, when a listing is whole, and what becomes of answers that
are malformed or never come. Leaves out: the bytes (kproxy.netfilter.messages), which generation a transaction expects
(kproxy.netfilter.table), and what to write (kproxy.modes.nftables).
Sources: include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nfnetlink.c, net/netfilter/nf_tables_api.c.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple, Protocol

from kproxy.errors import NetlinkError
from kproxy.kernel import netlink
from kproxy.kernel.constants import NETLINK_NETFILTER, NFPROTO
from kproxy.kernel.netlink_sockets import REFUSALS_BUFFER, Socket
from kproxy.model.plans import Family
from kproxy.netfilter import messages
from kproxy.netfilter.element_codec import coder
from kproxy.netfilter.expressions import Expressions
from kproxy.netfilter.messages import ListedChain, Message
from kproxy.netfilter.notifications import Change, Monitor
from kproxy.netfilter.objects import Element, Set
from kproxy.netfilter.operations import AddElements, DeleteElements, ElementsRefused, Operation
from kproxy.netfilter.set_codec import count_of, is_anonymous, set_of

DUMPS = 20  # of a set that the kernel is rearranging
LISTINGS = 3  # a listing that a transaction interrupts is repeated this often
NFT_FAMILY = {Family.IPV4: "ip", Family.IPV6: "ip6"}  # as nft writes it

OUTDATED = 85
"""ERESTART: the kernel is not at the expected generation. Nothing was looked at, let alone done."""

LISTED_AT_MOST = 200_000
"""Elements of a set. The time that listing takes grows with the square of their number, as the kernel walks the hash
table from its start for every 32 KiB that it lists: 0.1 s for 50,000, 1.8 s for 200,000, 43 s for 1,000,000
(Linux 6.18)."""

MALFORMED = (ValueError, KeyError, IndexError, OverflowError, struct.error)
"""What decoding raises for bytes that are not a message of nf_tables."""

Expected = int | Callable[[], int | None] | None
"""The generation that the kernel must be at, None for any. A callable is asked when all else is ready; what it raises
is passed on."""


class ListedSet(NamedTuple):
    """A set as the kernel has it.

    spec: None when it is of another form than any of ours. elements: their bytes; none of a set with a timeout, to
    which packets add elements; None when they are too many to list.
    """

    spec: Set | None
    elements: Sequence[bytes] | None = ()


class Listing(NamedTuple):
    """A table as the kernel has it. generation: at which it was read; None when transactions, on this table or on
    others, were made meanwhile."""

    generation: int | None
    chains: Mapping[str, ListedChain]
    sets: Mapping[str, ListedSet]


class Listener(Protocol):
    """Collects what others do to one table from the moment it is made. Close it after use."""

    def poll(self) -> list[Change]:
        """What others did since the last call, in order; a Change without an event stands for unknown ones. Returns at
        once. Raises NetlinkError."""

    def forget(self) -> None:
        """Drops everything up to now."""

    def close(self) -> None: ...


class Nftables(Protocol):
    """The interface to nf_tables of one network namespace that the rest of kproxy uses. For one thread at a time."""

    @property
    def bytes_written(self) -> int:
        """Bytes of all transactions so far."""

    def generation(self) -> int:
        """The number of the last transaction of anyone in this network namespace. Raises NetlinkError."""

    def apply(
        self, family: Family, operations: Sequence[Operation], expected: Expected = None
    ) -> dict[int, NetlinkError]:
        """Applies OPERATIONS in one transaction: all of them, or none.

        Returns what the kernel refused, by index of the operation, for elements as ElementsRefused; nothing when all is
        done. An operation may be refused because of an earlier one. Raises NetlinkError when the kernel did not look at
        them (errno OUTDATED: it is at another generation), refused them without saying which, or did not answer.
        """

    def check(
        self, family: Family, operations: Sequence[Operation], expected: Expected = None
    ) -> dict[int, NetlinkError]:
        """What `apply` would return, without doing it. Raises NetlinkError."""

    def listing(self, family: Family, table: str, sizes: Mapping[str, int] = MappingProxyType({})) -> Listing | None:
        """What TABLE holds, None when there is no such table. Raises NetlinkError.

        sizes: of sets with plain keys that are expected to hold so many elements: beyond LISTED_AT_MOST they are not
        listed.
        """

    def listen(self, family: Family, table: str) -> Listener:
        """Starts to collect what others do to TABLE; transactions made by `apply` are not reported. Raises
        NetlinkError."""


class KernelNftables:
    """The kernel's nf_tables, of the network namespace of the thread that makes it. Close it after use.

    An answer that is malformed or does not come is a NetlinkError; the next request works again.
    """

    def __init__(self) -> None:
        """Raises NetlinkError where the kernel has no netfilter by netlink."""
        self._socket = Socket(NETLINK_NETFILTER, buffer=REFUSALS_BUFFER, brief=True)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> KernelNftables:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def portid(self) -> int:
        """The netlink port id that the kernel's notifications give as the author of transactions made here."""
        return self._socket.portid

    @property
    def bytes_written(self) -> int:
        return self._socket.sent

    def generation(self) -> int:
        return generation(self._socket)

    def apply(
        self, family: Family, operations: Sequence[Operation], expected: Expected = None
    ) -> dict[int, NetlinkError]:
        return self._transact(family, operations, expected, commit=True)

    def check(
        self, family: Family, operations: Sequence[Operation], expected: Expected = None
    ) -> dict[int, NetlinkError]:
        return self._transact(family, operations, expected, commit=False)

    def listing(self, family: Family, table: str, sizes: Mapping[str, int] = MappingProxyType({})) -> Listing | None:
        with decoding(f"list table {table}"):
            for _ in range(LISTINGS):
                before = generation(self._socket)
                if (found := self._listed(family, table, sizes)) is None:
                    return None
                if generation(self._socket) == before:
                    return found._replace(generation=before)
            return found

    def chain_names(self, family: Family, table: str) -> list[str]:
        """The names of the chains of any TABLE, none where there is no such table. Raises NetlinkError."""
        with decoding(f"list chains of table {table}"):
            return [messages.chain_of(attributes)[0] for attributes in self._dump(family, messages.GETCHAIN, table)]

    def encoded_rules(self, family: Family, table: str, chain: str) -> list[bytes]:
        """The bytes of each rule of CHAIN, whatever it consists of. Raises NetlinkError."""
        with decoding(f"list rules of table {table}"):
            return [
                b"".join(attributes.values())
                for attributes in self._dump(family, messages.GETRULE, table)
                if netlink.to_text(attributes[messages.RULE_CHAIN]) == chain
            ]

    def listen(self, family: Family, table: str) -> Monitor:
        place, ours = (NFT_FAMILY[family], table), self.portid
        return Monitor(lambda writer: writer == ours, [place], lambda event: True, by_portid=True, detailed=True)

    def counts(self, family: Family, table: str, chain: str) -> list[int]:
        """The packets that the rules of CHAIN counted, in their order, without those that do not count; empty when
        there is no such chain. Raises NetlinkError."""
        with decoding(f"read the counters of {table} {chain}"):
            rules = [
                attributes
                for attributes in self._dump(family, messages.GETRULE, table, chain)
                if netlink.to_text(attributes.get(messages.RULE_CHAIN, b"")) == chain
            ]
            return [count for attributes in rules if (count := messages.counted(attributes)) is not None]

    # ---- writing

    def _transact(
        self, family: Family, operations: Sequence[Operation], expected: Expected, commit: bool
    ) -> dict[int, NetlinkError]:
        encoded, errors = _encode(family, operations, range(len(operations)), single=False)
        if errors or not encoded:
            return errors
        generation = expected() if callable(expected) else expected
        refused = self._send(encoded, generation, commit)
        vague = [i for i, found in refused.items() if any(len(m.elements) > 1 for m, _ in found)]
        if vague:  # the kernel stops at the first wrong element of a message
            alone, _ = _encode(family, operations, vague, single=True)
            refused |= {i: found for i, found in self._send(alone, generation, commit=False).items() if i in vague}
        return {i: _error(operations[i], found) for i, found in refused.items()}

    def _send(
        self, encoded: Sequence[tuple[int, Message]], generation: int | None, commit: bool
    ) -> dict[int, list[tuple[Message, NetlinkError]]]:
        parts = [message[:3] for _, message in encoded]
        request = "change nf_tables"
        with decoding(request):
            errors = self._socket.transact(messages.SUBSYSTEM, parts, request, generation, commit)
        refused: dict[int, list[tuple[Message, NetlinkError]]] = {}
        for at, error in sorted(errors.items()):
            index, message = encoded[at]
            refused.setdefault(index, []).append((message, error))
        return refused

    # ---- reading

    def _listed(self, family: Family, table: str, sizes: Mapping[str, int]) -> Listing | None:
        named = netlink.text(messages.TABLE, table)
        try:
            self._socket.ask(
                messages.SUBSYSTEM << 8 | messages.GETTABLE,
                netlink.netfilter(NFPROTO[family]) + named,
                f"look for table {table}",
            )
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        sets = {}
        for attributes in self._dump(family, messages.GETSET, table):
            if not is_anonymous(attributes):
                name = netlink.to_text(attributes[messages.OBJECT_NAME])
                size = max(sizes[name], count_of(attributes)) if name in sizes else 0
                sets[name] = self._listed_set(family, table, set_of(attributes), size)
        return Listing(None, self._listed_chains(family, table), sets)

    def _listed_set(self, family: Family, table: str, spec: Set | None, size: int) -> ListedSet:
        if spec is None or spec.timeout:
            return ListedSet(spec)
        if size > LISTED_AT_MOST:
            return ListedSet(spec, None)
        code = coder(spec)
        for _ in range(DUMPS):
            found: list[bytes] = []
            for attributes in self._dump(family, messages.GETSETELEM, table, spec.name):
                found += code.listed(attributes.get(messages.ELEMENTS, b""))
            # The kernel lists by place in a hash table, which it rearranges some time after it grew: then it lists some
            # elements twice, and others not at all.
            if len(set(found)) == len(found):
                return ListedSet(spec, code.join(found))
        raise NetlinkError(f"list set {table} {spec.name}", errno.EAGAIN)

    def _listed_chains(self, family: Family, table: str) -> dict[str, ListedChain]:
        chains = dict(messages.chain_of(attributes) for attributes in self._dump(family, messages.GETCHAIN, table))
        rules: dict[str, list[Expressions]] = {name: [] for name in chains}
        for attributes in self._dump(family, messages.GETRULE, table):
            name, rule = messages.rule_of(attributes)
            rules.setdefault(name, []).append(rule)
        return {name: chain._replace(rules=tuple(rules[name])) for name, chain in chains.items()}

    def _dump(self, family: Family, number: int, table: str, name: str = "") -> Iterator[dict[int, bytes]]:
        """The attributes of each thing in TABLE that message NUMBER asks for; of elements, those of set NAME; of rules,
        those of chain NAME, if the kernel looks at it."""
        payload = netlink.netfilter(NFPROTO[family]) + netlink.text(messages.TABLE, table)
        if name:
            payload += netlink.text(messages.OBJECT_NAME, name)
        kind = messages.SUBSYSTEM << 8 | number
        for data in self._socket.dump(kind, payload, f"list table {table}"):
            for answer in netlink.messages(data):
                if answer.type == kind - 1:  # the answer to a request to get is a new one
                    attributes = netlink.attributes(answer.payload, start=4)
                    if netlink.to_text(attributes.get(messages.TABLE, b"")) == table:  # not every kernel looks at it
                        yield attributes


def generation(kernel: Socket | None = None) -> int:
    """The number of the last nf_tables transaction in this network namespace, whatever it changed.

    kernel: a socket to ask by, else one is opened. Raises NetlinkError.
    """
    if kernel is None:
        with Socket(NETLINK_NETFILTER) as opened:
            return generation(opened)
    request = "read the nf_tables generation"
    with decoding(request):
        for answer in kernel.ask(messages.SUBSYSTEM << 8 | messages.GETGEN, netlink.netfilter(0), request):
            if answer.type == messages.SUBSYSTEM << 8 | messages.NEWGEN:
                return netlink.to_int(netlink.attributes(answer.payload, start=4)[messages.GENERATION_ID])
    raise NetlinkError(request, errno.ENOMSG)


@contextmanager
def decoding(request: str) -> Iterator[None]:
    """Raises a NetlinkError when decoding finds the answer malformed. REQUEST: words for the message."""
    try:
        yield
    except MALFORMED as error:
        raise NetlinkError(request, errno.EBADMSG, f"the answer is malformed: {error}") from error


def _encode(
    family: Family, operations: Sequence[Operation], indices: Collection[int], single: bool
) -> tuple[list[tuple[int, Message]], dict[int, NetlinkError]]:
    """The messages of all operations with their indices; those at INDICES, if `single`, with one element each."""
    encoded: list[tuple[int, Message]] = []
    errors: dict[int, NetlinkError] = {}
    for index, operation in enumerate(operations):
        try:
            encoded += [(index, m) for m in messages.messages(family, operation, single and index in indices)]
        except (*MALFORMED, AttributeError, TypeError) as error:
            errors[index] = _meaningless(operation, error)
    return encoded, errors


def _meaningless(operation: Operation, error: Exception) -> NetlinkError:
    """Why OPERATION cannot be encoded."""
    if not isinstance(operation, AddElements | DeleteElements):
        return NetlinkError(str(operation), errno.EINVAL, str(error))
    wrong: dict[int, NetlinkError] = {}
    for index, element in enumerate(operation.elements):
        try:
            coder(operation.set).encode([element], isinstance(operation, DeleteElements))
        except ValueError as reason:
            wrong[index] = NetlinkError(_element_request(operation, element), errno.EINVAL, str(reason))
    return ElementsRefused(str(operation), wrong) if wrong else NetlinkError(str(operation), errno.EINVAL, str(error))


def _error(operation: Operation, found: Sequence[tuple[Message, NetlinkError]]) -> NetlinkError:
    """One error of OPERATION from those of its messages."""
    request, (message, first) = str(operation), found[0]
    if not isinstance(operation, AddElements | DeleteElements) or not message.elements:
        return NetlinkError(request, first.errno, first.detail, first.offset)
    wrong: dict[int, NetlinkError] = {}
    for message, error in found:
        if (index := message.element_at(error.offset)) is not None:
            request = _element_request(operation, operation.elements[index])
            wrong[index] = NetlinkError(request, error.errno, error.detail, error.offset)
    return ElementsRefused(str(operation), wrong) if wrong else NetlinkError(request, first.errno, first.detail)


def _element_request(operation: AddElements | DeleteElements, element: Element) -> str:
    verb = "add" if isinstance(operation, AddElements) else "delete"
    return f"{verb} element {operation.set.name} {' . '.join(map(str, element.key))}"
