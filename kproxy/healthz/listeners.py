"""One listening address: open it, answer on it, and not let a client hold it up.

Opening is tried again until it succeeds, since a port that is taken or an address that is not there yet may become
available. What is answered is the handler's business.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import web

from kproxy.errors import KernelError
from kproxy.model.plans import address_port

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

KEEP_ALIVE = 75.0
"""Seconds after which an idle connection is closed; longer than the pause between a load balancer's probes."""
STUCK = 90.0
"""Seconds without a new request after which a connection is cut, whatever it is in the middle of."""
MAX_CONNECTIONS = 128
"""Per address. With more, the one that has been without a new request for longest is cut."""

_log = logging.getLogger(__name__)
# What the library complains of is what clients sent. None of it is for an operator, and anybody could fill the log.
_silent = logging.Logger(f"{__name__}.clients", logging.CRITICAL + 1)


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. ip: canonical text; "" is every address of both families. port: 0 lets the kernel choose."""

    ip: str
    port: int

    def __str__(self) -> str:
        return address_port(self.ip or "0.0.0.0", self.port)


@dataclass(frozen=True, slots=True)
class Retry:
    """Seconds between attempts to open: `first`, then twice the last, at most `most`."""

    first: float = 1.0
    most: float = 30.0


def parse_address(text: str) -> Address:
    """IP:PORT or [IP]:PORT. As in Go, 0.0.0.0 and :: both mean every address of both families.

    Raises ValueError.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not IP:PORT")
    if not host:
        return Address("", int(port))
    ip = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    return Address("" if ip.is_unspecified else str(ip), int(port))


def open_socket(address: Address) -> socket.socket:
    """A listening socket. Raises KernelError, which names the address."""
    try:
        if address.ip:
            return _listen(socket.AF_INET6 if ":" in address.ip else socket.AF_INET, address.ip, address.port)
        try:
            return _listen(socket.AF_INET6, "::", address.port)
        except OSError:
            if _ipv6_works():
                raise
            return _listen(socket.AF_INET, "0.0.0.0", address.port)
    except OSError as error:
        raise KernelError(f"cannot listen on {address}: {error.strerror or error}") from error


def _listen(family: socket.AddressFamily, ip: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(ip != "::"))
        sock.bind((ip, port))
        sock.listen(socket.SOMAXCONN)
    except OSError:
        sock.close()
        raise
    return sock


def _ipv6_works() -> bool:
    try:
        _listen(socket.AF_INET6, "::1", 0).close()
    except OSError:
        return False
    return True


class Listener:
    """Serves HANDLER on ADDRESS. All methods belong to the loop's thread.

    on_failure is called with the error once for each run of failures to open; log lines come with it.
    """

    def __init__(
        self,
        address: Address,
        handler: Handler,
        retry: Retry,
        on_failure: Callable[[KernelError], None] = lambda error: None,
    ) -> None:
        self.address = address
        self._handler = handler
        self._retry = retry
        self._on_failure = on_failure
        self._clients = _Clients()
        self._server: asyncio.Server | None = None
        self._http: web.Server | None = None
        self._retrying: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def port(self) -> int | None:
        """The port that is open; None while it is not."""
        if self._server is None:
            return None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def open(self) -> None:
        """Try once. Raises KernelError."""
        sock = open_socket(self.address)
        self._http = web.Server(
            self._answer, access_log=None, logger=_silent, keepalive_timeout=KEEP_ALIVE, lingering_time=1.0
        )
        http = self._http
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Guarded(http(), self._clients), sock=sock, backlog=socket.SOMAXCONN
        )

    async def open_or_retry(self) -> None:
        """Try now, and go on trying in the background when it fails. Never raises."""
        try:
            await self.open()
        except KernelError as error:
            _log.warning("%s; trying again in %g s, another program may hold the port", error, self._retry.first)
            self._on_failure(error)
            self._retrying = asyncio.create_task(self._open_later())

    async def close(self) -> None:
        """Stop listening and cut what is connected."""
        self._closed = True
        if self._retrying is not None:
            self._retrying.cancel()
            with suppress(asyncio.CancelledError):
                await self._retrying
        if self._server is not None:
            await _close_server(self._server)
        self._clients.cut_all()
        if self._http is not None:
            await self._http.shutdown(timeout=0.1)

    async def _open_later(self) -> None:
        pause = self._retry.first
        while not self._closed:
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._retry.most)
            with suppress(KernelError):
                await self.open()
                _log.info("listening on %s at last", self.address)
                return

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self._clients.active(request.transport)
        try:
            return await self._handler(request)
        except Exception:
            _log.exception("a page of %s failed", self.address)
            return web.Response(status=500, text="internal error\n")


async def _close_server(server: asyncio.Server) -> None:
    # asyncio loses, unclosed, a connection that it has accepted but not yet attached when the server closes. So let
    # those come in first, while no others do.
    loop = asyncio.get_running_loop()
    for sock in server.sockets:
        loop.remove_reader(sock.fileno())
    for _ in range(3):
        await asyncio.sleep(0)
    server.close()


class _Clients:
    """The connections of one listener, the one without a new request for longest first."""

    def __init__(self) -> None:
        self._cutters: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}
        self._over = False

    def joined(self, transport: asyncio.Transport) -> None:
        if self._over:  # it was on its way in while the listener closed
            transport.abort()
            return
        while len(self._cutters) >= MAX_CONNECTIONS:
            oldest = next(iter(self._cutters))
            self.left(oldest)
            _cut(oldest)
        self._watch(transport)

    def active(self, transport: asyncio.BaseTransport | None) -> None:
        """A request came in; it and its answer have the full time again."""
        if transport in self._cutters:
            self.left(transport)
            self._watch(transport)

    def left(self, transport: asyncio.BaseTransport) -> None:
        if cutter := self._cutters.pop(transport, None):
            cutter.cancel()

    def cut_all(self) -> None:
        self._over = True
        for transport in list(self._cutters):
            self.left(transport)
            _cut(transport)

    def _watch(self, transport: asyncio.BaseTransport) -> None:
        self._cutters[transport] = asyncio.get_running_loop().call_later(STUCK, _cut, transport)


def _cut(transport: asyncio.BaseTransport) -> None:
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()


class _Guarded(asyncio.Protocol):
    """An HTTP connection that is watched by _Clients; the library itself waits for ever for a first request."""

    def __init__(self, http: asyncio.Protocol, clients: _Clients) -> None:
        self._http = http
        self._clients = clients
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._clients.joined(transport)
        self._http.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._http.data_received(data)

    def eof_received(self) -> bool | None:
        return self._http.eof_received()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._clients.left(self._transport)
        self._http.connection_lost(exc)


def json_response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    """BODY as JSON that no browser may take for anything else."""
    return web.Response(
        status=status,
        body=body,
        headers={"Content-Type": "application/json", "X-Content-Type-Options": "nosniff", **(headers or {})},
    )
