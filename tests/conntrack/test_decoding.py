"""Entries as the kernel sends them become Flows, by the fast way and by the thorough one alike."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.conntrack.codec import decode, deletion
from kproxy.conntrack.stale_flows import Flow
from kproxy.kernel import netlink
from kproxy.model.plans import Family, Protocol

NEW, DELETE = 1 << 8, 1 << 8 | 2
PORT = st.integers(0, 0xFFFF)
NUMBERS = {Protocol.UDP: 17, Protocol.SCTP: 132}


def addresses(family: Family) -> st.SearchStrategy[str]:
    width, domain = (4, socket.AF_INET) if family is Family.IPV4 else (16, socket.AF_INET6)
    return st.binary(min_size=width, max_size=width).map(lambda packed: socket.inet_ntop(domain, packed))


@st.composite
def a_flow(draw: st.DrawFn) -> Flow:
    ip = addresses(draw(st.sampled_from(list(Family))))
    zone = draw(st.sampled_from([0, 0, 7, 0xFFFF]))
    return Flow(
        draw(st.sampled_from(list(NUMBERS))),
        draw(ip), draw(PORT), draw(ip), draw(PORT), draw(ip), draw(PORT),
        zone, bool(zone) and draw(st.booleans()), draw(st.integers(0, 2**32 - 1)),
    )  # fmt: skip


def half(kind: int, protocol: int, source: str, sport: int, to: str, dport: int, zone: int, shuffled: bool) -> bytes:
    """One tuple; `shuffled` has its parts in an order that the kernel does not use today."""
    six = ":" in source
    ips = [netlink.attribute(2 * six + i, socket.inet_pton(10 if six else 2, a)) for i, a in ((1, source), (2, to))]
    proto = [netlink.attribute(1, bytes([protocol])), netlink.be16(2, sport), netlink.be16(3, dport)]
    parts = [netlink.nested(1, *ips), netlink.nested(2, *proto), *([netlink.be16(3, zone)] if zone else [])]
    return netlink.nested(kind, *(reversed(parts) if shuffled else parts))


def entry(flow: Flow, shuffled: bool = False, number: int = 0) -> bytes:
    """The kernel's message for `flow` (of another protocol `number`), as nf_conntrack_netlink.c writes it."""
    family = 10 if ":" in flow.source else 2
    number = number or NUMBERS[flow.protocol]
    inner, outer = (flow.zone, 0) if flow.zone_of_original else (0, flow.zone)
    parts = [
        half(1, number, flow.source, flow.source_port, flow.destination, flow.destination_port, inner, shuffled),
        half(2, number, flow.reply_source, flow.reply_port, flow.source, flow.source_port, 0, shuffled),
        netlink.be16(18, outer) if outer else b"",
        netlink.be32(3, 0x188),  # status
        netlink.be32(8, 0),  # mark
        netlink.be32(12, flow.id),
        netlink.be32(11, 1),  # use
        netlink.be32(7, 99),  # timeout
    ]
    return netlink.message(NEW, 2, 1, netlink.netfilter(family) + b"".join(parts))


def of(flows: list[Flow], family: Family) -> list[Flow]:
    return [f for f in flows if (":" in f.source) == (family is Family.IPV6)]


@given(st.lists(st.tuples(a_flow(), st.booleans()), max_size=8), st.sampled_from(list(Family)))
def test_every_entry_of_the_family_is_decoded(entries: list[tuple[Flow, bool]], family: Family) -> None:
    data = [entry(flow, shuffled) for flow, shuffled in entries]
    done = netlink.message(netlink.NLMSG_DONE, 2, 1, bytes(4))
    expected = of([flow for flow, _ in entries], family)
    assert decode([*data, done], family) == expected
    assert decode([b"".join([*data, done])], family) == expected


@given(a_flow())
def test_an_entry_is_named_by_what_it_was_decoded_to(flow: Flow) -> None:
    """What a deletion says of the entry is what the kernel said: original tuple, zone and id."""
    asked = netlink.attributes(deletion(flow), start=4)
    (sent,) = netlink.messages(entry(flow))
    told = netlink.attributes(sent.payload, start=4)
    assert asked[1] == told[1]
    assert asked.get(18) == told.get(18)
    assert asked.get(12, bytes(4)) == told[12]
    assert set(asked) <= {1, 12, 18}


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("number", [1, 6, 132])
def test_other_protocols_are_passed_over(number: int, shuffled: bool) -> None:
    flow = Flow(Protocol.UDP, "10.0.0.1", 1, "10.0.0.2", 2, "10.0.0.3", 3, id=9)
    data = [entry(flow, shuffled, number), entry(flow, shuffled)]
    assert decode(data, Family.IPV4, {Protocol.UDP}) == [flow]


def test_an_entry_without_ports_is_passed_over() -> None:
    icmp = netlink.nested(1, netlink.nested(2, netlink.attribute(1, b"\x01"), netlink.be16(4, 77)))
    assert decode([netlink.message(NEW, 2, 1, netlink.netfilter(2) + icmp)], Family.IPV4) == []
    assert decode([netlink.message(NEW, 2, 1, netlink.netfilter(2))], Family.IPV4) == []


def test_a_datagram_cut_short_is_refused() -> None:
    data = entry(Flow(Protocol.UDP, "10.0.0.1", 1, "10.0.0.2", 2, "10.0.0.3", 3, id=9))
    with pytest.raises(ValueError, match="wrong length"):
        decode([data[:-4]], Family.IPV4)
