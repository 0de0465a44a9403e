"""Netlink messages and attributes as bytes: pure, no sockets.

Decides: framing, alignment, byte order, transactions of netfilter, and what an error of the kernel becomes
(NetlinkError). Leaves out: what the messages of a family mean, and sending them (kproxy.kernel.netlink_sockets).
Sources: netlink(7), include/uapi/linux/netlink.h, include/uapi/linux/netfilter/nfnetlink.h.

Headers are in the host's byte order; numbers in attributes of netfilter are big-endian, those of rtnetlink and of
generic netlink are not.
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

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")
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
    """One message, padded to the next one's place."""
    return _HEADER.pack(16 + len(payload), type, flags, seq, portid) + payload + bytes(-len(payload) % 4)


def messages(data: bytes) -> Iterator[Message]:
    """The messages in one datagram. Raises ValueError when it is cut short."""
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
    """The first message of a datagram without its payload."""
    _, type_, flags, seq, portid = _HEADER.unpack_from(data)
    return Message(type_, flags, seq, portid, b"")


def last_type(data: bytes) -> int:
    """The type of the last message of a datagram, 0 when there is none."""
    at, type_ = 0, 0
    while at + 16 <= len(data):
        length, type_, *_ = _HEADER.unpack_from(data, at)
        at += max((length + 3) & ~3, 16)
    return type_


def attribute(type: int, payload: bytes) -> bytes:
    """One attribute. Raises struct.error when the payload does not fit into one (65,531 bytes)."""
    return _ATTRIBUTE.pack(4 + len(payload), type) + payload + bytes(-len(payload) % 4)


def nested(type: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(type | NLA_F_NESTED, b"".join(parts))


def text(type: int, value: str) -> bytes:
    """An attribute that holds a NUL-terminated string."""
    return attribute(type, value.encode() + b"\0")


def be16(type: int, value: int) -> bytes:
    """An attribute that holds 16 bits, big-endian; be32 and be64 alike."""
    return attribute(type, value.to_bytes(2, "big"))


def be32(type: int, value: int) -> bytes:
    return attribute(type, value.to_bytes(4, "big"))


def be64(type: int, value: int) -> bytes:
    return attribute(type, value.to_bytes(8, "big"))


def u16(type: int, value: int) -> bytes:
    """An attribute that holds 16 bits in the host's byte order; u32 alike."""
    return _U16.pack(6, type, value)


def u32(type: int, value: int) -> bytes:
    return _U32.pack(8, type, value)


def each_attribute(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Type (without its flags) and payload of each attribute from START on, repeated ones too. Raises ValueError."""
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
    """The attributes by type; of repeated ones the last."""
    return dict(each_attribute(data, start))


def to_int(payload: bytes) -> int:
    """A big-endian number of any width."""
    return int.from_bytes(payload, "big")


def to_text(payload: bytes) -> str:
    """A string, with or without its NUL."""
    return payload.split(b"\0", 1)[0].decode(errors="replace")


def netfilter(family: int, resource: int = 0) -> bytes:
    """struct nfgenmsg, with which every payload of netfilter begins."""
    return struct.pack("=BB", family, 0) + resource.to_bytes(2, "big")


def netfilter_batch(
    subsystem: int,
    parts: Iterable[tuple[int, int, bytes]],
    seq: int,
    generation: int | None = None,
    commit: bool = True,
) -> bytes:
    """PARTS (type, flags, payload) as one transaction of SUBSYSTEM; the first has number SEQ + 1, its frame SEQ.

    generation: the kernel shall take it only while it is at this one (NFNL_BATCH_GENID). commit: False leaves out the
    end, so that the kernel checks everything and then drops it.
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
    """What ANSWER says against REQUEST (words for a human), None when nothing: errno 0 is an acknowledgement."""
    if answer.type not in (NLMSG_ERROR, NLMSG_DONE) or len(answer.payload) < 4:
        return None
    (status,) = _ERRNO.unpack_from(answer.payload)
    if status >= 0:
        return None
    told = _told(answer)
    offset = int.from_bytes(told.get(NLMSGERR_ATTR_OFFS, b""), sys.byteorder)
    return NetlinkError(request, -status, to_text(told.get(NLMSGERR_ATTR_MSG, b"")), offset)


def raise_if_error(answer: Message, request: str) -> None:
    """Raise NetlinkError when ANSWER says that REQUEST failed."""
    if (error := error_of(answer, request)) is not None:
        raise error


def _told(answer: Message) -> dict[int, bytes]:
    """What the kernel adds, as attributes. They follow the errno and the request (or its header only)."""
    if not answer.flags & NLM_F_ACK_TLVS or answer.type != NLMSG_ERROR or len(answer.payload) < 20:
        return {}
    (length,) = struct.unpack_from("=I", answer.payload, 4)
    start = 20 if answer.flags & NLM_F_CAPPED else 4 + ((length + 3) & ~3)
    try:
        return attributes(answer.payload, start)
    except ValueError:
        return {}
