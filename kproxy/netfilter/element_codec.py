"""Encodes and decodes elements of sets and maps, tens of thousands at a time. Pure.

Decides: the layout of keys, ranges, data and comments in an element. Leaves out: the messages that carry elements
(kproxy.netfilter.messages).
Sources: include/uapi/linux/netfilter/nf_tables.h, nf_tables_fill_setelem() of net/netfilter/nf_tables_api.c.

An element's bytes are those that the kernel lists: equal elements have equal bytes, so most are compared without being
decoded. Elements of a map with plain keys have all the same length and are packed by column, by one call of C for each.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from operator import attrgetter, itemgetter
from typing import Any, overload

from kproxy.kernel import netlink
from kproxy.model.plans import Endpoint
from kproxy.netfilter import expressions as nft
from kproxy.netfilter.element_fields import FORMATS, WRITERS, Fields, host_number, range_text, width
from kproxy.netfilter.objects import Data, Element, Key, Set, SetKind, Type, Verdict

ELEMENTS_BYTES = 65000
"""Most bytes of elements in one message: an attribute counts its length in 16 bits."""


KEY, DATA, FLAGS, USERDATA, KEY_END = 1, 2, 3, 6, 10  # NFTA_SET_ELEM_*
VALUE, VERDICT = nft.DATA_VALUE, nft.DATA_VERDICT
INTERVAL_END = netlink.be32(FLAGS, 1)  # NFT_SET_ELEM_INTERVAL_END
COMMENT_LIMIT = 127  # NFTNL_UDATA_COMMENT_MAXLEN of nft, without the NUL


_HEADER = struct.Struct("=HH")
_UNWRITABLE = (KeyError, OSError, OverflowError, TypeError, AttributeError, struct.error, ValueError)
_of_key: Callable[[Element], Key] = attrgetter("key")
_of_data: Callable[[Element], Any] = attrgetter("data")
_of_comment: Callable[[Element], str] = attrgetter("comment")
_of_ip: Callable[[Endpoint], str] = attrgetter("ip")
_of_port: Callable[[Endpoint], int] = attrgetter("port")


def fitting(encoded: Sequence[bytes], start: int) -> int:
    """The end of the elements that fit into one message with the one at `start`."""
    likely = min(len(encoded), start + max(ELEMENTS_BYTES // len(encoded[start]), 1))
    if sum(map(len, encoded[start:likely])) <= ELEMENTS_BYTES:  # most have the same size
        return likely
    sizes = [*itertools.accumulate(map(len, encoded[start:likely]))]
    return start + max(bisect.bisect_right(sizes, ELEMENTS_BYTES), 1)


def packed(encoded: Sequence[bytes]) -> Iterator[bytes]:
    """ENCODED joined into the contents of messages, as many elements in each as fit."""
    start = 0
    while start < len(encoded):
        end = fitting(encoded, start)
        yield b"".join(encoded[start:end])
        start = end


@functools.lru_cache(maxsize=256)
def coder(spec: Set) -> Coder:
    """The Coder of `spec`, which is cached."""
    return Coder(spec)


class Encoded(Sequence[Element]):
    """Elements of one set, kept as the bytes that `Coder.encode` returns, and decoded on access."""

    __slots__ = ("data", "spec")

    def __init__(self, spec: Set, data: Sequence[bytes]) -> None:
        self.spec, self.data = spec, data

    def __len__(self) -> int:
        return len(self.data)

    @overload
    def __getitem__(self, at: int) -> Element: ...

    @overload
    def __getitem__(self, at: slice) -> Encoded: ...

    def __getitem__(self, at: int | slice) -> Element | Encoded:
        if isinstance(at, slice):
            return Encoded(self.spec, self.data[at])
        return coder(self.spec).decode(self.data[at])


class Coder:
    """Encodes and decodes the elements of one set."""

    def __init__(self, spec: Set) -> None:
        self.spec = spec
        self._fields = Fields(spec.key)
        self._data = Fields(spec.data)
        self._ranges = spec.interval and len(spec.key) > 1  # a key with an end of its own (pipapo)
        self._boundaries = spec.interval and len(spec.key) == 1  # an element at each end (rbtree)
        self._uniform = not spec.interval and spec.kind is not SetKind.VERDICTS
        self._middle = _value_head(DATA, width(spec.data)) if spec.data else b""
        middle = f"{len(self._middle)}s" if self._middle else ""
        self._packer = struct.Struct(f">12s{self._fields.padded}{middle}{self._data.padded}")
        self._key_packer = struct.Struct(f">12s{self._fields.padded}")
        self._key_head = _value_head(KEY, width(spec.key))
        self._head = _HEADER.pack(self._packer.size, nft.LIST_ELEM) + self._key_head
        self._front = [WRITERS[type_] for type_ in spec.key[:-1]]
        self._front_packer = struct.Struct(f">12s{''.join(FORMATS[type_] for type_ in spec.key[:-1])}")
        self._slot_packer = struct.Struct(f">{self._front_packer.size}s{4 + len(self._middle)}s{self._data.padded}")
        self._slots: list[bytes] = []  # each with the bytes between key and data

    def encode(self, elements: Sequence[Element], keys_only: bool = False) -> list[bytes]:
        """The bytes of each of `elements`. keys_only: as for a deletion. Raises ValueError for an invalid element."""
        if isinstance(elements, Encoded) and not keys_only:
            return list(elements.data)
        try:
            if self.spec.interval:
                return [self._range(element, keys_only) for element in elements]
            if keys_only:
                return self._keys(elements)
            if self._uniform and not any(map(_of_comment, elements)):
                return self._columns(elements)
            return self._mixed(elements)
        except _UNWRITABLE as error:
            raise ValueError(f"not an element of {self.spec.name}: {error}") from None

    def slots(self, key: Key, ends: Sequence[Endpoint]) -> list[bytes]:
        """Encodes elements KEY . 0, KEY . 1 … with the addresses and ports of `ends`. Raises ValueError.

        Only for a map of plain keys that end with a slot to addresses and ports.
        """
        last = self.spec.key[-1]
        if (
            last is not Type.SLOT
            or len(self.spec.data) != 2
            or self.spec.data[1] is not Type.PORT
            or self.spec.interval
        ):
            raise ValueError(f"{self.spec.name} has no slots")
        while len(self._slots) < len(ends):
            self._slots.append(host_number(len(self._slots)) + self._middle)
        try:
            front = self._front_packer.pack(self._head, *[write(p) for write, p in zip(self._front, key, strict=True)])
            ips = map(WRITERS[self.spec.data[0]], map(_of_ip, ends))
            return list(map(self._slot_packer.pack, repeat(front), self._slots, ips, map(_of_port, ends)))
        except _UNWRITABLE as error:
            raise ValueError(f"not an element of {self.spec.name}: {error}") from None

    def repeated(self, values: Sequence[Any]) -> list[bytes]:
        """Encodes elements of a plain set whose fields are all the same, one for each of `values`, as `encode` does.
        Raises ValueError."""
        if self.spec.interval or self.spec.kind is not SetKind.SET or len(set(self.spec.key)) != 1:
            raise ValueError(f"{self.spec.name} has no such keys")
        try:
            written = list(map(WRITERS[self.spec.key[0]], values))
            return list(map(self._packer.pack, repeat(self._head), *[written] * len(self.spec.key)))
        except _UNWRITABLE as error:
            raise ValueError(f"not an element of {self.spec.name}: {error}") from None

    def decode(self, data: bytes) -> Element:
        """The element whose bytes, as `encode` returns them, are DATA. Raises ValueError."""
        try:
            return self._decode(data)
        except (LookupError, OverflowError, StopIteration, struct.error) as error:
            raise ValueError(f"not an element of {self.spec.name}: {error!r}") from None

    def _decode(self, data: bytes) -> Element:
        _, first = next(netlink.each_attribute(data))
        parts = netlink.attributes(first)
        key = _value(parts[KEY])
        if self._boundaries:
            ends = [_value(netlink.attributes(end)[KEY]) for _, end in netlink.each_attribute(data)][1:]
            last = _previous(ends[0]) if ends else b"\xff" * len(key)
            text: Key = (range_text(key, last),)
        elif self._ranges:
            text = self._fields.read_ranges(key, _value(parts.get(KEY_END, parts[KEY])))
        else:
            text = self._fields.read(key)
        return Element(self.spec.name, text, self._read_data(parts.get(DATA)), comment_of(parts.get(USERDATA, b"")))

    def listed(self, data: bytes) -> list[bytes]:
        """The bytes of each element in DATA, the list of one of the kernel's messages, as `encode` returns them.

        In an interval set of one field these are boundaries, see `join`. Raises ValueError.
        """
        size = self._packer.size
        if self._uniform and len(data) % size == 0:
            found = [data[at : at + size] for at in range(0, len(data), size)]
            if self._regular(found):
                return found
        if not self.spec.interval:
            found = _sliced(data)
            if found and found[0] == _canonical(found[0][_HEADER.size :]):
                return found  # this kernel lists them all alike; an exception would only be written again
        return [_canonical(element) for _, element in netlink.each_attribute(data)]

    def join(self, listed: Sequence[bytes]) -> list[bytes]:
        """The elements of all lists of a set's dump; where the kernel keeps boundaries, they become ranges."""
        if not self._boundaries:
            return list(listed)
        found: list[bytes] = []
        at = after = b""  # the boundary last seen, and the one after it
        for (key, is_end), data in sorted(((_boundary(data), data) for data in listed), reverse=True):
            if key != at:
                at, after = key, at
            if not is_end:
                found.append(data + (self._end(after) if after else b""))
        return found

    # ---- writing

    def _columns(self, elements: Sequence[Element]) -> list[bytes]:
        columns: list[Iterable[Any]] = [
            repeat(self._head, len(elements)),
            *self._fields.columns(list(map(_of_key, elements))),
        ]
        if self._middle:
            columns += [repeat(self._middle), *self._data.columns(list(map(_of_data, elements)))]
        return list(map(self._packer.pack, *columns))

    def _keys(self, elements: Sequence[Element]) -> list[bytes]:
        head = _HEADER.pack(self._key_packer.size, nft.LIST_ELEM) + self._key_head
        columns = self._fields.columns(list(map(_of_key, elements)))
        return list(map(self._key_packer.pack, repeat(head, len(elements)), *columns))

    def _mixed(self, elements: Sequence[Element]) -> list[bytes]:
        """Elements of different lengths."""
        bodies = [
            key[_HEADER.size :] + self._written_data(element.data) + comment_data(USERDATA, element.comment)
            for key, element in zip(self._keys(elements), elements, strict=True)
        ]
        return [_HEADER.pack(_HEADER.size + len(body), nft.LIST_ELEM) + body for body in bodies]

    def _range(self, element: Element, key_only: bool) -> bytes:
        first, last = self._fields.write_ranges(element.key)
        parts = [_attribute_value(KEY, first)]
        if self._ranges:
            parts.append(_attribute_value(KEY_END, last))
        if not key_only:
            parts += [self._written_data(element.data), comment_data(USERDATA, element.comment)]
        data = netlink.attribute(nft.LIST_ELEM, b"".join(parts))
        if self._boundaries and any(byte != 0xFF for byte in last):
            data += self._end(_next(last))
        return data

    def _written_data(self, data: Data) -> bytes:
        if self.spec.kind is SetKind.SET:
            return b""
        if self.spec.kind is SetKind.VERDICTS:
            if not isinstance(data, Verdict):
                raise ValueError(f"{data} is not a verdict")
            return _verdict(data.chain)
        if data is None or isinstance(data, Verdict):
            raise ValueError(f"{data} is not an address, port or slot")
        return _attribute_value(DATA, self._data.write(data))

    def _end(self, key: bytes) -> bytes:
        return netlink.attribute(nft.LIST_ELEM, _attribute_value(KEY, key) + INTERVAL_END)

    # ---- reading

    def _regular(self, found: Sequence[bytes]) -> bool:
        """Whether each of `found` has the layout that `_columns` gives it."""
        at = 12 + struct.calcsize(">" + self._fields.padded)
        middle = slice(at, at + len(self._middle))
        return all(map(self._head.__eq__, map(itemgetter(slice(0, 12)), found))) and (
            not self._middle or all(map(self._middle.__eq__, map(itemgetter(middle), found)))
        )

    def _read_data(self, data: bytes | None) -> Data:
        if data is None:
            return None
        if self.spec.kind is SetKind.VERDICTS:
            verdict = netlink.attributes(netlink.attributes(data)[VERDICT])
            return Verdict(netlink.to_text(verdict.get(nft.VERDICT_CHAIN, b"")))
        return self._data.read(_value(data))


def _next(data: bytes) -> bytes:
    return (int.from_bytes(data, "big") + 1).to_bytes(len(data), "big")


def _previous(data: bytes) -> bytes:
    return (int.from_bytes(data, "big") - 1).to_bytes(len(data), "big")


def _value_head(type: int, length: int) -> bytes:
    return _HEADER.pack(8 + ((length + 3) & ~3), type) + _HEADER.pack(4 + length, VALUE)


def _attribute_value(type: int, value: bytes) -> bytes:
    return netlink.attribute(type, netlink.attribute(VALUE, value))


def _value(attribute: bytes) -> bytes:
    """The value in `attribute`. Raises ValueError when it holds a verdict."""
    try:
        return netlink.attributes(attribute)[VALUE]
    except KeyError:
        raise ValueError("no value") from None


@functools.lru_cache(maxsize=4096)
def _verdict(chain: str) -> bytes:
    return nft.verdict_data(DATA, nft.GOTO if chain else nft.DROP, chain)


def comment_data(type: int, comment: str, kind: int = 0) -> bytes:
    """COMMENT as userdata of nft in attribute TYPE; empty for none. kind: of the record that is a comment there."""
    if not comment:
        return b""
    return netlink.attribute(type, record(kind, comment.encode()[:COMMENT_LIMIT] + b"\0"))


def record(kind: int, value: bytes) -> bytes:
    """One record of nft's userdata. Raises ValueError when `value` is too long."""
    return bytes((kind, len(value))) + value


def records(userdata: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each record of nft's userdata; a truncated end is left out."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        yield kind, userdata[at + 2 : at + 2 + length]
        at += 2 + length


def comment_of(userdata: bytes, kind: int = 0) -> str:
    """The comment in nft's userdata, "" for none."""
    return next((netlink.to_text(value) for found, value in records(userdata) if found == kind), "")


def _canonical(element: bytes) -> bytes:
    """An element's attributes as `encode` returns them, whatever the kernel adds."""
    parts = netlink.attributes(element)
    told = b"".join(
        netlink.attribute(type_, nft.plain(parts[type_]) if type_ in (KEY, KEY_END, DATA) else parts[type_])
        for type_ in (KEY, KEY_END, DATA, FLAGS, USERDATA)
        if type_ in parts and (type_ != FLAGS or any(parts[type_]))
    )
    return netlink.attribute(nft.LIST_ELEM, told)


def _sliced(data: bytes) -> list[bytes]:
    """The attributes in DATA with their headers. Raises ValueError."""
    found: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        if end - at < _HEADER.size or (length := _HEADER.unpack_from(data, at)[0]) < _HEADER.size or at + length > end:
            raise ValueError("elements cut short")
        following = at + ((length + 3) & ~3)
        found.append(data[at:following])
        at = following
    return found


def _boundary(data: bytes) -> tuple[bytes, bool]:
    """The key of a boundary, and whether it ends a range."""
    parts = netlink.attributes(data, 4)
    return _value(parts[KEY]), FLAGS in parts
