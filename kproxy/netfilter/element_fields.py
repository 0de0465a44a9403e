"""Single values in keys and data of nf_tables' elements as bytes, and back: addresses, protocols, ports, slots. Pure.

Decides: how a value of each type, and a concatenation of some, lies in a register, and which addresses a network or a
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
    """Bytes of a key or of data of these types: in a concatenation each takes whole words, a type alone does not."""
    return struct.calcsize(">" + _format(types))


def _format(types: Sequence[Type]) -> str:
    return FORMATS[types[0]].rstrip("x") if len(types) == 1 else "".join(FORMATS[type_] for type_ in types)


class Fields:
    """Concatenated values of some types, as elements hold them.

    padded: their struct format, each in whole words. Whatever is written raises one of OSError, ValueError, TypeError,
    AttributeError, KeyError, OverflowError or struct.error when it is no value of its type.
    """

    def __init__(self, types: tuple[Type, ...]) -> None:
        self.types = types
        self.padded = "".join(FORMATS[type_] for type_ in types)
        self._packer = struct.Struct(">" + (_format(types) if types else ""))
        self._writers = [WRITERS[type_] for type_ in types]
        self._readers = [_READERS[type_] for type_ in types]

    def columns(self, rows: Sequence[Key]) -> list[Iterable[Any]]:
        """The values of ROWS as `padded` takes them, type by type. Raises ValueError when one has another length."""
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
        """The first and the last value that ROW, which may have networks or ranges for addresses, stands for."""
        first: list[Any] = []
        last: list[Any] = []
        for type_, write, part in zip(self.types, self._writers, row, strict=True):
            low, high = bounds(type_, str(part)) if type_ in ADDRESSES else (write(part), write(part))
            first.append(low)
            last.append(high)
        return self._packer.pack(*first), self._packer.pack(*last)

    def read_ranges(self, first: bytes, last: bytes) -> Key:
        """What leads to FIRST and LAST; addresses as `range_text` has them. Raises struct.error."""
        both = zip(self.types, self._readers, self._packer.unpack(first), self._packer.unpack(last), strict=True)
        return tuple(range_text(low, high) if t in ADDRESSES else read(low) for t, read, low, high in both)


class _Numbers(dict[str, int]):
    """Protocols by name; those that have none here, which others may have put into a set, are told by number."""

    def __missing__(self, name: str) -> int:
        return int(name)


def host_number(value: int) -> bytes:
    """A slot: 32 bits in the host's byte order."""
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
        raise ValueError(f"no such network: {text}")
    rest = (1 << free) - 1
    number = int.from_bytes(packed, "big")
    return (number & ~rest).to_bytes(len(packed), "big"), (number | rest).to_bytes(len(packed), "big")


def range_text(first: bytes, last: bytes) -> str:
    """A network where FIRST and LAST are those of one, else "FIRST-LAST"."""
    low, high = int.from_bytes(first, "big"), int.from_bytes(last, "big")
    size = high - low + 1
    if size > 0 and size & (size - 1) == 0 and low % size == 0:
        return f"{_text(first)}/{len(first) * 8 - size.bit_length() + 1}"
    return f"{_text(first)}-{_text(last)}"


def _text(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
