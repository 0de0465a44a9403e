"""Answers that are corrupted, cut short, too long, empty or missing fail their request, and none after it."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kproxy.errors import KproxyError, NetlinkError
from kproxy.kernel import constants, interfaces, ipset_codec, ipvs_codec, netlink, netlink_sockets, nfacct, rtnetlink
from kproxy.kernel.ipset import Change, KernelIpSets
from kproxy.kernel.ipset_codec import SetSpec, SetType
from kproxy.kernel.ipvs import KernelIpvs
from kproxy.kernel.ipvs_codec import Operation, Timeouts, Verb
from kproxy.kernel.netlink import NLM_F_DUMP, Message
from kproxy.kernel.netlink_sockets import GENL_ID_CTRL, Socket
from kproxy.kernel.service_device import KernelAddresses
from kproxy.kernel.virtual_servers import RealKey, RealServer, ServerKey, VirtualServer
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.model.plans import Family, Protocol
from tests.fakes.netlink import FakeKernel, acknowledge, listing

SERVER = VirtualServer(ServerKey(Protocol.TCP, "10.96.0.1", 80), "rr")
REAL = RealServer(RealKey("10.244.1.1", 8080))
IPVS = 0x1D
SET = SetSpec("KUBE-CLUSTER-IP", SetType.HASH_IP_PORT, Family.IPV4)


# ---- what a kernel answers


def rtnetlink_kernel(request: Message) -> Iterable[bytes]:
    link = struct.pack("=BxHiII", 0, 0, 7, 1, 0) + netlink.text(rtnetlink.IFLA_IFNAME, SERVICE_DEVICE)
    if request.type == rtnetlink.RTM_GETLINK:
        return listing((rtnetlink.RTM_NEWLINK, link))(request)
    if request.type == rtnetlink.RTM_GETADDR:
        addresses = (rtnetlink.host_address(ip, 7) for ip in ("10.96.0.1", "fd00:96::1"))
        return listing(*((rtnetlink.RTM_NEWADDR, payload) for payload in addresses))(request)
    return listing()(request)


def ipvs_kernel(request: Message) -> Iterable[bytes]:
    if request.type == GENL_ID_CTRL:
        found = netlink.generic(1, 2) + netlink.attribute(netlink_sockets.CTRL_ATTR_FAMILY_ID, struct.pack("=H", IPVS))
        return listing((GENL_ID_CTRL, found))(request)
    if request.flags & NLM_F_DUMP != NLM_F_DUMP:
        return [acknowledge(request)] if request.flags & netlink.NLM_F_ACK else []
    if request.payload[0] == ipvs_codec.GET_SERVICE:
        return listing((IPVS, ipvs_codec.change(Operation(Verb.ADD_SERVER, SERVER))))(request)
    parts = netlink.attribute(ipvs_codec.DEST_ADDR, socket.inet_aton(REAL.key.address))
    parts += netlink.be16(ipvs_codec.DEST_PORT, REAL.key.port)
    numbers = ("FWD_METHOD", "WEIGHT", "ACTIVE", "INACTIVE", "PERSISTENT")
    parts += b"".join(netlink.u32(getattr(ipvs_codec, f"DEST_{name}"), 0) for name in numbers)
    return listing((IPVS, netlink.generic(8, 1) + netlink.nested(ipvs_codec.CMD_DEST, parts)))(request)


def ipset_kernel(request: Message) -> Iterable[bytes]:
    head = ipset_codec.named(SET.name)
    if request.type == ipset_codec.LIST:
        entry = netlink.nested(ipset_codec.ATTR_DATA, ipset_codec.entry("10.96.0.1,tcp:80"))
        parts = netlink.text(ipset_codec.ATTR_TYPENAME, SET.type) + netlink.attribute(ipset_codec.ATTR_FAMILY, b"\2")
        return listing((ipset_codec.LIST, head + parts + netlink.nested(ipset_codec.ATTR_ADT, entry)))(request)
    if request.type == ipset_codec.TYPE:
        revisions = netlink.attribute(ipset_codec.ATTR_REVISION, b"\6") + netlink.attribute(10, b"\0")
        return listing((ipset_codec.TYPE, head + revisions))(request)
    if request.type == ipset_codec.ADD:
        refusal = struct.pack("=i", -ipset_codec.HASH_FULL) + netlink.message(
            request.type, request.flags, request.seq, request.payload
        )
        return [netlink.message(netlink.NLMSG_ERROR, 0, request.seq, refusal)]
    return listing()(request)


def nfacct_kernel(request: Message) -> Iterable[bytes]:
    parts = netlink.text(nfacct.NFACCT_NAME, "a") + netlink.be64(nfacct.NFACCT_PKTS, 1) + netlink.be64(3, 2)
    return listing((nfacct.NEW, netlink.netfilter(0) + parts))(request)


def table_kernel(request: Message) -> Iterable[bytes]:
    return [acknowledge(request, errno.ENOENT)] if request.flags & netlink.NLM_F_ACK else []


# ---- who reads it: how the reader is made, and what it is asked


def transact(kernel: Socket) -> object:
    return {index: error.errno for index, error in kernel.transact(10, [(0xA00, 0, b"")] * 2, "change").items()}


Ask = Callable[[Any], object]
Reader = tuple[Callable[[Message], Iterable[bytes]], Callable[[], AbstractContextManager[Any]], Ask]
READERS: dict[str, Reader] = {
    "interfaces": (rtnetlink_kernel, nullcontext, lambda _: interfaces.interfaces()),
    "addresses held": (rtnetlink_kernel, KernelAddresses, lambda device: [device.held(family) for family in Family]),
    "addresses changed": (
        rtnetlink_kernel,
        KernelAddresses,
        lambda device: device.change(["10.96.0.2", "fd00:96::2"], ["10.96.0.1"]),
    ),
    "device ensured": (rtnetlink_kernel, KernelAddresses, lambda device: device.ensure()),
    "device removed": (rtnetlink_kernel, KernelAddresses, lambda device: device.remove()),
    "IPVS opened": (ipvs_kernel, nullcontext, lambda _: KernelIpvs().close()),
    "virtual servers": (ipvs_kernel, KernelIpvs, lambda ipvs: [ipvs.servers(family) for family in Family]),
    "real servers": (ipvs_kernel, KernelIpvs, lambda ipvs: ipvs.reals(SERVER.key)),
    "IPVS changed": (
        ipvs_kernel,
        KernelIpvs,
        lambda ipvs: ipvs.apply([Operation(Verb.ADD_SERVER, SERVER), Operation(Verb.ADD_REAL, SERVER, REAL)]),
    ),
    "timeouts": (ipvs_kernel, KernelIpvs, lambda ipvs: ipvs.set_timeouts(Timeouts(1, 2, 3))),
    "sets held": (ipset_kernel, KernelIpSets, lambda sets: sets.held([SET.name])),
    "sets created": (ipset_kernel, KernelIpSets, lambda sets: sets.create([SET])),
    "entries refused": (
        ipset_kernel,
        KernelIpSets,
        lambda sets: {c: e.errno for c, e in sets.apply([Change(SET.name, "10.0.0.1,tcp:1", True)]).items()},
    ),
    "sets destroyed": (ipset_kernel, KernelIpSets, lambda sets: sets.destroy([SET.name])),
    "counters": (nfacct_kernel, nullcontext, lambda _: nfacct.counters()),
    "counter made": (nfacct_kernel, nullcontext, lambda _: nfacct.ensure("a")),
    "counter removed": (nfacct_kernel, nullcontext, lambda _: nfacct.remove("a")),
    "transaction": (table_kernel, lambda: Socket(constants.NETLINK_NETFILTER), transact),
}

Mutation = Callable[[bytes], list[bytes]]


def at(data: bytes, place: float) -> int:
    return int(place * len(data))


def cut(place: float, data: bytes) -> list[bytes]:
    return [data[: at(data, place)]]


def overwritten(place: float, by: bytes, data: bytes) -> list[bytes]:
    start = at(data, place)
    return [data[:start] + by + data[start + len(by) :]]


def inserted(place: float, what: bytes, data: bytes) -> list[bytes]:
    start = at(data, place)
    return [data[:start] + what + data[start:]]


PLACES = st.floats(0, 1, exclude_max=True)
MUTATIONS: st.SearchStrategy[Mutation] = st.one_of(
    PLACES.map(lambda place: partial(cut, place)),
    st.builds(lambda place, by: partial(overwritten, place, by), PLACES, st.binary(min_size=1, max_size=6)),
    st.builds(lambda place, what: partial(inserted, place, what), PLACES, st.binary(min_size=1, max_size=20)),
    st.binary(max_size=60).map(lambda noise: lambda data: [noise]),
    st.sampled_from([lambda data: [], lambda data: [data + bytes(70_000)], lambda data: [data, data]]),
)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    made = FakeKernel()
    monkeypatch.setattr(socket, "socket", made.socket_class())
    monkeypatch.setattr(netlink_sockets, "ANSWER_TIMEOUT", 0.01)
    return made


def allow(seconds: float, reader: object = None) -> None:
    """How long the next answers may take: what is whole comes at once, but a busy machine may wake us later."""
    netlink_sockets.ANSWER_TIMEOUT = seconds
    for each in (reader, *getattr(reader, "__dict__", {}).values()):
        if isinstance(each, Socket):
            each._timeout = seconds


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_answer_is_read_or_a_clear_error(kernel: FakeKernel, name: str) -> None:
    answer, make, ask = READERS[name]
    kernel.answer = answer
    allow(10.0)
    with make() as reader:
        wanted = ask(reader)

    @settings(max_examples=60, deadline=5000)
    @given(mutation=MUTATIONS, which=st.integers(0, 3))
    @example(mutation=lambda data: [b""], which=0)
    @example(mutation=lambda data: [b"\0" * 16], which=0)
    @example(mutation=partial(overwritten, 0.46875, b"\x00\x80"), which=0)
    def ask_once(mutation: Mutation, which: int) -> None:
        seen = 0

        def mutated(request: Message) -> Iterable[bytes]:
            nonlocal seen
            for datagram in answer(request):
                yield from mutation(datagram) if seen == which else [datagram]
                seen += 1

        kernel.answer = answer
        with make() as reader:
            kernel.answer = mutated
            allow(0.01, reader)
            with suppress(KproxyError):
                ask(reader)
            kernel.answer = answer
            allow(10.0, reader)
            assert ask(reader) == wanted, "what comes after it is read as ever"

    ask_once()


def test_after_garbage_the_socket_is_another_one_with_the_same_port_id(kernel: FakeKernel) -> None:
    kernel.answer = lambda request: [b"garbage" * 9]
    with Socket(0) as asking:
        portid = asking.portid
        with pytest.raises(NetlinkError, match="list links: Bad message: the answer cannot be read") as raised:
            asking.dump(18, bytes(16), "list links")
        assert raised.value.errno == errno.EBADMSG
        kernel.answer = rtnetlink_kernel
        assert len(asking.dump(18, bytes(16), "list links")) == 2
        assert (asking.portid, kernel.opened) == (portid, [portid, portid])


def test_the_wait_ends_even_if_answers_to_others_keep_coming(kernel: FakeKernel) -> None:
    kernel.answer = lambda request: [netlink.message(16, 0, request.seq + 77, bytes(16))] * 50
    with Socket(0, timeout=0.05) as asking:
        start = time.monotonic()
        with pytest.raises(NetlinkError) as raised:
            asking.ask(18, b"", "look")
        assert (raised.value.errno, time.monotonic() - start < 5) == (errno.ETIMEDOUT, True)


def test_a_transaction_without_any_answer_is_not_taken_for_done(kernel: FakeKernel) -> None:
    kernel.answer = lambda request: []
    with Socket(12) as asking, pytest.raises(NetlinkError) as raised:
        asking.transact(10, [(0xA00, 0, b"")], "change")
    assert raised.value.errno == errno.ETIMEDOUT


def test_sequence_numbers_start_anew_before_they_are_too_large(kernel: FakeKernel) -> None:
    kernel.answer = rtnetlink_kernel
    with Socket(0) as asking:
        asking._seq = netlink_sockets.SEQUENCE_LIMIT - 2
        for _ in range(4):
            assert len(asking.ask(18, b"", "look")) == 1
        assert [request.seq for request in kernel.requests[-4:]] == [0xFFFFFFFE, 0xFFFFFFFF, 1, 2]


@given(st.binary(max_size=100))
@example(netlink.message(rtnetlink.RTM_NEWADDR, 0, 0, b"\2"))
def test_notifications_that_cannot_be_read_may_be_about_the_node(data: bytes) -> None:
    assert interfaces._concerns_the_node(data) in (True, False)
