"""A listening address of an HTTP server: opened, retried until it can be opened, and guarded against slow clients.

A port that is taken, or an address that the node does not have yet, may become available, so opening is retried. What
is answered is up to the handler.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import web

from kproxy import logs
from kproxy.containment import Stage
from kproxy.errors import KernelError
from kproxy.model.addresses import canonical_ip
from kproxy.model.plans import address_port
from kproxy.rate_limit import Backoff

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

KEEP_ALIVE = 75.0
"""Seconds after which an idle connection is closed; longer than the pause between a load balancer's probes."""
STUCK = 90.0
"""Seconds without a new request after which a connection is aborted, whatever it is in the middle of."""
MAX_CONNECTIONS = 128
"""Per address. Beyond it, the connection whose last request is the oldest is aborted."""

_log = logs.get("http")
# aiohttp logs what clients did wrong. It is of no use to an operator, and any client could fill the log with it.
_silent = logs.silent()


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on. ip: canonical text, "0.0.0.0" and "::" for every address of one family, "" for every
    address of both. port: 0 for any free one."""

    ip: str
    port: int

    def __str__(self) -> str:
        return address_port(self.ip or "0.0.0.0", self.port)


def parse_address(text: str) -> Address:
    """Parse IP:PORT or [IP]:PORT. As in Go, 0.0.0.0 and :: both mean every address of both families.

    Raises ValueError.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 20 or int(port) > 65535:
        raise ValueError(f"{text!r} is not IP:PORT")
    if not host:
        return Address("", int(port))
    ip = canonical_ip(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    if ip is None:
        raise ValueError(f"{host!r} is not an IP address")
    return Address("" if ip in ("0.0.0.0", "::") else ip, int(port))


def open_socket(address: Address) -> socket.socket:
    """Return a listening socket. Raises KernelError, which names the address."""
    try:
        if address.ip:
            return _listen(socket.AF_INET6 if ":" in address.ip else socket.AF_INET, address.ip, address.port)
        try:
            return _listen(socket.AF_INET6, "::", address.port, both=True)
        except OSError:
            if _ipv6_works():
                raise
            return _listen(socket.AF_INET, "0.0.0.0", address.port)
    except OSError as error:
        raise KernelError(f"cannot listen on {address}: {error.strerror or error}") from error


def _listen(family: socket.AddressFamily, ip: str, port: int, both: bool = False) -> socket.socket:
    """both: families, on an IPv6 socket."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
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
    """One address with the handler of its requests. Every method must be called in the loop's thread.

    backoff: the waits between attempts to open. stage: contains unexpected errors while opening. on_failure: called
    with the error, once, when the address cannot be opened; it is tried again until it can.
    """

    def __init__(
        self,
        address: Address,
        handler: Handler,
        backoff: Backoff,
        stage: Stage,
        on_failure: Callable[[KernelError], None] = lambda error: None,
    ) -> None:
        self.address = address
        self._handler = handler
        self._backoff = backoff
        self._stage = stage
        self._on_failure = on_failure
        self._connections = _Connections()
        self._server: asyncio.Server | None = None
        self._http: web.Server | None = None
        self._retrying: asyncio.Task[None] | None = None
        self._reported = False

    @property
    def port(self) -> int | None:
        """The port that is open, None while it is not."""
        if self._server is None:
            return None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def open(self) -> None:
        """Try once. Raises KernelError."""
        sock = open_socket(self.address)
        try:
            http = web.Server(
                self._answer, access_log=None, logger=_silent, keepalive_timeout=KEEP_ALIVE, lingering_time=1.0
            )
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Guarded(http(), self._connections), sock=sock, backlog=socket.SOMAXCONN
            )
        except BaseException:
            sock.close()
            raise
        self._http = http

    async def open_or_retry(self) -> None:
        """Try now and, when that fails, go on trying in the background. Never raises."""
        if not await self._opened():
            self._retrying = asyncio.create_task(self._open_later())

    async def close(self) -> None:
        """Stop listening and abort open connections."""
        if self._retrying is not None:
            self._retrying.cancel()
            with suppress(asyncio.CancelledError):
                await self._retrying
        if self._server is not None:
            await _close_server(self._server)
        self._connections.abort_all()
        if self._http is not None:
            await self._http.shutdown(timeout=0.1)

    async def _opened(self) -> bool:
        """Try once to open it, and report why not; returns whether it is open."""
        try:
            await self.open()
        except KernelError as error:
            self._report(error)
            return False
        except Exception as error:
            self._stage.failed(error)
            return False
        self._stage.succeeded()
        return True

    def _report(self, error: KernelError) -> None:
        if self._reported:
            return
        self._reported = True
        _log.warning("Cannot listen, will be retried; another program may hold the port", err=error)
        try:
            self._on_failure(error)
        except Exception as unexpected:
            self._stage.failed(unexpected)

    async def _open_later(self) -> None:
        while True:
            await asyncio.sleep(max(self._backoff.next(), self._stage.retry_in))
            if await self._opened():
                _log.info("Listening after failed attempts", address=str(self.address))
                return

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self._connections.active(request.transport)
        return await self._handler(request)


async def _close_server(server: asyncio.Server) -> None:
    # A connection that asyncio has accepted but not yet attached when the server closes is never closed. So stop
    # accepting, and give those that are accepted three rounds of the loop to be attached.
    loop = asyncio.get_running_loop()
    for sock in server.sockets:
        loop.remove_reader(sock.fileno())
    for _ in range(3):
        await asyncio.sleep(0)
    server.close()


class _Connections:
    """The connections of one listener, ordered by their last request, the oldest first."""

    def __init__(self) -> None:
        self._timers: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}
        self._closed = False

    def opened(self, transport: asyncio.Transport) -> None:
        """Add a connection; when there are too many, the one whose last request is the oldest is aborted."""
        if self._closed:  # accepted while the listener closed
            transport.abort()
            return
        while len(self._timers) >= MAX_CONNECTIONS:
            oldest = next(iter(self._timers))
            self.closed(oldest)
            _abort(oldest)
        self._start_timer(transport)

    def active(self, transport: asyncio.BaseTransport | None) -> None:
        """Give a connection with a new request the full time again."""
        if transport in self._timers:
            self.closed(transport)
            self._start_timer(transport)

    def closed(self, transport: asyncio.BaseTransport) -> None:
        """Remove a connection."""
        if timer := self._timers.pop(transport, None):
            timer.cancel()

    def abort_all(self) -> None:
        """Abort all, and those that are still to come."""
        self._closed = True
        for transport in list(self._timers):
            self.closed(transport)
            _abort(transport)

    def _start_timer(self, transport: asyncio.BaseTransport) -> None:
        self._timers[transport] = asyncio.get_running_loop().call_later(STUCK, _abort, transport)


def _abort(transport: asyncio.BaseTransport) -> None:
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()


class _Guarded(asyncio.Protocol):
    """An HTTP connection that `_Connections` limits; aiohttp itself waits for a first request for ever."""

    def __init__(self, http: asyncio.Protocol, connections: _Connections) -> None:
        self._http = http
        self._connections = connections
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.opened(transport)
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
            self._connections.closed(self._transport)
        self._http.connection_lost(exc)


def contained(handler: Handler, stage: Stage) -> Handler:
    """Wrap `handler`: when it raises, that request is answered with status 500, and `stage` reports the error."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        try:
            response = await handler(request)
        except Exception as error:
            stage.failed(error)
            return web.Response(status=500, text="internal error, see kproxy's log\n")
        stage.succeeded()
        return response

    return answer


def json_response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    """Make a response of `body`, which is JSON, that no browser takes for anything else."""
    return web.Response(
        status=status,
        body=body,
        headers={"Content-Type": "application/json", "X-Content-Type-Options": "nosniff", **(headers or {})},
    )
