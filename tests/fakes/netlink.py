"""The kernel's end of netlink sockets, for answers that no real kernel gives."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from kproxy.kernel.netlink import NLM_F_ACK, NLM_F_DUMP, NLMSG_DONE, NLMSG_ERROR, Message, message, messages

_PAIR = socket.socketpair

Answer = Callable[[Message], Iterable[bytes]]
"""The datagrams that answer one request."""


def acknowledge(request: Message, error: int = 0) -> bytes:
    """The kernel's acknowledgement of a request, or its refusal with `error`."""
    head = message(request.type, request.flags, request.seq, request.payload)
    return message(NLMSG_ERROR, 0, request.seq, (-error).to_bytes(4, "little", signed=True) + head[:16])


def done(request: Message) -> bytes:
    """The end of a dump."""
    return message(NLMSG_DONE, 2, request.seq, bytes(4))


def listing(*parts: tuple[int, bytes]) -> Answer:
    """Answers a dump with messages (type, payload), and any other request with those and an acknowledgement."""

    def answer(request: Message) -> list[bytes]:
        data = b"".join(message(kind, 2, request.seq, payload) for kind, payload in parts)
        if request.flags & NLM_F_DUMP == NLM_F_DUMP:
            return [*([data] if data else []), done(request)]
        return [*([data] if data else []), *([acknowledge(request)] if request.flags & NLM_F_ACK else [])]

    return answer


class FakeKernel:
    """The kernel that the sockets made by `socket_class` talk to; that class stands in for socket.socket.

    answer: what every request is answered with. opened: the port id of every socket, in order. requests: all of them.
    """

    def __init__(self) -> None:
        self.answer: Answer = listing()
        self.opened: list[int] = []
        self.requests: list[Message] = []

    def socket_class(self) -> type[socket.socket]:
        return type("Socket", (_Socket,), {"kernel": self})


class _Socket(socket.socket):
    """The program's end of a socket pair; the kernel's end is closed with it."""

    kernel: FakeKernel

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        self._theirs: socket.socket | None = None
        if family != socket.AF_NETLINK:
            super().__init__(family, type, proto, fileno)
            return
        ours, theirs = _PAIR(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(ours.family, ours.type, ours.proto, ours.detach())
        self._theirs, self._portid = theirs, 0
        theirs.setblocking(False)

    def bind(self, address: Any) -> None:
        self._portid = address[0] or 1000 + len(self.kernel.opened)
        self.kernel.opened.append(self._portid)

    def setsockopt(self, *_: Any) -> None:
        """Accept every option."""

    def getsockname(self) -> Any:
        return self._portid, 0

    def sendto(self, data: Any, *_: Any) -> int:
        for request in messages(bytes(data)):
            self.kernel.requests.append(request)
            for datagram in self.kernel.answer(request):
                with suppress(BlockingIOError):  # lost, as from a buffer that is full
                    assert self._theirs is not None
                    self._theirs.send(datagram)
        return len(data)

    def close(self) -> None:
        if self._theirs is not None:
            self._theirs.close()
        super().close()
