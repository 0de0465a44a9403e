"""Messages that are encoded are decoded again, and malformed bytes are refused."""

from __future__ import annotations

import contextlib
import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.kernel import netlink

U16, U32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
KINDS = st.integers(0, netlink.NLA_TYPE_MASK)
MESSAGES = st.tuples(U16, U16, U32, st.binary(max_size=200), U32)


@given(st.lists(MESSAGES, max_size=8))
def test_messages_survive_encoding(parts: list[tuple[int, int, int, bytes, int]]) -> None:
    data = b"".join(netlink.message(*part) for part in parts)
    assert len(data) % 4 == 0
    assert [(m.type, m.flags, m.seq, m.payload, m.portid) for m in netlink.messages(data)] == parts
    assert not parts or netlink.last_message(data) == list(netlink.messages(data))[-1]


@given(MESSAGES)
def test_the_first_header_is_that_of_the_first_message(part: tuple[int, int, int, bytes, int]) -> None:
    data = netlink.message(*part)
    (whole,) = netlink.messages(data)
    assert netlink.first_header(data + b"anything") == whole._replace(payload=b"")


@given(st.lists(st.tuples(KINDS, st.binary(max_size=300)), max_size=10))
def test_attributes_survive_encoding_in_order_and_repeated(parts: list[tuple[int, bytes]]) -> None:
    data = b"".join(netlink.attribute(*part) for part in parts)
    assert list(netlink.each_attribute(data)) == parts
    assert netlink.attributes(data) == dict(parts)
    assert list(netlink.each_attribute(b"head" + data, start=4)) == parts


TREES = st.recursive(st.binary(max_size=20), lambda inner: st.dictionaries(KINDS, inner, max_size=4), max_leaves=20)


@given(st.dictionaries(KINDS, TREES, max_size=4))
def test_nested_attributes_survive_encoding(tree: dict[int, object]) -> None:
    def encode(kind: int, value: object) -> bytes:
        if isinstance(value, bytes):
            return netlink.attribute(kind, value)
        assert isinstance(value, dict)
        return netlink.nested(kind, *(encode(k, v) for k, v in value.items()))

    def decode(shape: dict[int, object], data: bytes) -> dict[int, object]:
        found = netlink.attributes(data)
        return {k: decode(shape[k], v) if isinstance(shape.get(k), dict) else v for k, v in found.items()}  # type: ignore[arg-type]

    assert decode(tree, b"".join(encode(k, v) for k, v in tree.items())) == tree


@given(U16, U32, st.integers(0, 2**64 - 1))
def test_numbers_are_big_endian(two: int, four: int, eight: int) -> None:
    data = netlink.be16(1, two) + netlink.be32(2, four) + netlink.be64(3, eight)
    assert {k: netlink.to_int(v) for k, v in netlink.attributes(data).items()} == {1: two, 2: four, 3: eight}
    assert netlink.attributes(data)[1] == struct.pack(">H", two)


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40))
def test_text_survives_encoding(value: str) -> None:
    assert netlink.to_text(netlink.attributes(netlink.text(5, value))[5]) == value


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (netlink.messages, netlink.each_attribute):
        found = 0
        with contextlib.suppress(ValueError):
            for _ in read(data):
                found += 1
        assert found <= len(data) // 4 + 1


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_message_cut_short_is_refused(cut: int) -> None:
    data = netlink.message(20, 0, 1, b"12345678")
    with pytest.raises(ValueError, match=r"cut short|wrong length"):
        list(netlink.messages(data[:cut]))


def test_a_payload_too_long_for_an_attribute_is_refused() -> None:
    assert len(netlink.attribute(1, bytes(65531))) == 65536
    with pytest.raises(struct.error):
        netlink.attribute(1, bytes(65532))


def test_a_transaction_is_framed_and_numbered() -> None:
    data = netlink.netfilter_batch(10, [(0xA00, 0x400, b"one."), (0xA03, 0, b"two.")], seq=7)
    frame = b"\x00\x00\x00\x0a"
    assert [(m.type, m.flags, m.seq, m.payload) for m in netlink.messages(data)] == [
        (0x10, 0x001, 7, frame),
        (0xA00, 0x401, 8, b"one."),
        (0xA03, 0x001, 9, b"two."),
        (0x11, 0x001, 10, frame),
    ]


def test_a_transaction_may_expect_a_generation_and_have_no_end() -> None:
    data = netlink.netfilter_batch(10, [(0xA00, 0x400, b"one.")], seq=7, generation=258, commit=False)
    first, second = netlink.messages(data)
    assert (first.type, first.payload[:4], netlink.attributes(first.payload, 4)) == (
        0x10,
        b"\x00\x00\x00\x0a",
        {1: b"\x00\x00\x01\x02"},
    )
    assert (second.type, second.seq) == (0xA00, 8)


def failure(status: int, request: bytes, said: str, capped: bool) -> netlink.Message:
    """An error as the kernel builds it: errno, the request or its header alone, and words."""
    flags = (netlink.NLM_F_ACK_TLVS if said else 0) | (netlink.NLM_F_CAPPED if capped else 0)
    words = netlink.text(netlink.NLMSGERR_ATTR_MSG, said) if said else b""
    return netlink.Message(
        netlink.NLMSG_ERROR, flags, 1, 0, struct.pack("=i", -status) + (request[:16] if capped else request) + words
    )


@pytest.mark.parametrize("capped", [True, False])
@pytest.mark.parametrize("said", ["", "No such device: 'eth9'"])
def test_an_error_becomes_one_line_with_the_kernels_words(capped: bool, said: str) -> None:
    request = netlink.message(20, 5, 1, b"request payload")
    error = netlink.error_of(failure(errno.ENODEV, request, said, capped), "set eth9 up")
    assert error is not None
    assert str(error) == "set eth9 up: No such device" + (f": {said}" if said else "")
    assert (error.errno, error.detail, error.offset) == (errno.ENODEV, said, 0)


def test_an_error_has_the_offset_of_the_refused_attribute() -> None:
    answer = failure(errno.EINVAL, netlink.message(20, 5, 1, b""), "no", capped=True)
    error = netlink.error_of(answer._replace(payload=answer.payload + netlink.u32(2, 36)), "do")
    assert error is not None
    assert (error.detail, error.offset) == ("no", 36)


@pytest.mark.parametrize(
    "answer",
    [
        failure(0, netlink.message(20, 5, 1, b""), "", True),
        netlink.Message(0x100, 0, 1, 0, struct.pack("=i", -1)),
        netlink.Message(netlink.NLMSG_DONE, 0, 1, 0, struct.pack("=i", 0)),
        netlink.Message(netlink.NLMSG_DONE, 0, 1, 0, b""),
    ],
)
def test_acknowledgements_and_other_messages_are_no_errors(answer: netlink.Message) -> None:
    assert netlink.error_of(answer, "anything") is None


def test_an_error_at_the_end_of_a_dump_counts() -> None:
    answer = netlink.Message(netlink.NLMSG_DONE, 0, 1, 0, struct.pack("=i", -errno.EPERM))
    assert str(netlink.error_of(answer, "list")) == "list: Operation not permitted"


@pytest.mark.parametrize("payload", [b"", b"\1\2\3", struct.pack("=i", -(2**31)), struct.pack("=i", -100_000)])
def test_an_error_that_cannot_be_one_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="netlink error"):
        netlink.error_of(netlink.Message(netlink.NLMSG_ERROR, 0, 1, 0, payload), "list")
