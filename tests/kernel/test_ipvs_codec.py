"""Requests about IPVS are encoded byte by byte as in the kernel's header, and its answers are decoded."""

from __future__ import annotations

import ipaddress
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.kernel import ipvs_codec as codec
from kproxy.kernel import netlink
from kproxy.kernel.ipvs_codec import Operation, RealState, Timeouts, Verb
from kproxy.kernel.virtual_servers import HASHED, PERSISTENT, RealKey, RealServer, ServerKey, VirtualServer
from kproxy.model.plans import Family, Protocol

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are those of a little-endian host")

V4 = ServerKey(Protocol.TCP, "10.96.0.1", 443)
V6 = ServerKey(Protocol.UDP, "fd00::1", 53)
# struct genlmsghdr (command, version 1), then IPVS_CMD_ATTR_SERVICE with AF, PROTOCOL, ADDR and PORT.
KEY_V4 = "06000100 02000000 06000200 06000000 08000300 0a600001 06000400 01bb0000"
KEY_V6 = "06000100 0a000000 06000200 11000000 14000300 fd000000000000000000000000000001 06000400 00350000"
SAID = {
    "add": (
        Operation(Verb.ADD_SERVER, VirtualServer(V4, "rr")),
        f"01010000 48000180 {KEY_V4} 07000600 72720000 0c000700 00000000 ffffffff 08000800 00000000 08000900 ffffffff",
    ),
    "edit": (
        Operation(Verb.EDIT_SERVER, VirtualServer(V6, "sh", PERSISTENT, 10800)),
        f"02010000 54000180 {KEY_V6} 07000600 73680000 0c000700 01000000 ffffffff 08000800 302a0000 08000900 80000000",
    ),
    "delete": (Operation(Verb.DELETE_SERVER, VirtualServer(V4, "rr")), f"03010000 24000180 {KEY_V4}"),
    "add real": (
        Operation(Verb.ADD_REAL, VirtualServer(V4, "rr"), RealServer(RealKey("10.0.0.1", 8443), 3)),
        f"05010000 24000180 {KEY_V4}"
        "3c000280 06000b00 02000000 08000100 0a000001 06000200 20fb0000"
        "08000400 03000000 08000300 00000000 08000500 00000000 08000600 00000000",
    ),
    "edit real": (
        Operation(Verb.EDIT_REAL, VirtualServer(V4, "rr"), RealServer(RealKey("10.0.0.1", 8443), 0)),
        f"06010000 24000180 {KEY_V4}"
        "3c000280 06000b00 02000000 08000100 0a000001 06000200 20fb0000"
        "08000400 00000000 08000300 00000000 08000500 00000000 08000600 00000000",
    ),
    "delete real": (
        Operation(Verb.DELETE_REAL, VirtualServer(V6, "rr"), RealServer(RealKey("fd01::2", 5353))),
        f"07010000 30000180 {KEY_V6}"
        "28000280 06000b00 0a000000 14000100 fd010000000000000000000000000002 06000200 14e90000",
    ),
}


@little_endian
@pytest.mark.parametrize("name", SAID)
def test_each_verb_is_encoded_as_in_the_header(name: str) -> None:
    operation, wanted = SAID[name]
    assert codec.change(operation).hex() == wanted.replace(" ", "")


def test_the_table_has_every_verb() -> None:
    assert {operation.verb for operation, _ in SAID.values()} == set(Verb)


@little_endian
def test_queries_and_timeouts_are_encoded_as_in_the_header() -> None:
    assert codec.servers().hex() == "04010000"
    assert codec.reals_of(V4).hex() == f"08010000 24000180 {KEY_V4}".replace(" ", "")
    every = "0c010000 08000400 e8030000 08000500 14000000 08000600 1e000000"
    assert codec.timeouts(Timeouts(1000, 20, 30)).hex() == every.replace(" ", "")
    assert codec.timeouts(Timeouts(udp=30)).hex() == "0c010000080006001e000000"


# What Debian's kernel 6.1 answered after `ipvsadm -A -t 10.96.0.1:443 -s wrr -p 10800` and its like; the statistics at
# the end, which nobody reads, are left at zeros.
STATISTICS = "5c000a00" + "00" * 88 + "7c000c00" + "00" * 120
PERSISTENT_WRR = (
    "01010000 2c010100 06000100 02000000 06000200 06000000 14000300 0a600001000000000000000000000000 06000400 01bb0000"
    "08000600 77727200 0c000700 03000000 ffffffff 08000800 302a0000 08000900 ffffffff" + STATISTICS
)
SH_V6 = (
    "01010000 2c010100 06000100 0a000000 06000200 11000000 14000300 fd000000000000000000000000000001 06000400 00350000"
    "07000600 73680000 0c000700 12000000 ffffffff 08000800 00000000 08000900 80000000" + STATISTICS
)
MASQUERADED = (
    "05010000 50010200 14000100 0a000001000000000000000000000000 06000200 20fb0000 08000300 00000000 08000400 03000000"
    "05000d00 00000000 06000e00 00000000 06000f00 00000000 08000500 00000000 08000600 00000000 08000700 02000000"
    "08000800 07000000 08000900 01000000 06000b00 02000000" + STATISTICS
)
DIRECT_V6 = (
    "05010000 50010200 14000100 fd010000000000000000000000000002 06000200 00350000 08000300 03000000 08000400 00000000"
    "05000d00 00000000 06000e00 00000000 06000f00 00000000 08000500 00000000 08000600 00000000 08000700 00000000"
    "08000800 00000000 08000900 00000000 06000b00 0a000000" + STATISTICS
)


@little_endian
def test_virtual_servers_are_read_as_the_kernel_writes_them() -> None:
    wrr, sh = (codec.server_of(bytes.fromhex(answer)) for answer in (PERSISTENT_WRR, SH_V6))
    assert wrr == codec.ServerState(VirtualServer(V4, "wrr", PERSISTENT, 10800), per_client=True)
    assert sh == codec.ServerState(VirtualServer(V6, "sh", 0x10), per_client=True)


@little_endian
def test_real_servers_are_read_as_the_kernel_writes_them() -> None:
    found = codec.real_of(bytes.fromhex(MASQUERADED), Family.IPV4)
    assert found == (RealKey("10.0.0.1", 8443), RealState(weight=3, active=2, inactive=7, persistent=1))
    found = codec.real_of(bytes.fromhex(DIRECT_V6), Family.IPV6)
    assert found == (RealKey("fd01::2", 53), RealState(weight=0, masqueraded=False))


@little_endian
def test_real_servers_of_a_kernel_that_knows_no_tunnels_are_read_alike() -> None:
    tunnel = "05000d00 00000000 06000e00 00000000 06000f00 00000000"
    for answer in (MASQUERADED, DIRECT_V6):
        older = answer.replace(tunnel, "").replace("50010200", "38010200")
        assert len(older) < len(answer)
        found = codec.real_of(bytes.fromhex(older), Family.IPV4)
        assert found == codec.real_of(bytes.fromhex(answer), Family.IPV4)


@little_endian
def test_persistence_of_networks_is_recognized() -> None:
    networks = bytes.fromhex(PERSISTENT_WRR.replace("08000900 ffffffff", "08000900 ffffff00"))
    state = codec.server_of(networks)
    assert state is not None
    assert not state.per_client


def test_servers_of_firewall_marks_are_skipped() -> None:
    mark = netlink.nested(1, netlink.u16(1, 2), netlink.u32(5, 77), netlink.text(6, "rr"))
    assert codec.server_of(b"\1\1\0\0" + mark) is None


def test_real_servers_without_a_family_have_that_of_the_virtual_server() -> None:
    parts = [netlink.attribute(1, ipaddress.ip_address("10.0.0.1").packed + bytes(12)), netlink.be16(2, 80)]
    parts += [netlink.u32(kind, 0) for kind in (3, 4, 7, 8, 9)]
    found, _ = codec.real_of(b"\5\1\0\0" + netlink.nested(2, *parts), Family.IPV4)
    assert found == RealKey("10.0.0.1", 80)


PORTS = st.integers(0, 0xFFFF)
ADDRESSES = st.ip_addresses().map(lambda address: str(address) if address.version == 4 else _written(address.packed))
NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=15)
KEYS = st.builds(ServerKey, st.sampled_from(Protocol), ADDRESSES, PORTS)
SERVERS = st.builds(
    VirtualServer, KEYS, NAMES, st.integers(0, 0xFF).map(lambda flags: flags & ~HASHED), st.integers(0, 2**31 - 1)
)
REALS = st.builds(RealServer, st.builds(RealKey, ADDRESSES, PORTS), st.integers(0, 2**31 - 1))


def _written(packed: bytes) -> str:
    """As the C library writes it, which has ::ffff:1.2.3.4."""
    return socket.inet_ntop(socket.AF_INET6, packed)


@given(SERVERS, st.sampled_from((Verb.ADD_SERVER, Verb.EDIT_SERVER)))
def test_a_virtual_server_that_is_written_is_read_again(server: VirtualServer, verb: Verb) -> None:
    assert codec.server_of(codec.change(Operation(verb, server))) == codec.ServerState(server, per_client=True)


@given(SERVERS, REALS)
def test_a_real_server_that_is_written_is_read_again(server: VirtualServer, real: RealServer) -> None:
    written = codec.change(Operation(Verb.ADD_REAL, server, real))
    inner = netlink.attributes(written, start=4)[2]
    counters = b"".join(netlink.u32(kind, 0) for kind in (7, 8, 9))
    found = codec.real_of(b"\5\1\0\0" + netlink.nested(2, inner, counters), Family.IPV4)
    assert found == (real.key, RealState(real.weight))


NOT_ENCODABLE = {
    "address": (ServerKey(Protocol.TCP, "10.0.0.300", 80), RealServer(RealKey("10.0.0.1", 80))),
    "port": (ServerKey(Protocol.TCP, "10.0.0.1", 65536), RealServer(RealKey("10.0.0.1", 80))),
    "negative port": (ServerKey(Protocol.TCP, "10.0.0.1", -1), RealServer(RealKey("10.0.0.1", 80))),
    "address of the real one": (V4, RealServer(RealKey("fd00::x", 80))),
    "port of the real one": (V4, RealServer(RealKey("10.0.0.1", 70000))),
    "weight": (V4, RealServer(RealKey("10.0.0.1", 80), -1)),
    "none": (V4, None),
}


@pytest.mark.parametrize("what", NOT_ENCODABLE)
def test_what_cannot_be_encoded_is_a_value_error(what: str) -> None:
    key, real = NOT_ENCODABLE[what]
    with pytest.raises(ValueError, match=r"\S"):
        codec.change(Operation(Verb.ADD_REAL, VirtualServer(key, "rr"), real))


def test_timeouts_that_are_no_times_are_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"\S"):
        codec.timeouts(Timeouts(tcp=-1))


def test_an_operation_names_its_object() -> None:
    server, real = VirtualServer(V6, "rr"), RealServer(RealKey("fd01::2", 5353))
    assert str(Operation(Verb.EDIT_SERVER, server)) == "edit virtual server UDP [fd00::1]:53"
    assert str(Operation(Verb.ADD_REAL, server, real)) == "add real server [fd01::2]:5353 of UDP [fd00::1]:53"
