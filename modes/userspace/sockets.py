"""Listening sockets on proxy ports, on every address of the node."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque

from kproxy.model.plans import Family, Protocol

__all__ = ["PORTAL", "ProxyPorts"]

BACKLOG = 4096
# Somebody who is gone without a word is noticed two minutes later; accepted sockets inherit these.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
IP_PKTINFO = 8  # include/uapi/linux/in.h
PORTAL = {Family.IPV4: (socket.AF_INET, "0.0.0.0"), Family.IPV6: (socket.AF_INET6, "::")}
_KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}


class ProxyPorts:
    """Gives out ports of a range, or those that the kernel chooses."""

    def __init__(self, first: int, last: int) -> None:
        """From FIRST to LAST; both 0: as the kernel chooses."""
        self._range = (first, last)
        self._free: dict[tuple[Family, Protocol], deque[int]] = {}

    def open(self, family: Family, protocol: Protocol) -> socket.socket:
        """A listening (TCP) or receiving (UDP) non-blocking socket. Raises OSError; its text says why."""
        if protocol not in _KINDS:
            raise OSError(f"{protocol} cannot be forwarded in userspace mode")
        if not self._range[1]:
            return _open(family, protocol, 0)
        free = self._pool(family, protocol)
        for _ in range(len(free)):
            port = free.popleft()
            try:
                return _open(family, protocol, port)
            except OSError as error:
                free.append(port)
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
        raise OSError(f"no {protocol} port is free between {self._range[0]} and {self._range[1]}")

    def give_back(self, family: Family, protocol: Protocol, port: int) -> None:
        """PORT is not listened on any more."""
        if self._range[1]:
            self._pool(family, protocol).append(port)

    def _pool(self, family: Family, protocol: Protocol) -> deque[int]:
        first, last = self._range
        return self._free.setdefault((family, protocol), deque(range(first, last + 1)))


def _open(family: Family, protocol: Protocol, port: int) -> socket.socket:
    number, everywhere = PORTAL[family]
    made = socket.socket(number, _KINDS[protocol] | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if number == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol is Protocol.TCP:
            _prepare_stream(made, port)
        elif number == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        made.bind((everywhere, port))
        if protocol is Protocol.TCP:
            made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise OSError(error.errno, os.strerror(error.errno or 0)) from error
    return made


def _prepare_stream(made: socket.socket, port: int) -> None:
    if port:  # it may have connections of an earlier listener that are closing
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
