"""Netlink messages and attributes as bytes: pure, no sockets.

Decides: framing, alignment, byte order, the headers of netfilter and of generic netlink, netfilter's transactions, and
how an error answer becomes a NetlinkError. Leaves out: what the messages of a family mean, and sending them
(`kproxy.kernel.netlink_sockets`). Bytes that are malformed raise ValueError; the socket maps it.
Sources: netlink(7), include/uapi/linux/{netlink,genetlink}.h, include/uapi/linux/netfilter/nfnetlink.h.

Headers are in the host's byte order. Numbers in attributes are big-endian in netfilter, and in the host's byte order in
rtnetlink and generic netlink.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kproxy.errors import NetlinkError

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_DUMP, NLM_F_EXCL, NLM_F_CREATE = 0x300, 0x200, 0x400
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200  # of an error
NLMSGERR_ATTR_MSG, NLMSGERR_ATTR_OFFS = 1, 2
NFNL_BATCH_GENID = 1
GENL_HEADER = 4
"""The size of struct genlmsghdr, with which every payload of generic netlink begins."""
LARGEST_ERROR = 1 << 16  # subsystems have numbers of their own beyond MAX_ERRNO (4095); ipset's go up to 4355

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")
_U32_AT = struct.Struct("=I")
_GENERIC = struct.Struct("=BBH")  # struct genlmsghdr
_U16 = struct.Struct("=HHH2x")
_U32 = struct.Struct("=HHI")


class Message(NamedTuple):
    """One message: its header without the length, and what follows the header."""

    type: int
    flags: int
    seq: int
    portid: int
    payload: bytes


def message(type: int, flags: int, seq: int, payload: bytes, portid: int = 0) -> bytes:
    """The bytes of one message, padded to the alignment of the next."""
    return _HEADER.pack(16 + len(payload), type, flags, seq, portid) + payload + bytes(-len(payload) % 4)


def messages(data: bytes) -> Iterator[Message]:
    """The messages in one datagram. Raises ValueError when a length is wrong or the datagram is cut short."""
    at, end = 0, len(data)
    while at < end:
        if end - at < 16:
            raise ValueError("netlink message cut short")
        length, type_, flags, seq, portid = _HEADER.unpack_from(data, at)
        if length < 16 or at + length > end:
            raise ValueError("netlink message of a wrong length")
        yield Message(type_, flags, seq, portid, data[at + 16 : at + length])
        at += (length + 3) & ~3


def first_header(data: bytes) -> Message:
    """The first message of a datagram without its payload. Raises ValueError when the datagram is shorter."""
    if len(data) < 16:
        raise ValueError("netlink message cut short")
    _, type_, flags, seq, portid = _HEADER.unpack_from(data)
    return Message(type_, flags, seq, portid, b"")


def last_message(data: bytes) -> Message:
    """The last message of a datagram; the lengths of those before it are checked as well. Raises ValueError."""
    at, end, last = 0, len(data), -1
    while end - at >= 16:
        last = at
        (length,) = _U32_AT.unpack_from(data, at)
        if length < 16:
            raise ValueError("netlink message of a wrong length")
        at += (length + 3) & ~3
    if last < 0 or end > at:
        raise ValueError("netlink message cut short")
    return next(messages(data[last:]))


def attribute(type: int, payload: bytes) -> bytes:
    """The bytes of one attribute, padded. Raises struct.error when the payload does not fit into one (65,531 bytes)."""
    return _ATTRIBUTE.pack(4 + len(payload), type) + payload + bytes(-len(payload) % 4)


def nested(type: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(type | NLA_F_NESTED, b"".join(parts))


def text(type: int, value: str) -> bytes:
    """An attribute that holds a NUL-terminated string."""
    return attribute(type, value.encode() + b"\0")


def be16(type: int, value: int) -> bytes:
    """An attribute that holds a 16-bit number, big-endian."""
    return attribute(type, value.to_bytes(2, "big"))


def be32(type: int, value: int) -> bytes:
    """An attribute that holds a 32-bit number, big-endian."""
    return attribute(type, value.to_bytes(4, "big"))


def be64(type: int, value: int) -> bytes:
    """An attribute that holds a 64-bit number, big-endian."""
    return attribute(type, value.to_bytes(8, "big"))


def u16(type: int, value: int) -> bytes:
    """An attribute that holds a 16-bit number in the host's byte order."""
    return _U16.pack(6, type, value)


def u32(type: int, value: int) -> bytes:
    """An attribute that holds a 32-bit number in the host's byte order."""
    return _U32.pack(8, type, value)


def each_attribute(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Type (without flags) and payload of each attribute in DATA from `start` on, in order. Raises ValueError."""
    at, end = start, len(data)
    while end - at >= 4:
        length, type_ = _ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > end:
            raise ValueError("netlink attribute of a wrong length")
        yield type_ & NLA_TYPE_MASK, data[at + 4 : at + length]
        at += (length + 3) & ~3
    if at < end:
        raise ValueError("netlink attribute cut short")


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes by type; the last one where a type is repeated. Raises ValueError."""
    return dict(each_attribute(data, start))


def to_int(payload: bytes) -> int:
    """A big-endian number of any width."""
    return int.from_bytes(payload, "big")


def to_text(payload: bytes) -> str:
    """A string, with or without its terminating NUL; bytes that are no UTF-8 are replaced."""
    return payload.split(b"\0", 1)[0].decode(errors="replace")


def netfilter(family: int, resource: int = 0) -> bytes:
    """struct nfgenmsg, with which every payload of netfilter begins."""
    return struct.pack("=BB", family, 0) + resource.to_bytes(2, "big")


def generic(command: int, version: int) -> bytes:
    """struct genlmsghdr, with which every payload of generic netlink begins."""
    return _GENERIC.pack(command, version, 0)


def netfilter_batch(
    subsystem: int,
    parts: Iterable[tuple[int, int, bytes]],
    seq: int,
    generation: int | None = None,
    commit: bool = True,
) -> bytes:
    """PARTS (type, flags, payload) as one transaction of `subsystem`; the opening message is numbered `seq`, the first
    part `seq` + 1.

    generation: the only generation at which the kernel is to apply it (NFNL_BATCH_GENID). commit: False omits the
    closing message, so that the kernel validates everything and applies nothing.
    """
    frame = netfilter(0, subsystem)
    expected = b"" if generation is None else be32(NFNL_BATCH_GENID, generation)
    data = [message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, seq, frame + expected)]
    for type_, flags, payload in parts:
        seq += 1
        data.append(message(type_, flags | NLM_F_REQUEST, seq, payload))
    if commit:
        data.append(message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, seq + 1, frame))
    return b"".join(data)


def error_of(answer: Message, request: str) -> NetlinkError | None:
    """The error that `answer` reports, None for none. `request`: what was asked, in words for the message.

    An error number of 0 is an acknowledgement. Raises ValueError when the answer is malformed.
    """
    if answer.type not in (NLMSG_ERROR, NLMSG_DONE):
        return None
    if len(answer.payload) < 4:
        if answer.type == NLMSG_ERROR:
            raise ValueError("netlink error cut short")
        return None
    (status,) = _ERRNO.unpack_from(answer.payload)
    if status >= 0:
        return None
    if -status > LARGEST_ERROR:
        raise ValueError(f"netlink error number {-status}")
    told = _extended(answer)
    offset = int.from_bytes(told.get(NLMSGERR_ATTR_OFFS, b"")[:4], sys.byteorder)
    return NetlinkError(request, -status, to_text(told.get(NLMSGERR_ATTR_MSG, b"")), offset)


def _extended(answer: Message) -> dict[int, bytes]:
    """The attributes of an extended acknowledgement, which follow the errno and the request (or its header only)."""
    if not answer.flags & NLM_F_ACK_TLVS or answer.type != NLMSG_ERROR or len(answer.payload) < 20:
        return {}
    (length,) = _U32_AT.unpack_from(answer.payload, 4)
    start = 20 if answer.flags & NLM_F_CAPPED else 4 + ((length + 3) & ~3)
    try:
        return attributes(answer.payload, start)
    except ValueError:
        return {}
