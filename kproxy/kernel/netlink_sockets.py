"""A netlink socket that sends a request and takes the kernel's answer.

Decides: sequence numbers, which answer belongs to which request, multi-part answers, what a full buffer and an error of
the kernel become. Leaves out: the bytes themselves (kproxy.kernel.netlink) and what they mean. Source: netlink(7).
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence

from kproxy.errors import NetlinkError
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
    last_type,
    message,
    messages,
    netfilter_batch,
    raise_if_error,
)

SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 1, 10, 11
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
RECEIVE = 1 << 16  # a dump comes in pieces of at most 32 KiB (net/netlink/af_netlink.c)
SEND_AT_ONCE = 1 << 17  # fits the send buffer that every host has
CHANGES_AT_ONCE = 500
REFUSALS_BUFFER = 1 << 20  # holds a refusal of each of so many, with what was refused
INTERRUPTED_DUMPS = 5  # a dump that a change interrupts is repeated this often

Part = tuple[int, int, bytes]
"""A request: message type, flags, payload."""


class Overrun(Exception):
    """The kernel had more to say than the socket could hold: something was lost."""


class Socket:
    """A socket of one netlink protocol, in the network namespace of the thread that makes it. Not for two at a time."""

    def __init__(
        self,
        protocol: int,
        groups: Sequence[int] = (),
        buffer: int = 0,
        timeout: float = 10.0,
        brief: bool = False,
    ) -> None:
        """Raises NetlinkError when the kernel lacks the protocol.

        groups: the multicast groups to join. buffer: bytes to hold of what was not read yet, 0 for the host's default.
        timeout: seconds that one answer may take. brief: a refusal comes without what was refused.
        """
        self._seq, self._timeout = 0, timeout
        self.sent = 0  # bytes
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise NetlinkError(f"netlink protocol {protocol}", error.errno or errno.EIO) from None
        try:
            self._prepare(groups, buffer, brief)
        except OSError as error:
            self._socket.close()
            raise NetlinkError(f"netlink protocol {protocol}", error.errno or errno.EIO) from None

    def _prepare(self, groups: Sequence[int], buffer: int, brief: bool) -> None:
        self._socket.bind((0, 0))
        self._socket.setblocking(False)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, int(brief))
        if buffer:
            self._enlarge(SO_RCVBUFFORCE, socket.SO_RCVBUF, buffer)
        for group in groups:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def _enlarge(self, past_limit: int, within_limit: int, size: int) -> None:
        try:  # the host's limit binds only those that are not root
            self._socket.setsockopt(socket.SOL_SOCKET, past_limit, size)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, within_limit, size)

    @property
    def portid(self) -> int:
        """The address by which the kernel names this socket in the messages that its requests cause."""
        return int(self._socket.getsockname()[0])

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(self, timeout: float = 0.0) -> bytes | None:
        """One datagram, or None when none came within TIMEOUT seconds. Raises Overrun when some were lost."""
        if timeout:
            waiter = select.poll()  # select(2) cannot take descriptors past 1023
            waiter.register(self._socket, select.POLLIN)
            waiter.poll(timeout * 1000)
        try:
            return self._socket.recv(RECEIVE)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise Overrun from None
            raise NetlinkError("receive", error.errno or errno.EIO) from None

    def ask(self, type: int, payload: bytes, request: str, flags: int = 0) -> list[Message]:
        """Send one request and return what the kernel answers before its acknowledgement.

        request: words for a human, for the error. Raises NetlinkError with the kernel's errno, ETIMEDOUT when no
        answer comes.
        """
        return [m for _, m in self.ask_many([(type, flags, payload)], request, ignore=())]

    def ask_many(self, parts: Sequence[Part], request: str, ignore: Iterable[int]) -> list[tuple[int, Message]]:
        """Send PARTS in one go and wait for the acknowledgement of each.

        Returns (index of the part, answer) pairs: answers that are no acknowledgement, and the failures whose errno is
        in `ignore`. Raises NetlinkError at any other failure. PARTS: few enough for their answers to fit the buffer.
        """
        first, tolerated = self._seq + 1, frozenset(ignore)
        self._seq += len(parts)
        always = NLM_F_REQUEST | NLM_F_ACK
        self._send(b"".join(message(t, f | always, first + i, p) for i, (t, f, p) in enumerate(parts)), request)
        waiting = set(range(len(parts)))
        found: list[tuple[int, Message]] = []
        while waiting:
            for answer in self._next(request):
                index = answer.seq - first
                if not 0 <= index < len(parts):
                    continue  # of an earlier request that was given up
                if answer.type != NLMSG_ERROR:
                    found.append((index, answer))
                    continue
                waiting.discard(index)
                try:
                    raise_if_error(answer, request)
                except NetlinkError as error:
                    if error.errno not in tolerated:
                        raise
                    found.append((index, answer))
        return found

    def change(self, parts: Sequence[Part], request: Callable[[int], str]) -> dict[int, NetlinkError]:
        """Have PARTS done, in order and each for itself; returns what the kernel refused, by index of the part.

        request: words for a human, for the part of an index. Raises NetlinkError when the kernel cannot be talked to.
        """
        errors = {i: error_of(answer, request(i)) for i, answer in self.refusals(parts, request).items()}
        return {i: error for i, error in errors.items() if error is not None}

    def refusals(self, parts: Sequence[Part], request: Callable[[int], str]) -> dict[int, Message]:
        """As `change`, with the kernel's messages as they are.

        Of what is done only the last of each lot is acknowledged, so thousands of changes cost few system calls. The
        socket must have a buffer of REFUSALS_BUFFER.
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
        first, last = self._seq + 1, len(parts) - 1
        self._seq += len(parts)
        data = [message(t, f | NLM_F_REQUEST, first + i, p) for i, (t, f, p) in enumerate(parts[:last])]
        type_, flags, payload = parts[last]
        data.append(message(type_, flags | NLM_F_REQUEST | NLM_F_ACK, first + last, payload))
        self._send(b"".join(data), request)
        index = -1
        while index != last:  # the kernel answers in order
            for answer in self._next(request):
                index = answer.seq - first
                if answer.type == NLMSG_ERROR and 0 <= index <= last and any(answer.payload[:4]):
                    yield index, answer

    def transact(
        self,
        subsystem: int,
        parts: Sequence[Part],
        request: str,
        generation: int | None = None,
        commit: bool = True,
    ) -> dict[int, NetlinkError]:
        """Send PARTS as one transaction of a netfilter subsystem: all of it happens, or nothing.

        generation: the one that the kernel must be at. commit: False has PARTS checked only.
        Returns what the kernel refused, by index of the part; nothing when the transaction is done.
        Raises NetlinkError when the kernel did not even look at it (ERESTART: it is at another generation), ENOBUFS
        when its answers were lost.
        """
        last = len(parts) - 1
        acked = [(t, f | NLM_F_ACK if i == last else f, p) for i, (t, f, p) in enumerate(parts)]
        data = netfilter_batch(subsystem, acked, self._seq + 1, generation, commit)
        first = self._seq + 2
        self._seq += len(parts) + 2
        if len(data) > SEND_AT_ONCE:
            self._enlarge(SO_SNDBUFFORCE, socket.SO_SNDBUF, len(data) + SEND_AT_ONCE)
        self._send(data, request)
        answers, lost = self._waiting()
        errors: dict[int, NetlinkError] = {}
        for answer in answers:
            if (error := error_of(answer, request)) is not None:
                if not 0 <= answer.seq - first < len(parts):
                    raise error
                errors.setdefault(answer.seq - first, error)
        if lost and not errors:
            raise NetlinkError(request, errno.ENOBUFS)
        return errors

    def _waiting(self) -> tuple[list[Message], bool]:
        """All answers to what was just sent, and whether some were lost.

        The kernel works in the sender's context: when a request is sent, all its answers wait in our buffer.
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
            found.extend(messages(data))

    def dump(self, type: int, payload: bytes, request: str) -> list[bytes]:
        """All datagrams of a dump; they hold messages of the kind asked for and, last, NLMSG_DONE.

        A dump that a change interrupted is repeated; when that goes on, the last one is returned as it is: what it
        lacks was in motion. Raises NetlinkError.
        """
        for _ in range(INTERRUPTED_DUMPS):
            self._seq += 1
            self._send(message(type, NLM_F_REQUEST | NLM_F_DUMP, self._seq, payload), request)
            chunks, interrupted = self._collect(request)
            if not interrupted:
                break
        return chunks

    def _collect(self, request: str) -> tuple[list[bytes], bool]:
        chunks: list[bytes] = []
        interrupted = False
        while True:
            data = self._answer(request)
            first = first_header(data)
            if first.seq != self._seq:
                continue  # of an earlier request that was given up
            chunks.append(data)
            interrupted |= bool(first.flags & NLM_F_DUMP_INTR)
            if first.type in (NLMSG_ERROR, NLMSG_DONE):
                raise_if_error(next(messages(data)), request)
                return chunks, interrupted
            if last_type(data) == NLMSG_DONE:  # it may share a datagram with the last entries
                return chunks, interrupted

    def _next(self, request: str) -> Iterator[Message]:
        return messages(self._answer(request))

    def _answer(self, request: str) -> bytes:
        try:
            data = self.receive() or self.receive(self._timeout)  # most answers wait already when they are asked for
        except Overrun:
            raise NetlinkError(request, errno.ENOBUFS) from None
        if data is None:
            raise NetlinkError(request, errno.ETIMEDOUT)
        return data

    def _send(self, data: bytes, request: str) -> None:
        try:
            self.sent += self._socket.sendto(data, (0, 0))
        except OSError as error:
            raise NetlinkError(request, error.errno or errno.EIO) from None


def _lot(parts: Sequence[Part], start: int) -> int:
    """Where the parts that are sent together with the one at START end."""
    size = 0
    for index in range(start, min(len(parts), start + CHANGES_AT_ONCE)):
        size += 20 + len(parts[index][2])
        if size > SEND_AT_ONCE and index > start:
            return index
    return min(len(parts), start + CHANGES_AT_ONCE)
