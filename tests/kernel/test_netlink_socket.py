"""Requests, dumps and transactions on the real kernel, in a network namespace of the test's own."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import pytest

from kproxy.errors import NetlinkError
from kproxy.kernel import netlink
from kproxy.kernel.netlink_sockets import REFUSALS_BUFFER, Overrun, Part, Socket

NETFILTER, ROUTE, NFTABLES = 12, 0, 10
NEWTABLE, DELTABLE, NEWCHAIN, GETCHAIN = (NFTABLES << 8 | n for n in (0, 2, 3, 4))


def table(name: str) -> Part:
    return (NEWTABLE, netlink.NLM_F_CREATE, netlink.netfilter(socket.AF_INET) + netlink.text(1, name))


def chain(table: str, name: str) -> Part:
    names = netlink.text(1, table) + netlink.text(3, name)
    return (NEWCHAIN, netlink.NLM_F_CREATE, netlink.netfilter(socket.AF_INET) + names)


def chains(kernel: Socket) -> list[str]:
    data = kernel.dump(GETCHAIN, netlink.netfilter(socket.AF_INET), "list chains")
    found = [m for d in data for m in netlink.messages(d) if m.type == NEWCHAIN]
    return [netlink.to_text(netlink.attributes(m.payload, start=4)[3]) for m in found]


def test_a_transaction_happens_whole_and_a_dump_spans_datagrams(netns: None) -> None:
    names = [f"chain-{i}" for i in range(1500)]
    with Socket(NETFILTER) as kernel:
        assert kernel.transact(NFTABLES, [table("t"), *(chain("t", n) for n in names)], "make chains") == {}
        assert len(kernel.dump(GETCHAIN, netlink.netfilter(socket.AF_INET), "list chains")) > 1
        assert chains(kernel) == names


def test_a_refused_transaction_changes_nothing_and_names_the_parts(netns: None) -> None:
    with Socket(NETFILTER) as kernel:
        errors = kernel.transact(NFTABLES, [table("t"), chain("t", "good"), chain("none", "bad")], "make chains")
        assert {index: error.errno for index, error in errors.items()} == {2: errno.ENOENT}
        assert str(errors[2]).startswith("make chains: No such file or directory")
        assert chains(kernel) == []
        assert kernel.transact(NFTABLES, [table("t"), chain("t", "good")], "make chains") == {}
        assert chains(kernel) == ["good"]


def test_a_transaction_that_expects_another_generation_is_not_applied(netns: None) -> None:
    with Socket(NETFILTER) as kernel:
        assert kernel.transact(NFTABLES, [table("t")], "make a table", generation=1) == {}
        with pytest.raises(NetlinkError) as raised:
            kernel.transact(NFTABLES, [chain("t", "c"), chain("none", "bad")], "make chains", generation=1)
        assert raised.value.errno == errno.ERESTART
        assert kernel.transact(NFTABLES, [chain("t", "c")], "make chains", generation=2) == {}
        assert chains(kernel) == ["c"]


def test_a_transaction_can_be_checked_only(netns: None) -> None:
    with Socket(NETFILTER) as kernel:
        assert kernel.transact(NFTABLES, [table("t")], "make a table") == {}
        good, bad = chain("t", "good"), chain("none", "bad")
        assert kernel.transact(NFTABLES, [good], "check", commit=False) == {}
        assert list(kernel.transact(NFTABLES, [good, bad], "check", commit=False)) == [1]
        assert chains(kernel) == []


def test_refusals_of_large_parts_fit_a_brief_socket(netns: None) -> None:
    """With what was refused they would be longer than what is read at once."""
    type_, flags, payload = chain("none", "c")
    large = (type_, flags, payload + netlink.attribute(12, bytes(65_500)))
    with Socket(NETFILTER, brief=True) as kernel:
        assert list(kernel.transact(NFTABLES, [large, large], "make chains")) == [0, 1]


def test_answers_that_are_lost_are_an_error_but_not_where_others_tell(netns: None) -> None:
    many = [chain("none", f"chain-{i}") for i in range(5000)]
    with Socket(NETFILTER, brief=True) as kernel:
        errors = kernel.transact(NFTABLES, many, "make chains")
        assert 0 < len(errors) < len(many)
        assert kernel.transact(NFTABLES, [table("t")], "make a table") == {}
        assert kernel.sent > 100_000


def test_a_transaction_larger_than_the_send_buffer(netns: None) -> None:
    with Socket(NETFILTER) as kernel:
        many = [chain("t", f"a-rather-long-chain-name-to-fill-the-buffer-{i}") for i in range(6000)]
        assert sum(len(p) for _, _, p in many) > 400_000
        assert kernel.transact(NFTABLES, [table("t"), *many], "make chains") == {}
        assert len(chains(kernel)) == 6000


def test_an_unknown_subsystem_is_an_error(netns: None) -> None:
    with Socket(NETFILTER) as kernel, pytest.raises(NetlinkError, match="try"):
        kernel.transact(200, [(200 << 8, 0, b"")], "try")


def test_the_kernels_own_words_are_in_the_error(netns: None) -> None:
    request = bytes(4) + (999).to_bytes(4, "little") + bytes(8)  # an interface index that is not there
    with Socket(ROUTE) as kernel, pytest.raises(NetlinkError) as raised:
        kernel.ask(18, request, "show interface 999")
    assert raised.value.errno == errno.ENODEV
    assert str(raised.value).startswith("show interface 999: No such device")


def test_several_requests_at_once_and_some_may_fail(netns: None) -> None:
    link = bytes(4) + (1).to_bytes(4, "little") + bytes(8)
    missing = bytes(4) + (999).to_bytes(4, "little") + bytes(8)
    with Socket(ROUTE) as kernel:
        answers = kernel.ask_many([(18, 0, link), (18, 0, missing), (18, 0, link)], "show", ignore=(errno.ENODEV,))
        assert [(index, m.type) for index, m in answers] == [(0, 16), (1, netlink.NLMSG_ERROR), (2, 16)]
        with pytest.raises(NetlinkError, match="No such device"):
            kernel.ask_many([(18, 0, missing), (18, 0, link)], "show", ignore=())
        # What is left of the failed one does not disturb the next.
        assert [m.type for m in kernel.ask(18, link, "show")] == [16]


def test_a_dump_that_the_kernel_refuses(netns: None) -> None:
    with Socket(NETFILTER) as kernel, pytest.raises(NetlinkError, match="list nothing: "):
        kernel.dump(200 << 8, netlink.netfilter(0), "list nothing")


def test_no_answer_in_time_is_an_error(netns: None) -> None:
    begin_without_a_subsystem = 0x10  # the kernel drops a transaction that says so little
    with Socket(NETFILTER, timeout=0.05) as kernel, pytest.raises(NetlinkError) as raised:
        kernel.ask(begin_without_a_subsystem, b"", "say nothing")
    assert raised.value.errno == errno.ETIMEDOUT


def test_a_protocol_where_nobody_listens() -> None:
    with Socket(2) as nobody, pytest.raises(NetlinkError, match="hello: Connection refused"):
        nobody.ask(16, b"", "hello")


def test_a_protocol_that_the_kernel_lacks() -> None:
    with pytest.raises(NetlinkError, match="netlink protocol 31"):
        Socket(31)


def test_more_notifications_than_the_buffer_holds(shell: Callable[..., str]) -> None:
    with Socket(ROUTE, groups=(5,), buffer=2304) as watching:
        assert watching.receive() is None
        for i in range(40):
            shell(f"ip address add 10.0.0.{i + 1}/32 dev lo")
        with pytest.raises(Overrun):
            list(iter(watching.receive, None))
        list(iter(watching.receive, None))  # what was there before the buffer was full
        shell("ip address add 10.0.1.1/32 dev lo")
        assert watching.receive(5.0) is not None


def address(command: int, ip: str, flags: int = 0) -> Part:
    """Add or delete an address of lo."""
    packed = socket.inet_aton(ip)
    header = bytes([socket.AF_INET, 32, 0, 0]) + netlink.u32(0, 1)[4:]
    return (command, flags, header + netlink.attribute(2, packed) + netlink.attribute(1, packed))


def test_changes_are_done_each_for_itself_and_errors_name_the_part(netns: None) -> None:
    new, delete = 20, 21
    only_new = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    parts = [address(new, f"10.{i >> 8}.{i & 255}.1", only_new) for i in range(1200)]
    twice, missing = address(new, "10.0.3.1", only_new), address(delete, "10.99.0.1")
    parts[4:4], parts[700:700], parts[1202:] = [twice], [missing], [twice]
    with Socket(ROUTE, buffer=REFUSALS_BUFFER) as kernel:
        errors = kernel.change(parts, lambda index: f"part {index}")
        assert {index: error.errno for index, error in errors.items()} == {
            4: errno.EEXIST,
            700: errno.EADDRNOTAVAIL,
            1202: errno.EEXIST,
        }
        assert str(errors[700]).startswith("part 700: Cannot assign requested address")
        held = kernel.dump(22, bytes(8), "list addresses")
        assert sum(m.type == new for data in held for m in netlink.messages(data)) == 1200 + 2  # 127.0.0.1 and ::1
        again = kernel.change(parts, lambda index: f"part {index}")
        assert len(again) == len(parts), "more refusals than the default buffer holds"
        assert kernel.change([], lambda index: "nothing") == {}
