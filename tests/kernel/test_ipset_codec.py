"""Requests about ipsets are encoded byte by byte as in the kernel's header, and its answers are decoded."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import NetlinkError
from kproxy.kernel import ipset_codec as codec
from kproxy.kernel import netlink
from kproxy.kernel.ipset_codec import Header, SetSpec, SetType
from kproxy.model.plans import Family

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are those of a little-endian host")

# Attributes have the flags nested (0x8000) and big-endian (0x4000) where the kernel insists on them.
ENTRIES = {
    "10.0.0.1": "0c000180 08000140 0a000001",
    "fd00::1": "18000180 14000240 fd000000000000000000000000000001",
    "30080": "06000440 75800000",
    "0": "06000440 00000000",
    "10.0.0.1,tcp:80": "0c000180 08000140 0a000001 06000440 00500000 05000700 06000000",
    "10.0.0.1,sctp:65535": "0c000180 08000140 0a000001 06000440 ffff0000 05000700 84000000",
    "10.0.0.1,udp:53,10.0.0.2": (
        "0c000180 08000140 0a000001 06000440 00350000 05000700 11000000 0c001480 08000140 0a000002"
    ),
    "10.0.0.1,tcp:80,10.0.0.0/8": (
        "0c000180 08000140 0a000001 06000440 00500000 05000700 06000000"
        "0c001480 08000140 0a000000 05001500 08000000"
    ),
    "10.0.0.1,tcp:80,10.0.0.0/8 nomatch": (
        "0c000180 08000140 0a000001 06000440 00500000 05000700 06000000"
        "0c001480 08000140 0a000000 05001500 08000000 08000840 00000004"
    ),
}  # fmt: skip
START = "02000000 05000100 06000000"  # struct nfgenmsg of IPv4, IPSET_ATTR_PROTOCOL 6
NAMED = f"{START} 06000200 53000000"  # IPSET_ATTR_SETNAME S


@little_endian
@pytest.mark.parametrize("text", ENTRIES)
def test_each_kind_of_entry_is_encoded_as_in_the_header(text: str) -> None:
    assert codec.entry(text).hex() == ENTRIES[text].replace(" ", "")


@little_endian
def test_requests_are_encoded_as_in_the_header() -> None:
    hash_ip, ports = (SetSpec("S", type_, Family.IPV6) for type_ in (SetType.HASH_IP, SetType.BITMAP_PORT))
    said = {
        codec.named("S"): NAMED,
        codec.pair("S", "T"): f"{NAMED} 06000300 54000000",
        codec.type_query(SetType.HASH_IP, Family.IPV6): f"{START} 0c000300 686173683a697000 05000500 0a000000",
        codec.creation(hash_ip, 4, 65536): (
            f"{NAMED} 0c000300 686173683a697000 05000400 04000000 05000500 0a000000"
            "14000780 08001240 00000400 08001340 00010000"
        ),
        # A bitmap is of no family, so that rules of both can match on it; from port 0 to port 65535.
        codec.creation(ports, 3, 65536): (
            f"{NAMED} 10000300 6269746d61703a706f727400 05000400 03000000 05000500 00000000"
            "14000780 06000440 00000000 06000540 ffff0000"
        ),
        codec.numbered("S", [codec.entry("1"), codec.entry("2")]): (
            f"{NAMED} 08000900 00000000 2c000880"
            "14000780 06000440 00010000 08000900 01000000 14000780 06000440 00020000 08000900 02000000"
        ),
    }
    for data, wanted in said.items():
        assert data.hex() == wanted.replace(" ", "")


# What Linux 6.18 answered to a listing of a set that ipset made: hash:ip,port,net with two entries, and bitmap:port.
LISTED_NET = (
    "02000000 05000100 06000000 06000200 61000000 15000300 686173683a69702c706f72742c6e657400000000 05000500 02000000"
    "05000400 08000000 3c000780 08001240 00000400 08001340 00010000 05001500 0c000000 08001140 1ef98d48"
    "08001940 00000003 08001a40 00000240 08001840 00000002 74000880"
    "3c000780 0c000180 08000100 0a000001 0c001480 08000100 0a000000 06000440 00500000 05001500 08000000"
    "05000700 06000000 08000840 00000004"
    "34000780 0c000180 08000100 0a000001 0c001480 08000100 0a000004 06000440 00500000 05001500 20000000"
    "05000700 06000000"
)
LISTED_PORTS = (
    "02000000 05000100 06000000 06000200 70000000 10000300 6269746d61703a706f727400 05000500 00000000 05000400 03000000"
    "2c000780 06000440 00000000 06000540 ffff0000 08001940 00000000 08001a40 00002048 08001840 00000001"
    "10000880 0c000780 06000440 75800000"
)


@little_endian
def test_listings_are_read_as_the_kernel_writes_them() -> None:
    net, ports = bytes.fromhex(LISTED_NET), bytes.fromhex(LISTED_PORTS)
    assert codec.header_of(net) == Header("hash:ip,port,net", Family.IPV4, references=3, limit=65536)
    assert list(codec.entries_of(net)) == ["10.0.0.1,tcp:80,10.0.0.0/8 nomatch", "10.0.0.1,tcp:80,10.0.0.4"]
    assert codec.header_of(ports) == Header("bitmap:port", None)
    assert list(codec.entries_of(ports)) == ["30080"]


def test_a_message_that_continues_a_set_has_no_header() -> None:
    assert codec.header_of(codec.named("S")) is None


def test_protocols_without_ports_are_shown_by_number() -> None:
    data = codec.entry("10.0.0.1,tcp:80").replace(b"\x05\x00\x07\x00\x06", b"\x05\x00\x07\x00\x2f")
    assert _read(data) == ["10.0.0.1,47:80"]


def _read(*entries: bytes) -> list[str]:
    return list(codec.entries_of(bytes(4) + netlink.nested(8, *(netlink.nested(7, data) for data in entries))))


IPS = st.ip_addresses().map(lambda a: socket.inet_ntop(socket.AF_INET6, a.packed) if a.version == 6 else str(a))
PORTS = st.tuples(st.sampled_from(("tcp", "udp", "sctp")), st.integers(0, 0xFFFF)).map(lambda p: f"{p[0]}:{p[1]}")


def _network(ip: str, length: int) -> str:
    """As ipset writes it: the length of a host is left away."""
    size = 128 if ":" in ip else 32
    return ip if length % size == 0 else f"{ip}/{length % size}"


NETS = st.builds(_network, IPS, st.integers(0, 128))
TEXTS = st.one_of(
    IPS,
    st.integers(0, 0xFFFF).map(str),
    st.tuples(IPS, PORTS).map(",".join),
    st.tuples(IPS, PORTS, IPS).map(",".join),
    st.tuples(IPS, PORTS, NETS).map(",".join),
    st.tuples(IPS, PORTS, NETS).map(lambda parts: ",".join(parts) + " nomatch"),
)


@given(st.lists(TEXTS, max_size=5))
def test_entries_that_are_written_are_read_again(texts: list[str]) -> None:
    assert _read(*map(codec.entry, texts)) == texts


@given(
    st.one_of(st.text(max_size=30), TEXTS.map(lambda text: text.replace(":", ",", 1)), TEXTS.map(lambda t: t + ",x"))
)
def test_any_text_is_written_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        shown = _read(codec.entry(text))
        assert _read(*map(codec.entry, shown)) == shown


NO_ENTRIES = (
    "", ",", "10.0.0", "10.0.0.1/8", "10.0.0.1,80", "10.0.0.1,tcp:http", "10.0.0.1,icmp:0", "10.0.0.1,tcp:65536",
    "10.0.0.1,tcp:-1", "65536", "-1", "1e3", "٣", "10.0.0.1,tcp:80,10.0.0.0/x", "10.0.0.1,tcp:80,10.0.0.0/256",
    "10.0.0.1,tcp:80,10.0.0.1,10.0.0.2", "fd00::x,tcp:80", "10.0.0.1,tcp:80:81", "10.0.0.1 nomatch", "80 nomatch",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_ENTRIES)
def test_what_is_no_entry_is_a_value_error_that_names_it(text: str) -> None:
    with pytest.raises(ValueError, match="not an entry of an ipset") as raised:
        codec.entry(text)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("kernel", "ours"),
    [((0, 6), 4), ((0, 4), 4), ((0, 2), 2), ((5, 6), 5), ((1, 1), 1)],
    ids=["newer", "as new", "older", "only newer", "one"],
)
def test_a_set_gets_the_newest_revision_that_old_tools_know(kernel: tuple[int, int], ours: int) -> None:
    oldest, newest = kernel
    answer = bytes(4) + netlink.attribute(4, bytes([newest])) + netlink.attribute(10, bytes([oldest]))
    assert codec.revision_of(answer, SetType.HASH_IP) == ours


@pytest.mark.parametrize("place", [0, 1, 70_000])
def test_the_place_of_a_refused_entry_is_read(place: int) -> None:
    request = netlink.message(codec.ADD, 0, 1, bytes(4) + netlink.text(2, "S") + netlink.u32(9, place))
    refusal = netlink.Message(netlink.NLMSG_ERROR, 0, 1, 0, bytes(4) + request + b"anything that the kernel left there")
    assert codec.refused_entry(refusal) == place


def test_ipsets_own_error_numbers_are_translated_to_the_systems() -> None:
    assert str(codec.explained(NetlinkError("destroy ipset S", 4100))) == (
        "destroy ipset S: Device or resource busy: a rule uses it"
    )
    unknown = NetlinkError("try", 4999)
    assert codec.explained(unknown) is unknown
    assert codec.explained(NetlinkError("try", errno.ENOENT)).errno == errno.ENOENT
