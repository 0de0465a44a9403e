"""Connection tracking entries as netlink bytes: a dump decoded to Flows, and the request that deletes one Flow's entry.

Pure. Leaves out: sending and receiving (kproxy.conntrack.table), and which entries are stale.
Sources: include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping

from kproxy.conntrack.stale_flows import TRACKED, Flow
from kproxy.kernel import netlink
from kproxy.kernel.constants import ADDRESS_FAMILY, NFNL_SUBSYS_CTNETLINK, PROTOCOL_NUMBERS, address_family
from kproxy.model.plans import Family, Protocol

SUBSYSTEM = NFNL_SUBSYS_CTNETLINK << 8
NEW, GET, DELETE = SUBSYSTEM | 0, SUBSYSTEM | 1, SUBSYSTEM | 2
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE, CTA_FILTER = 1, 2, 12, 18, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO, CTA_TUPLE_ZONE = 1, 2, 3
CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST = 1, 2, 3, 4
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS = 1, 2
FILTER_SOURCE, FILTER_DESTINATION, FILTER_PROTO_NUM, FILTER_PORT = 1, 2, 8, 32  # CTA_FILTER_F_* of nf_internals.h

NUMBERS = {protocol: PROTOCOL_NUMBERS[protocol.lower()] for protocol in Protocol}

_HEADERS = 16 + 4  # struct nlmsghdr, struct nfgenmsg
_MESSAGE = struct.Struct("=IH")
_ATTRIBUTE = struct.Struct("=HH")
_FLAGS = struct.Struct("=I")


def dump_request(family: Family, protocol: Protocol) -> bytes:
    """The payload that asks for the entries of one family and protocol.

    Kernels before 5.8 ignore the filter and send every protocol; `decode` skips what was not asked for.
    """
    return (
        netlink.netfilter(ADDRESS_FAMILY[family])
        + netlink.nested(
            CTA_TUPLE_ORIG,
            netlink.nested(CTA_TUPLE_PROTO, netlink.attribute(CTA_PROTO_NUM, bytes([NUMBERS[protocol]]))),
        )
        + netlink.nested(
            CTA_FILTER,
            netlink.attribute(CTA_FILTER_ORIG_FLAGS, _FLAGS.pack(FILTER_PROTO_NUM)),
            netlink.attribute(CTA_FILTER_REPLY_FLAGS, _FLAGS.pack(0)),
        )
    )  # fmt: skip


def clients_request(protocol: Protocol, source: str, destination: str, port: int) -> bytes:
    """The payload that asks for the entries of one client to one address and port.

    Kernels before 5.8 send all entries. Raises OSError for what is no address.
    """
    family = address_family(source)
    client, server = (socket.inet_pton(family, ip) for ip in (source, destination))
    wanted = FILTER_SOURCE | FILTER_DESTINATION | FILTER_PROTO_NUM | FILTER_PORT
    number = NUMBERS[protocol]
    return (
        netlink.netfilter(family)
        + _tuple(CTA_TUPLE_ORIG, number, client, 0, server, port)
        + netlink.nested(
            CTA_FILTER,
            netlink.attribute(CTA_FILTER_ORIG_FLAGS, _FLAGS.pack(wanted)),
            netlink.attribute(CTA_FILTER_REPLY_FLAGS, _FLAGS.pack(0)),
        )
    )


class _Layout:
    """The byte layout of an entry's two tuples, which is the same for every entry without a zone per direction.

    One struct therefore reads what would otherwise be eighteen attributes. The attribute headers in between are
    compared with the expected ones, and an entry that differs is decoded attribute by attribute.
    """

    def __init__(self, family: Family) -> None:
        self.family = ADDRESS_FAMILY[family]
        width = 4 if family is Family.IPV4 else 16
        half = f"12s {width}s 4s {width}s 8s B 3x 4s H 2x 4s H 2x"
        self.struct = struct.Struct(f">{half} {half}")
        nothing = bytes(width)
        flow = (nothing, 0, nothing, 0)
        # The even fields are headers, the odd ones source, destination, protocol and both ports.
        self.headers = self.struct.unpack(_tuple(CTA_TUPLE_ORIG, 0, *flow) + _tuple(CTA_TUPLE_REPLY, 0, *flow))[::2]


def _tuple(type: int, protocol: int, source: bytes, sport: int, destination: bytes, dport: int, zone: int = 0) -> bytes:
    v4 = len(source) == 4
    return netlink.nested(
        type,
        netlink.nested(
            CTA_TUPLE_IP,
            netlink.attribute(CTA_IP_V4_SRC if v4 else CTA_IP_V6_SRC, source),
            netlink.attribute(CTA_IP_V4_DST if v4 else CTA_IP_V6_DST, destination),
        ),
        netlink.nested(
            CTA_TUPLE_PROTO,
            netlink.attribute(CTA_PROTO_NUM, bytes([protocol])),
            netlink.be16(CTA_PROTO_SRC_PORT, sport),
            netlink.be16(CTA_PROTO_DST_PORT, dport),
        ),
        netlink.be16(CTA_TUPLE_ZONE, zone) if zone else b"",
    )


LAYOUTS = {family: _Layout(family) for family in Family}


def deletion(flow: Flow) -> bytes:
    """The payload that deletes exactly `flow`'s entry.

    The kernel compares the id as well. It is derived from the addresses and the entry's place in memory, so an entry
    that has replaced this one in the meantime is usually spared.
    """
    family = address_family(flow.source)
    source, destination = (socket.inet_pton(family, ip) for ip in (flow.source, flow.destination))
    ports = (flow.source_port, flow.destination_port)
    inner, outer = (flow.zone, 0) if flow.zone_of_original else (0, flow.zone)
    number = NUMBERS[flow.protocol]
    return b"".join(
        (
            netlink.netfilter(family),
            _tuple(CTA_TUPLE_ORIG, number, source, ports[0], destination, ports[1], inner),
            netlink.be16(CTA_ZONE, outer) if outer else b"",
            netlink.be32(CTA_ID, flow.id) if flow.id else b"",
        )
    )


def decode(chunks: Iterable[bytes], family: Family, protocols: Collection[Protocol] = TRACKED) -> list[Flow]:
    """The Flows in the datagrams of a dump, without entries of another family or protocol.

    Raises ValueError for bytes that are not netlink messages or not entries.
    """
    decoder = _Decoder(LAYOUTS[family], {NUMBERS[p]: p for p in protocols})
    found = (decoder.flow(data, at, end) for data in chunks for at, end in _entries(data))
    return [flow for flow in found if flow is not None]


def _entries(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each entry's attributes; messages of other types are skipped."""
    at, size = 0, len(data)
    while at < size:
        if size - at < 16:
            raise ValueError("netlink message cut short")
        length, type_ = _MESSAGE.unpack_from(data, at)
        if length < 16 or at + length > size:
            raise ValueError("netlink message of a wrong length")
        if type_ == NEW and length >= _HEADERS:
            yield at + _HEADERS, at + length
        at += (length + 3) & ~3


class _Decoder:
    def __init__(self, layout: _Layout, protocols: Mapping[int, Protocol]) -> None:
        self._layout, self._protocols = layout, protocols
        self._texts: dict[bytes, str] = {}  # the same few addresses, thousands of times

    def flow(self, data: bytes, at: int, end: int) -> Flow | None:
        """The entry whose attributes lie between `at` and END; None if its family or protocol was not asked for."""
        layout = self._layout
        if data[at - 4] != layout.family:
            return None
        rest = at + layout.struct.size
        if rest > end:
            return self._by_attributes(data[at:end])
        fields = layout.struct.unpack_from(data, at)
        if fields[::2] != layout.headers:
            return self._by_attributes(data[at:end])
        protocol = self._protocols.get(fields[5])
        if protocol is None:
            return None
        zone, id_ = _zone_and_id(data, rest, end)
        source, destination, answers = fields[1], fields[3], fields[11]
        text = self._text
        return Flow(
            protocol,
            text(source), fields[7], text(destination), fields[9], text(answers), fields[17], zone, False, id_,
        )  # fmt: skip

    def _by_attributes(self, data: bytes) -> Flow | None:
        """Decode attribute by attribute: entries with a zone per direction, and kernels that use another order."""
        top = netlink.attributes(data)
        original, reply = (_Tuple(netlink.attributes(top.get(t, b""))) for t in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY))
        protocol = self._protocols.get(original.protocol)
        if protocol is None:
            return None
        zone = original.zone or netlink.to_int(top.get(CTA_ZONE, b""))
        return Flow(
            protocol,
            self._text(original.source),
            original.source_port,
            self._text(original.destination),
            original.destination_port,
            self._text(reply.source),
            reply.source_port,
            zone,
            bool(original.zone),
            netlink.to_int(top.get(CTA_ID, b"")),
        )

    def _text(self, packed: bytes) -> str:
        known = self._texts.get(packed)
        if known is None:
            known = self._texts[packed] = socket.inet_ntop(self._layout.family, packed)
        return known


class _Tuple:
    """One direction of an entry, from its attributes. Missing fields are empty or 0."""

    def __init__(self, parts: Mapping[int, bytes]) -> None:
        ip = netlink.attributes(parts.get(CTA_TUPLE_IP, b""))
        proto = netlink.attributes(parts.get(CTA_TUPLE_PROTO, b""))
        self.source = ip.get(CTA_IP_V4_SRC) or ip.get(CTA_IP_V6_SRC, b"")
        self.destination = ip.get(CTA_IP_V4_DST) or ip.get(CTA_IP_V6_DST, b"")
        self.protocol = netlink.to_int(proto.get(CTA_PROTO_NUM, b""))
        self.source_port = netlink.to_int(proto.get(CTA_PROTO_SRC_PORT, b""))
        self.destination_port = netlink.to_int(proto.get(CTA_PROTO_DST_PORT, b""))
        self.zone = netlink.to_int(parts.get(CTA_TUPLE_ZONE, b""))


def _zone_and_id(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Zone and id, from the attributes after the tuples. The kernel writes the zone first."""
    zone = 0
    while at + 8 <= end:
        length, type_ = _ATTRIBUTE.unpack_from(data, at)
        if type_ == CTA_ID:
            return zone, netlink.to_int(data[at + 4 : at + 8])
        if type_ == CTA_ZONE:
            zone = netlink.to_int(data[at + 4 : at + 6])
        if length < 4:
            break
        at += (length + 3) & ~3
    return zone, 0
