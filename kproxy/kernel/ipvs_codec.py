"""Encodes changes to IPVS's virtual and real servers for generic netlink, and decodes the kernel's answers: pure.

Decides: the request of each verb, and the meaning of the answers. Leaves out: sending (`kproxy.kernel.ipvs`).
Sources: include/uapi/linux/ip_vs.h, net/netfilter/ipvs/ip_vs_ctl.c.

Numbers are in the host's byte order, except ports, addresses and IPv4's netmask.
"""

from __future__ import annotations

import functools
import socket
import struct
from enum import Enum
from typing import NamedTuple

from kproxy.kernel import netlink
from kproxy.kernel.constants import ADDRESS_BITS, ADDRESS_FAMILY, PROTOCOL_NUMBERS, address_family
from kproxy.kernel.virtual_servers import HASHED, RealKey, RealServer, ServerKey, VirtualServer
from kproxy.model.plans import Family, Protocol

FAMILY, VERSION = "IPVS", 1
NEW_SERVICE, SET_SERVICE, DEL_SERVICE, GET_SERVICE = 1, 2, 3, 4  # IPVS_CMD_*
NEW_DEST, SET_DEST, DEL_DEST, GET_DEST, SET_CONFIG = 5, 6, 7, 8, 12
CMD_SERVICE, CMD_DEST, CMD_TIMEOUT_TCP, CMD_TIMEOUT_TCP_FIN, CMD_TIMEOUT_UDP = 1, 2, 4, 5, 6  # IPVS_CMD_ATTR_*
SVC_AF, SVC_PROTOCOL, SVC_ADDR, SVC_PORT, SVC_FWMARK = 1, 2, 3, 4, 5  # IPVS_SVC_ATTR_*
SVC_SCHED_NAME, SVC_FLAGS, SVC_TIMEOUT, SVC_NETMASK = 6, 7, 8, 9
SCHEDULER_LIMIT = 15  # IP_VS_SCHEDNAME_MAXLEN without the NUL
DEST_ADDR, DEST_PORT, DEST_FWD_METHOD, DEST_WEIGHT, DEST_U_THRESH, DEST_L_THRESH = 1, 2, 3, 4, 5, 6  # IPVS_DEST_ATTR_*
DEST_ACTIVE, DEST_INACTIVE, DEST_PERSISTENT, DEST_ADDR_FAMILY = 7, 8, 9, 11
FORWARDING, MASQUERADING = 0x7, 0  # IP_VS_CONN_F_FWD_MASK, IP_VS_CONN_F_MASQ
PROBE_MARK = 0x6B70726F

NUMBERS = {protocol: PROTOCOL_NUMBERS[protocol.lower()] for protocol in Protocol}
PROTOCOLS = {number: protocol for protocol, number in NUMBERS.items()}
FAMILIES = frozenset(ADDRESS_FAMILY.values())
HOST_MASKS = {  # with the others, persistence holds for a whole network of clients
    socket.AF_INET: netlink.attribute(SVC_NETMASK, b"\xff\xff\xff\xff"),
    socket.AF_INET6: netlink.u32(SVC_NETMASK, ADDRESS_BITS[Family.IPV6]),
}

_U16 = struct.Struct("=H")
_PORT = struct.Struct(">H")
_I32 = struct.Struct("=i")
_FLAGS = struct.Struct("=II")  # struct ip_vs_flags: the flags, and which of them are meant


class Verb(Enum):
    """What an operation does."""

    ADD_SERVER = "add virtual server"
    EDIT_SERVER = "edit virtual server"
    DELETE_SERVER = "delete virtual server"
    ADD_REAL = "add real server"
    EDIT_REAL = "edit real server"
    DELETE_REAL = "delete real server"


class Operation(NamedTuple):
    """One change. For a DELETE_SERVER only the key of `server` counts, for a DELETE_REAL only that of `real`; a
    DELETE_SERVER deletes its real servers as well. real: None unless the verb is about one."""

    verb: Verb
    server: VirtualServer
    real: RealServer | None = None

    def __str__(self) -> str:
        """As in "add real server 10.0.0.1:8080 of TCP 10.96.0.1:443"."""
        if self.real is None:
            return f"{self.verb.value} {self.server.key}"
        return f"{self.verb.value} {self.real.key} of {self.server.key}"


class RealState(NamedTuple):
    """The kernel's state of a real server. masqueraded: False when its forwarding method is not IPVS's NAT, which
    kproxy always uses. active, inactive, persistent: numbers of connections, and of persistence templates, to it."""

    weight: int
    active: int = 0
    inactive: int = 0
    persistent: int = 0
    masqueraded: bool = True

    @property
    def idle(self) -> bool:
        """Whether it has no connections any more."""
        return self.active + self.inactive == 0


class ServerState(NamedTuple):
    """The kernel's state of a virtual server, without its real ones; `server.flags` without HASHED. per_client: False
    when its persistence covers whole networks of clients, which kproxy never asks for."""

    server: VirtualServer
    per_client: bool = True


class Timeouts(NamedTuple):
    """IPVS's connection timeouts in seconds; 0 leaves one as it is."""

    tcp: int = 0
    tcp_fin: int = 0
    udp: int = 0


COMMANDS = {
    Verb.ADD_SERVER: NEW_SERVICE,
    Verb.EDIT_SERVER: SET_SERVICE,
    Verb.DELETE_SERVER: DEL_SERVICE,
    Verb.ADD_REAL: NEW_DEST,
    Verb.EDIT_REAL: SET_DEST,
    Verb.DELETE_REAL: DEL_DEST,
}
HEADERS = {verb: netlink.generic(command, VERSION) for verb, command in COMMANDS.items()}


# ---- requests


def change(operation: Operation) -> bytes:
    """The request for `operation`. Raises ValueError for what cannot be encoded: a bad address, port or weight."""
    verb, server, real = operation
    try:
        if verb in (Verb.ADD_SERVER, Verb.EDIT_SERVER):
            return HEADERS[verb] + netlink.nested(CMD_SERVICE, _named(server.key), _settings(server))
        if verb is Verb.DELETE_SERVER:
            return HEADERS[verb] + _service(server.key)
        if real is None:
            raise ValueError("the operation names no real server")
        return HEADERS[verb] + _service(server.key) + _real(real, whole=verb is not Verb.DELETE_REAL)
    except (OSError, OverflowError, struct.error) as error:
        raise ValueError(str(error)) from None


def servers() -> bytes:
    """The payload of a dump of the virtual servers of all families."""
    return netlink.generic(GET_SERVICE, VERSION)


def reals_of(key: ServerKey) -> bytes:
    """The payload of a dump of the real servers of one virtual server. Raises ValueError."""
    try:
        return netlink.generic(GET_DEST, VERSION) + _service(key)
    except (OSError, OverflowError) as error:
        raise ValueError(str(error)) from None


def timeouts(wanted: Timeouts) -> bytes:
    """The payload that sets the timeouts that are not 0. Raises ValueError."""
    kinds = (CMD_TIMEOUT_TCP, CMD_TIMEOUT_TCP_FIN, CMD_TIMEOUT_UDP)
    try:
        parts = [netlink.u32(kind, seconds) for kind, seconds in zip(kinds, wanted, strict=True) if seconds]
    except struct.error as error:
        raise ValueError(str(error)) from None
    return netlink.generic(SET_CONFIG, VERSION) + b"".join(parts)


def probe(scheduler: str) -> bytes:
    """The payload that adds a virtual server which the kernel must refuse: with ENOENT when it has no such scheduler
    and cannot load it, else with EINVAL, as no IPv6 netmask has length 0. The kernel checks the mask right after the
    scheduler, before it makes anything. So nothing has to be cleaned up, and only a server at [::]:0 is in the way."""
    key = _named(ServerKey(Protocol.TCP, "::", 0))
    return netlink.generic(NEW_SERVICE, VERSION) + netlink.nested(
        CMD_SERVICE, key, _scheduling(scheduler), netlink.u32(SVC_NETMASK, 0)
    )


def mark_probe(scheduler: str) -> tuple[bytes, bytes]:
    """The payloads that add a virtual server which only packets with PROBE_MARK would reach, and delete it again: for
    kernels without IPv6, to be sent in one system call so that the server cannot stay."""
    key = netlink.u16(SVC_AF, socket.AF_INET) + netlink.u32(SVC_FWMARK, PROBE_MARK)
    settings = _scheduling(scheduler) + HOST_MASKS[socket.AF_INET]
    return (
        netlink.generic(NEW_SERVICE, VERSION) + netlink.nested(CMD_SERVICE, key, settings),
        netlink.generic(DEL_SERVICE, VERSION) + netlink.nested(CMD_SERVICE, key),
    )


def _settings(server: VirtualServer) -> bytes:
    mask = HOST_MASKS[address_family(server.key.address)]
    return _scheduling(server.scheduler, server.flags, server.timeout) + mask


def _scheduling(scheduler: str, flags: int = 0, timeout: int = 0) -> bytes:
    return (
        netlink.text(SVC_SCHED_NAME, scheduler)
        + netlink.attribute(SVC_FLAGS, _FLAGS.pack(flags, 0xFFFFFFFF))
        + netlink.u32(SVC_TIMEOUT, timeout)
    )


@functools.lru_cache(1)  # the real servers of a virtual server come one after the other
def _service(key: ServerKey) -> bytes:
    return netlink.nested(CMD_SERVICE, _named(key))


def _named(key: ServerKey) -> bytes:
    family = address_family(key.address)
    return b"".join(
        (
            netlink.u16(SVC_AF, family),
            netlink.u16(SVC_PROTOCOL, NUMBERS[key.protocol]),
            netlink.attribute(SVC_ADDR, socket.inet_pton(family, key.address)),
            netlink.be16(SVC_PORT, key.port),
        )
    )


# The same for all: masqueraded, and any number of connections.
_NO_LIMITS = netlink.u32(DEST_FWD_METHOD, MASQUERADING) + netlink.u32(DEST_U_THRESH, 0) + netlink.u32(DEST_L_THRESH, 0)


def _real(real: RealServer, whole: bool) -> bytes:
    (address, port), weight = real
    family = address_family(address)
    name = (
        netlink.u16(DEST_ADDR_FAMILY, family)
        + netlink.attribute(DEST_ADDR, socket.inet_pton(family, address))
        + netlink.be16(DEST_PORT, port)
    )
    return netlink.nested(CMD_DEST, name, netlink.u32(DEST_WEIGHT, weight) + _NO_LIMITS if whole else b"")


# ---- answers


def server_of(payload: bytes) -> ServerState | None:
    """Decodes one answer to `servers`; None for a server of a firewall mark. Raises ValueError."""
    found = _inner(payload, CMD_SERVICE)
    try:
        protocol = PROTOCOLS.get(_u16(found[SVC_PROTOCOL])) if SVC_PROTOCOL in found else None
        if protocol is None:
            return None
        family = _u16(found[SVC_AF])
        key = ServerKey(protocol, _address(family, found[SVC_ADDR]), _port(found[SVC_PORT]))
        flags, _ = _FLAGS.unpack(found[SVC_FLAGS])
        server = VirtualServer(key, netlink.to_text(found[SVC_SCHED_NAME]), flags & ~HASHED, _i32(found[SVC_TIMEOUT]))
        return ServerState(server, found[SVC_NETMASK] == HOST_MASKS[socket.AddressFamily(family)][4:])
    except (KeyError, OSError, struct.error) as error:
        raise ValueError(f"virtual server: {error!r}") from None


def real_of(payload: bytes, family: Family) -> tuple[RealKey, RealState]:
    """Decodes one answer to `reals_of` a server of `family`; kernels before 3.18 do not report the real server's own
    family. Raises ValueError."""
    if len(payload) >= _LAYOUT.size:
        fields = _LAYOUT.unpack_from(payload)
        if fields[::2] == _LAYOUT_HEADERS and fields[-1] in FAMILIES:
            packed, port, method, weight, active, inactive, persistent, number = fields[1::2]
            state = RealState(weight, active, inactive, persistent, method & FORWARDING == MASQUERADING)
            return RealKey(_address(number, packed), socket.ntohs(port)), state
    found = _inner(payload, CMD_DEST)
    try:
        own = found.get(DEST_ADDR_FAMILY)
        number = _u16(own) if own else ADDRESS_FAMILY[family]
        key = RealKey(_address(number, found[DEST_ADDR]), _port(found[DEST_PORT]))
        masqueraded = _i32(found[DEST_FWD_METHOD]) & FORWARDING == MASQUERADING
        kinds = (DEST_WEIGHT, DEST_ACTIVE, DEST_INACTIVE, DEST_PERSISTENT)
        weight, active, inactive, persistent = (_i32(found[kind]) for kind in kinds)
        return key, RealState(weight, active, inactive, persistent, masqueraded)
    except (KeyError, OSError, struct.error) as error:
        raise ValueError(f"real server: {error!r}") from None


# How kernels since 5.3 encode a real server: the fields of interest, each with the header of its attribute, which is
# compared with the expected one. Real servers are most of a listing, and this saves four fifths of the time for each.
_LAYOUT = struct.Struct("=8x4s16s4sH2x4si4si40x4si4si4si4sH")
_LAYOUT_HEADERS = tuple(
    struct.pack("=HH", 4 + size, kind)
    for kind, size in (
        (DEST_ADDR, 16), (DEST_PORT, 2), (DEST_FWD_METHOD, 4), (DEST_WEIGHT, 4),
        (DEST_ACTIVE, 4), (DEST_INACTIVE, 4), (DEST_PERSISTENT, 4), (DEST_ADDR_FAMILY, 2),
    )
)  # fmt: skip


def _inner(payload: bytes, kind: int) -> dict[int, bytes]:
    return netlink.attributes(netlink.attributes(payload, start=netlink.GENL_HEADER).get(kind, b""))


def _address(family: int, packed: bytes) -> str:
    return socket.inet_ntop(family, packed[: 4 if family == socket.AF_INET else 16])


def _port(data: bytes) -> int:
    (number,) = _PORT.unpack(data)
    return int(number)


def _u16(data: bytes) -> int:
    (number,) = _U16.unpack(data)
    return int(number)


def _i32(data: bytes) -> int:
    (number,) = _I32.unpack(data)
    return int(number)
