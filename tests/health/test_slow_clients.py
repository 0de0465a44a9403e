"""A client that is slow, silent or does not read is cut after a while, and a page that fails fails alone."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPResponse
from typing import Any

import pytest
from aiohttp import web

from kproxy.health import listeners
from kproxy.health.listeners import Address, Listener, Retry
from kproxy.health.loops import LoopThread

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
MUCH = b"x" * 50_000_000


async def answer(request: web.BaseRequest) -> web.Response:
    if request.path == "/broken":
        raise RuntimeError("a page with a bug")
    if request.path == "/slow":
        await asyncio.sleep(60)
    return web.Response(body=MUCH if request.path == "/much" else b"ok")


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A listener with little patience."""
    monkeypatch.setattr(listeners, "STUCK", 0.8)
    thread = LoopThread("test")
    thread.start()
    listener = Listener(Address("127.0.0.1", 0), answer, Retry())
    thread.submit(listener.open()).result(10)
    assert listener.port is not None
    yield listener.port
    thread.submit(listener.close()).result(10)
    thread.stop()


def received(port: int, request: bytes, pause: float = 0.0) -> int:
    """Bytes that come before the connection ends, to a client that reads only after PAUSE seconds.

    Raises TimeoutError when the connection does not end.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(request)
        time.sleep(pause)
        count = 0
        with suppress(ConnectionResetError):
            while data := client.recv(1 << 20):
                count += len(data)
        return count


@pytest.mark.parametrize(
    "request_bytes",
    [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n", REQUEST.replace(b"/ ", b"/slow ")],
    ids=["silent", "half a line", "half a header", "slow page"],
)
def test_a_request_that_gets_nowhere_is_cut(port: int, request_bytes: bytes) -> None:
    assert received(port, request_bytes) == 0


def test_an_idle_connection_is_closed_after_its_answer(port: int) -> None:
    assert received(port, REQUEST) > 0


def test_a_client_that_does_not_read_is_cut(port: int) -> None:
    assert received(port, REQUEST.replace(b"/ ", b"/much "), pause=2.0) < len(MUCH)


def test_each_request_gets_the_full_time_again(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        for _ in range(4):
            client.sendall(REQUEST)
            response = HTTPResponse(client)
            response.begin()
            assert (response.status, response.read() != b"") == (200, True)
            time.sleep(0.3)


def test_a_page_that_fails_is_logged_and_fails_alone(
    port: int, get: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert get(port, "/broken").status == 500
    assert get(port, "/").status == 200
    [record] = caplog.records
    assert record.name == "kproxy.health.listeners"
    assert "127.0.0.1" in record.getMessage()
