"""Encodes and decodes the fields of elements' keys and data: addresses, protocols, ports, slots. Pure.

Decides: how a value of each type, and a concatenation of several, lies in registers, and which addresses a network or a
range stands for. Leaves out: the attributes around them (kproxy.netfilter.element_codec).
Source: NFT_DATA_VALUE and NFT_REG32_* of include/uapi/linux/netfilter/nf_tables.h; each part of a concatenation takes
whole words.
"""

from __future__ import annotations

import functools
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any

from kproxy.kernel.constants import PROTOCOL_NAMES, PROTOCOL_NUMBERS
from kproxy.netfilter.objects import Key, Type

FORMATS = {Type.IPV4: "4s", Type.IPV6: "16s", Type.PROTO: "Bxxx", Type.PORT: "Hxx", Type.SLOT: "4s"}
ADDRESSES = {Type.IPV4: socket.AF_INET, Type.IPV6: socket.AF_INET6}


def width(types: Sequence[Type]) -> int:
    """Bytes of a key or of data of these types: each is padded to whole words in a concatenation, but not alone."""
    return struct.calcsize(">" + _format(types))


def _format(types: Sequence[Type]) -> str:
    return FORMATS[types[0]].rstrip("x") if len(types) == 1 else "".join(FORMATS[type_] for type_ in types)


class Fields:
    """Encodes and decodes concatenated values of some types.

    padded: their struct format, each in whole words. Encoding a value that is not of its type raises OSError,
    ValueError, TypeError, AttributeError, KeyError, OverflowError or struct.error.
    """

    def __init__(self, types: tuple[Type, ...]) -> None:
        self.types = types
        self.padded = "".join(FORMATS[type_] for type_ in types)
        self._packer = struct.Struct(">" + (_format(types) if types else ""))
        self._writers = [WRITERS[type_] for type_ in types]
        self._readers = [_READERS[type_] for type_ in types]

    def columns(self, rows: Sequence[Key]) -> list[Iterable[Any]]:
        """The values of `rows` by field, to be packed with `padded`. Raises ValueError when one has another length."""
        if not set(map(len, rows)) <= {len(self.types)}:
            raise ValueError("a wrong number of parts")
        return [map(write, map(itemgetter(i), rows)) for i, write in enumerate(self._writers)]

    def write(self, row: Key) -> bytes:
        """One value of each type."""
        return self._packer.pack(*(write(part) for write, part in zip(self._writers, row, strict=True)))

    def read(self, data: bytes) -> Key:
        """The values in DATA. Raises struct.error when it has another length."""
        return tuple(read(part) for read, part in zip(self._readers, self._packer.unpack(data), strict=True))

    def write_ranges(self, row: Key) -> tuple[bytes, bytes]:
        """Encodes the first and the last value of `row`, whose addresses may be networks or ranges."""
        first: list[Any] = []
        last: list[Any] = []
        for type_, write, part in zip(self.types, self._writers, row, strict=True):
            low, high = bounds(type_, str(part)) if type_ in ADDRESSES else (write(part), write(part))
            first.append(low)
            last.append(high)
        return self._packer.pack(*first), self._packer.pack(*last)

    def read_ranges(self, first: bytes, last: bytes) -> Key:
        """The row whose `write_ranges` is `first` and `last`; addresses are as in `range_text`. Raises struct.error."""
        both = zip(self.types, self._readers, self._packer.unpack(first), self._packer.unpack(last), strict=True)
        return tuple(range_text(low, high) if t in ADDRESSES else read(low) for t, read, low, high in both)


class _Numbers(dict[str, int]):
    """Protocol numbers by name; a protocol without a name here, which others may have added, is given by number."""

    def __missing__(self, name: str) -> int:
        return int(name)


def host_number(value: int) -> bytes:
    """Encodes a slot: 32 bits in the host's byte order."""
    return value.to_bytes(4, sys.byteorder)


def _same(value: int) -> int:
    return value


WRITERS: dict[Type, Callable[[Any], Any]] = {
    Type.IPV4: functools.partial(socket.inet_pton, socket.AF_INET),
    Type.IPV6: functools.partial(socket.inet_pton, socket.AF_INET6),
    Type.PROTO: _Numbers(PROTOCOL_NUMBERS).__getitem__,
    Type.PORT: _same,
    Type.SLOT: functools.lru_cache(maxsize=4096)(host_number),
}
_READERS: dict[Type, Callable[[Any], Any]] = {
    Type.IPV4: functools.partial(socket.inet_ntop, socket.AF_INET),
    Type.IPV6: functools.partial(socket.inet_ntop, socket.AF_INET6),
    Type.PROTO: lambda number: PROTOCOL_NAMES.get(number, str(number)),
    Type.PORT: _same,
    Type.SLOT: lambda data: int.from_bytes(data, sys.byteorder),
}


def bounds(type_: Type, text: str) -> tuple[bytes, bytes]:
    """First and last address of a network, of "FIRST-LAST" or of one address. Raises ValueError, OSError."""
    family = ADDRESSES[type_]
    if "-" in text:
        low, high = text.split("-")
        return socket.inet_pton(family, low), socket.inet_pton(family, high)
    address, _, length = text.partition("/")
    packed = socket.inet_pton(family, address)
    if not length:
        return packed, packed
    free = len(packed) * 8 - int(length)
    if free < 0:
        raise ValueError(f"invalid network: {text}")
    rest = (1 << free) - 1
    number = int.from_bytes(packed, "big")
    return (number & ~rest).to_bytes(len(packed), "big"), (number | rest).to_bytes(len(packed), "big")


def range_text(first: bytes, last: bytes) -> str:
    """The network from `first` to `last` if they span one, else "FIRST-LAST"."""
    low, high = int.from_bytes(first, "big"), int.from_bytes(last, "big")
    size = high - low + 1
    if size > 0 and size & (size - 1) == 0 and low % size == 0:
        return f"{_text(first)}/{len(first) * 8 - size.bit_length() + 1}"
    return f"{_text(first)}-{_text(last)}"


def _text(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
