"""Answers and notifications that are garbage, or never come, are an error in one line, and the next request works."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import NetlinkError
from kproxy.kernel import netlink
from kproxy.kernel.netlink_sockets import REFUSALS_BUFFER, Socket
from kproxy.model.plans import Family
from kproxy.netfilter import messages, set_codec
from kproxy.netfilter.element_codec import coder
from kproxy.netfilter.kernel import MALFORMED, KernelNftables
from kproxy.netfilter.notifications import NFNLGRP_NFTABLES, Change
from kproxy.netfilter.objects import Set
from kproxy.netfilter.operations import AddChain, AddTable
from tests.netfilter.values import TABLE, elements, everything, sets

V4 = Family.IPV4
Damage = Callable[[bytes], bytes | None]


class DamagedSocket(Socket):
    """What it receives passes through `damage`; None is an answer that does not come."""

    damage: Damage | None = None

    def receive(self, timeout: float = 0.0) -> bytes | None:
        data = super().receive(timeout)
        return data if data is None or self.damage is None else self.damage(data)


def _scrambled(data: bytes) -> bytes:
    return random.Random(len(data)).randbytes(len(data))


DAMAGE: dict[str, Damage] = {
    "nothing comes": lambda data: None,
    "empty": lambda data: b"",
    "cut in the header": lambda data: data[:10],
    "cut at the end": lambda data: data[:-3],
    "a length beyond the end": lambda data: b"\xff\xff\0\0" + data[4:],
    "a length of nothing": lambda data: bytes(4) + data[4:],
    "ones for a payload": lambda data: data[:16] + b"\xff" * (len(data) - 16),
    "zeros": lambda data: bytes(len(data)),
    "random bytes": _scrambled,
    "random bytes after the header": lambda data: data[:16] + _scrambled(data[16:]),
}
REQUESTS: dict[str, Callable[[KernelNftables], object]] = {
    "generation": lambda kernel: kernel.generation(),
    "listing": lambda kernel: kernel.listing(V4, TABLE),
    "check": lambda kernel: kernel.check(V4, [AddTable("more"), AddChain("none", "chain")]),
    "apply": lambda kernel: kernel.apply(V4, [AddTable("more"), AddChain("none", "chain")]),
}


@pytest.fixture
def damaged(netns: None) -> Iterator[tuple[KernelNftables, DamagedSocket]]:
    with KernelNftables() as kernel:
        kernel._socket.close()
        kernel._socket = socket = DamagedSocket(12, buffer=REFUSALS_BUFFER, timeout=0.2, brief=True)
        assert kernel.apply(V4, everything(V4)) == {}
        yield kernel, socket


@pytest.mark.root
@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("how", DAMAGE)
def test_an_answer_that_cannot_be_read_is_an_error_and_the_next_one_is_right(
    damaged: tuple[KernelNftables, DamagedSocket], how: str, request_: str
) -> None:
    kernel, socket = damaged
    right = REQUESTS[request_](kernel)
    socket.damage = DAMAGE[how]
    with suppress(NetlinkError):  # nothing else
        REQUESTS[request_](kernel)
    socket.damage = None
    assert str(REQUESTS[request_](kernel)) == str(right)


@pytest.mark.root
@pytest.mark.parametrize("how", [how for how in DAMAGE if how != "nothing comes"])
def test_a_notification_that_cannot_be_read_stands_for_anything(netns: None, how: str) -> None:
    with KernelNftables() as kernel, kernel.listen(V4, TABLE) as listener, KernelNftables() as theirs:
        listener._socket.close()
        listener._socket = socket = DamagedSocket(12, groups=(NFNLGRP_NFTABLES,))
        socket.damage = DAMAGE[how]
        assert theirs.apply(V4, everything(V4)) == {}
        assert Change() in listener.poll()
        socket.damage = None
        assert theirs.apply(V4, [AddChain(TABLE, "new")]) == {}
        assert "new" in {change.event.name for change in listener.poll() if change.event}


# ---------------------------------------------------------------- decoders


@given(st.sampled_from(list(sets(V4).values())), st.data())
def test_elements_that_are_garbage_are_an_error_that_is_mapped(spec: Set, data: st.DataObject) -> None:
    code = coder(spec)
    bad = data.draw(mutated(b"".join(code.encode(elements(V4)[spec.name][:2]))))
    with suppress(ValueError):
        code.decode(bad)
    with suppress(*MALFORMED):
        code.join(code.listed(bad))


@given(st.binary(max_size=64))
def test_objects_that_are_garbage_are_an_error_that_is_mapped(data: bytes) -> None:
    for decode in (set_codec.set_of, messages.chain_of, messages.rule_of):
        try:
            decode(dict.fromkeys(range(1, 21), data))
            decode(netlink.attributes(data))
        except MALFORMED:
            continue


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """Bytes that are nearly `good`, or anything."""
    if not good or draw(st.booleans()):
        return draw(st.binary(max_size=80))
    at = draw(st.integers(0, len(good) - 1))
    return good[:at] + draw(st.binary(max_size=6)) + good[at + draw(st.integers(0, 6)) :]
