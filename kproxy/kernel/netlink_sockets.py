"""A netlink socket that sends requests and receives the kernel's answers.

Decides: sequence numbers, which answer belongs to which request, answers in several parts, how long to wait, and what
becomes of a full buffer, of an error and of an answer that cannot be read. Leaves out: the bytes themselves
(`kproxy.kernel.netlink`) and what they mean. Source: netlink(7).

After an answer that cannot be read, or that does not come, nothing is known of what is still under way on the socket:
it is closed, and the next request opens another one under the same port id. It does so in the network namespace of the
thread that sends the request, which therefore has to be the namespace in which the socket was made.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from kproxy.errors import NetlinkError, one_line
from kproxy.kernel import netlink
from kproxy.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    Message,
    error_of,
    first_header,
    last_message,
    message,
    messages,
    netfilter_batch,
)

SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 1, 10, 11
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
RECEIVE = 1 << 16  # a dump comes in pieces of at most 32 KiB (net/netlink/af_netlink.c)
SEND_AT_ONCE = 1 << 17  # fits the send buffer that every host has
CHANGES_AT_ONCE = 500
REFUSALS_BUFFER = 1 << 20
"""A receive buffer that holds a refusal of each of CHANGES_AT_ONCE changes, with what was refused."""
INTERRUPTED_DUMPS = 5  # a dump that a change interrupts is repeated this often
SEQUENCE_LIMIT = 0xFFFFFFFF
ANSWER_TIMEOUT = 10.0
"""Seconds without any answer to a request after which it has failed. The kernel answers while the request is sent."""

GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_VERSION = 0x10, 3, 2
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 1, 2

MALFORMED = (ValueError, LookupError, struct.error)
"""What the decoders of this package raise for bytes that are not an answer to the request."""

Part = tuple[int, int, bytes]
"""A request: message type, flags, payload."""


class Overrun(Exception):
    """The socket's buffer was full, and at least one message was lost."""


class Socket:
    """A socket of one netlink protocol in the network namespace of the thread that makes it. Not safe for two threads
    at once."""

    def __init__(
        self,
        protocol: int,
        groups: Sequence[int] = (),
        buffer: int = 0,
        timeout: float | None = None,
        brief: bool = False,
    ) -> None:
        """Raises NetlinkError when the kernel lacks the protocol.

        groups: the multicast groups to join. buffer: bytes to hold of what was not read yet, 0 for the host's default.
        timeout: seconds to wait for the next answer to a request, ANSWER_TIMEOUT unless given. brief: a refusal comes
        without what was refused.
        """
        self._protocol, self._groups, self._buffer, self._brief = protocol, groups, buffer, brief
        self._seq, self._timeout = 0, ANSWER_TIMEOUT if timeout is None else timeout
        self.sent = 0  # bytes
        self._discarded: int | None = None  # the port id of a socket that has to be replaced
        self._socket = self._open(0)

    def _open(self, portid: int) -> socket.socket:
        request = f"netlink protocol {self._protocol}"
        try:
            opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self._protocol)
        except OSError as error:
            raise NetlinkError(request, error.errno or errno.EIO) from None
        try:
            opened.bind((portid, 0))
            opened.setblocking(False)
            opened.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            opened.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, int(self._brief))
            if self._buffer:
                _enlarge(opened, SO_RCVBUFFORCE, socket.SO_RCVBUF, self._buffer)
            for group in self._groups:
                opened.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            opened.close()
            raise NetlinkError(request, error.errno or errno.EIO) from None
        return opened

    def _discard(self) -> None:
        """Close the socket, so that the next request opens another one."""
        if self._socket.fileno() >= 0:
            self._discarded = self.portid
            self._socket.close()

    def _current(self) -> socket.socket:
        """The socket, a new one after `_discard`. Raises NetlinkError."""
        if self._discarded is not None:
            self._socket = self._open(self._discarded)
            self._discarded = None
        return self._socket

    @property
    def portid(self) -> int:
        """The address by which the kernel names this socket in the messages that its requests cause."""
        return int(self._current().getsockname()[0])

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._discarded = None
        self._socket.close()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def decoding(self, request: str) -> Iterator[None]:
        """Raises NetlinkError EBADMSG when a decoder finds the answer malformed. `request`: words for the message.

        Wrap the decoding of answers in it, and nothing else: a ValueError in there is taken for the kernel's fault.
        """
        try:
            yield
        except MALFORMED as error:
            self._discard()
            why = one_line(f"the answer cannot be read: {error or type(error).__name__}", 200)
            raise NetlinkError(request, errno.EBADMSG, why) from error

    def receive(self, timeout: float = 0.0) -> bytes | None:
        """One datagram, or None when none came within `timeout` seconds.

        Raises Overrun when some were lost, and NetlinkError.
        """
        current = self._current()
        try:
            if timeout:
                waiter = select.poll()  # select(2) cannot take descriptors past 1023
                waiter.register(current, select.POLLIN)
                waiter.poll(timeout * 1000)
            return current.recv(RECEIVE)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise Overrun from None
            raise NetlinkError("receive", error.errno or errno.EIO) from None
        except ValueError:  # from poll: another thread closed the socket
            raise NetlinkError("receive", errno.EBADF) from None

    # ---- requests

    def ask(self, type: int, payload: bytes, request: str, flags: int = 0) -> list[Message]:
        """Send one request and return what the kernel answers before its acknowledgement.

        request: words for a human, for the error. Raises NetlinkError with the kernel's errno, ETIMEDOUT when no
        answer comes, EBADMSG when the answer cannot be read.
        """
        return [m for _, m in self.ask_many([(type, flags, payload)], request, ignore=())]

    def ask_many(self, parts: Sequence[Part], request: str, ignore: Iterable[int]) -> list[tuple[int, Message]]:
        """Send `parts` in one system call and wait for the acknowledgement of each.

        Returns (index of the part, answer) pairs: answers other than acknowledgements, and the failures whose errno is
        in `ignore`. Raises NetlinkError at any other failure. `parts`: few enough for their answers to fit the buffer.
        """
        first, tolerated = self._reserve(len(parts)), frozenset(ignore)
        always = NLM_F_REQUEST | NLM_F_ACK
        self._send(b"".join(message(t, f | always, first + i, p) for i, (t, f, p) in enumerate(parts)), request)
        waiting = set(range(len(parts)))
        found: list[tuple[int, Message]] = []
        while waiting:
            for index, answer in self._answers(request, first, len(parts)):
                if answer.type != NLMSG_ERROR:
                    found.append((index, answer))
                    continue
                waiting.discard(index)
                with self.decoding(request):
                    error = error_of(answer, request)
                if error is None:
                    continue
                if error.errno not in tolerated:
                    raise error
                found.append((index, answer))
        return found

    def change(self, parts: Sequence[Part], request: Callable[[int], str]) -> dict[int, NetlinkError]:
        """Apply `parts` in order, each by itself; returns what the kernel refused, by index of the part.

        request: words for a human, for the part of an index. Raises NetlinkError when the kernel cannot be reached.
        """
        errors: dict[int, NetlinkError] = {}
        for index, answer in self.refusals(parts, request).items():
            with self.decoding(request(index)):
                error = error_of(answer, request(index))
            if error is not None:
                errors[index] = error
        return errors

    def refusals(self, parts: Sequence[Part], request: Callable[[int], str]) -> dict[int, Message]:
        """Like `change`, but returns the kernel's messages as they are.

        Only the last of each lot is acknowledged, so that thousands of changes cost few system calls. The socket must
        have a buffer of REFUSALS_BUFFER.
        """
        found: dict[int, Message] = {}
        start = 0
        while start < len(parts):
            end = _lot(parts, start)
            answers = self._send_lot(parts[start:end], request(start))
            found.update((start + index, answer) for index, answer in answers)
            start = end
        return found

    def _send_lot(self, parts: Sequence[Part], request: str) -> Iterator[tuple[int, Message]]:
        first, last = self._reserve(len(parts)), len(parts) - 1
        data = [message(t, f | NLM_F_REQUEST, first + i, p) for i, (t, f, p) in enumerate(parts[:last])]
        type_, flags, payload = parts[last]
        data.append(message(type_, flags | NLM_F_REQUEST | NLM_F_ACK, first + last, payload))
        self._send(b"".join(data), request)
        index = -1
        while index != last:  # the kernel answers in order
            for index, answer in self._answers(request, first, len(parts)):
                if answer.type == NLMSG_ERROR and any(answer.payload[:4]):
                    yield index, answer

    def transact(
        self,
        subsystem: int,
        parts: Sequence[Part],
        request: str,
        generation: int | None = None,
        commit: bool = True,
    ) -> dict[int, NetlinkError]:
        """Send `parts` as one transaction of a netfilter subsystem, which the kernel applies whole or not at all.

        generation: the one that the kernel must be at. commit: False has `parts` validated only.
        Returns what the kernel refused, by index of the part; nothing when the transaction is done.
        Raises NetlinkError when the kernel did not even look at it (ERESTART: it is at another generation), ENOBUFS
        when its answers were lost, ETIMEDOUT when there are none, EBADMSG when they cannot be read: after these three
        it is unknown whether the transaction is done.
        """
        last = len(parts) - 1
        acked = [(t, f | NLM_F_ACK if i == last else f, p) for i, (t, f, p) in enumerate(parts)]
        opening = self._reserve(len(parts) + 2)
        first = opening + 1
        data = netfilter_batch(subsystem, acked, opening, generation, commit)
        if len(data) > SEND_AT_ONCE:
            _enlarge(self._current(), SO_SNDBUFFORCE, socket.SO_SNDBUF, len(data) + SEND_AT_ONCE)
        self._send(data, request)
        answers, lost = self._pending(request, opening, len(parts) + 2)
        if parts and not answers and not lost:
            answers = [answer for _, answer in self._answers(request, opening, len(parts) + 2)]
        errors: dict[int, NetlinkError] = {}
        for answer in answers:
            with self.decoding(request):
                error = error_of(answer, request)
            if error is not None:
                if not 0 <= answer.seq - first < len(parts):
                    raise error
                errors.setdefault(answer.seq - first, error)
        if lost and not errors:
            raise NetlinkError(request, errno.ENOBUFS)
        return errors

    def dump(self, type: int, payload: bytes, request: str) -> list[bytes]:
        """All datagrams of a dump; they hold messages of the kind asked for and, last, NLMSG_DONE. The lengths of the
        messages are checked, not what is in them.

        A dump that a change interrupted is repeated; when that goes on, the last one is returned as it is: what it
        lacks was in motion. Raises NetlinkError, also when the dump ends with an error.
        """
        for _ in range(INTERRUPTED_DUMPS):
            seq = self._reserve(1)
            self._send(message(type, NLM_F_REQUEST | NLM_F_DUMP, seq, payload), request)
            chunks, interrupted = self._collect(request, seq)
            if not interrupted:
                break
        return chunks

    def _collect(self, request: str, seq: int) -> tuple[list[bytes], bool]:
        chunks: list[bytes] = []
        interrupted = False
        deadline = time.monotonic() + self._timeout
        while True:
            data = self._datagram(request, deadline)
            with self.decoding(request):
                first, last = first_header(data), last_message(data)
                error = error_of(last, request)
            if first.seq != seq:
                continue  # the answer to an earlier request that was given up
            if error is not None:
                raise error
            chunks.append(data)
            interrupted |= bool(first.flags & NLM_F_DUMP_INTR)
            if last.type in (NLMSG_DONE, NLMSG_ERROR):  # it may share a datagram with the last entries
                return chunks, interrupted
            deadline = time.monotonic() + self._timeout

    # ---- datagrams

    def _reserve(self, count: int) -> int:
        """The first of `count` sequence numbers that no pending request uses."""
        if self._seq + count > SEQUENCE_LIMIT:
            self._seq = 0
        first = self._seq + 1
        self._seq += count
        return first

    def _answers(self, request: str, first: int, count: int) -> list[tuple[int, Message]]:
        """The next answers to the `count` requests from sequence number `first` on, each with its request's index.

        Waits until there is one. Messages of earlier requests that were given up are passed over.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            data = self._datagram(request, deadline)
            with self.decoding(request):
                found = [(m.seq - first, m) for m in messages(data) if 0 <= m.seq - first < count]
            if found:
                return found

    def _pending(self, request: str, first: int, count: int) -> tuple[list[Message], bool]:
        """All answers to what was just sent, and whether some were lost.

        The kernel works while the request is sent, so that all answers are in the buffer by then.
        """
        found: list[Message] = []
        lost = False
        while True:
            try:
                data = self.receive()
            except Overrun:
                lost = True
                continue
            if data is None:
                return found, lost
            with self.decoding(request):
                found.extend(m for m in messages(data) if 0 <= m.seq - first < count)

    def _datagram(self, request: str, deadline: float) -> bytes:
        """The next datagram that comes before `deadline`, by the monotonic clock. Raises NetlinkError."""
        data: bytes | None = None
        try:
            while not data and (left := deadline - time.monotonic()) > 0:
                data = self.receive() or self.receive(left)  # most answers wait already when they are asked for
        except Overrun:
            raise NetlinkError(request, errno.ENOBUFS) from None
        if not data:
            self._discard()
            raise NetlinkError(request, errno.ETIMEDOUT, f"no answer within {self._timeout:g} s")
        return data

    def _send(self, data: bytes, request: str) -> None:
        try:
            self.sent += self._current().sendto(data, (0, 0))
        except OSError as error:
            raise NetlinkError(request, error.errno or errno.EIO) from None


def generic_family(kernel: Socket, name: str) -> int:
    """The message type of a generic netlink family by its name. The kernel loads the module that has the family, where
    the module says so.

    Raises NetlinkError, ENOENT when there is no such family. Source: net/netlink/genetlink.c.
    """
    query = netlink.generic(CTRL_CMD_GETFAMILY, CTRL_VERSION) + netlink.text(CTRL_ATTR_FAMILY_NAME, name)
    request = f"find generic netlink family {name}"
    answers = kernel.ask(GENL_ID_CTRL, query, request)
    with kernel.decoding(request):
        found = netlink.attributes(answers[0].payload, start=netlink.GENL_HEADER)
        (number,) = struct.unpack("=H", found[CTRL_ATTR_FAMILY_ID])
    return int(number)


def _enlarge(opened: socket.socket, past_limit: int, within_limit: int, size: int) -> None:
    try:  # the host's limit binds only those that are not root
        opened.setsockopt(socket.SOL_SOCKET, past_limit, size)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, within_limit, size)


def _lot(parts: Sequence[Part], start: int) -> int:
    """The index after the last part that is sent together with the one at `start`."""
    size = 0
    for index in range(start, min(len(parts), start + CHANGES_AT_ONCE)):
        size += 20 + len(parts[index][2])
        if size > SEND_AT_ONCE and index > start:
            return index
    return min(len(parts), start + CHANGES_AT_ONCE)
