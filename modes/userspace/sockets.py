"""Sockets bound to proxy ports, on every address of the node, or to node ports on loopback, and how the kernel shares a
port between workers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator

from kproxy.model.plans import Family, Protocol
from kproxy.modes.userspace.listeners import LOOPBACK

# A peer that vanished is noticed after two minutes; accepted sockets inherit these options.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF = 51, 68  # include/uapi/asm-generic/socket.h
# include/uapi/linux/bpf_common.h, filter.h
LOAD_WORD, TO_X, XOR_X, MULTIPLY, SHIFT_RIGHT, MODULO, RETURN_A = 0x20, 0x07, 0xAC, 0x24, 0x74, 0x94, 0x16
NETWORK_HEADER = 2**32 - 0x100000  # SKF_NET_OFF
IP_PKTINFO = 8  # include/uapi/linux/in.h
ANY_ADDRESS = {Family.IPV4: (socket.AF_INET, "0.0.0.0"), Family.IPV6: (socket.AF_INET6, "::")}
LOOPBACK_DEVICE = b"lo\0"
_KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}


class ProxyPorts:
    """Allocates proxy ports: from a range, or as the kernel chooses."""

    def __init__(self, first: int, last: int) -> None:
        """first, last: the range; both 0: as the kernel chooses."""
        self._range = (first, last)
        self._free: dict[tuple[Family, Protocol], deque[int]] = {}

    def open(self, family: Family, protocol: Protocol) -> socket.socket:
        """A non-blocking socket on a free port, not listening yet. Raises OSError with the reason as its text."""
        if protocol not in _KINDS:
            raise OSError(f"{protocol} cannot be forwarded in userspace mode")
        if not self._range[1]:
            return _bound(family, protocol, 0)
        free = self._pool(family, protocol)
        for _ in range(len(free)):
            port = free.popleft()
            try:
                return _bound(family, protocol, port)
            except OSError as error:
                free.append(port)
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
        raise OSError(f"no {protocol} port is free between {self._range[0]} and {self._range[1]}")

    def release(self, family: Family, protocol: Protocol, port: int) -> None:
        """Make PORT available again."""
        if self._range[1]:
            self._pool(family, protocol).append(port)

    def _pool(self, family: Family, protocol: Protocol) -> deque[int]:
        first, last = self._range
        return self._free.setdefault((family, protocol), deque(range(first, last + 1)))


def share(bound: socket.socket) -> None:
    """Let other processes of this user bind the same port.

    Only after bind: the kernel would otherwise choose a port that is shared already.
    """
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def join(family: Family, protocol: Protocol, port: int) -> socket.socket:
    """Another socket on a shared PORT. Raises OSError."""
    return _bound(family, protocol, port, shared=True)


def balance(joined: socket.SocketType, family: Family, workers: int, by_client: bool) -> None:
    """Set how the kernel distributes connections over a port's sockets: by client address, or by client port as well.

    joined: any of the sockets. workers: their number. Raises OSError.
    """
    if not by_client:
        joined.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
        return
    code = b"".join(struct.pack("HBBI", *step) for step in _by_client(family, workers))
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(code) // 8, ctypes.addressof(held))
    joined.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)


def _by_client(family: Family, workers: int) -> Iterator[tuple[int, int, int, int]]:
    """A classic BPF program: a hash of the source address, modulo the number of workers."""
    first, words = (12, 1) if family is Family.IPV4 else (8, 4)
    yield LOAD_WORD, 0, 0, NETWORK_HEADER + first
    for i in range(1, words):
        yield TO_X, 0, 0, 0
        yield LOAD_WORD, 0, 0, NETWORK_HEADER + first + 4 * i
        yield XOR_X, 0, 0, 0
    yield MULTIPLY, 0, 0, 0x9E3779B1  # 2**32 / golden ratio: spreads neighbouring addresses
    yield SHIFT_RIGHT, 0, 0, 16
    yield MODULO, 0, 0, workers
    yield RETURN_A, 0, 0, 0


def on_loopback(family: Family, port: int, shared: bool = False) -> socket.socket:
    """A non-blocking TCP socket on PORT of the loopback address, not listening yet. shared: others have it already.

    Only packets that come by the loopback interface reach it: with the sysctl route_localnet, which this program does
    not need but others may set, the address alone would keep no neighbour on the link out. Raises OSError.
    """
    return _bound(family, Protocol.TCP, port, shared, loopback=True)


def _bound(
    family: Family, protocol: Protocol, port: int, shared: bool = False, loopback: bool = False
) -> socket.socket:
    number, address = ANY_ADDRESS[family]
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
        if shared:
            share(made)
        if loopback:
            address = LOOPBACK[family]
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LOOPBACK_DEVICE)
        made.bind((address, port))
    except OSError as error:
        made.close()
        raise OSError(error.errno, os.strerror(error.errno or 0)) from error
    return made


def _prepare_stream(made: socket.socket, port: int) -> None:
    if port:  # connections of an earlier listener may still be closing
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
