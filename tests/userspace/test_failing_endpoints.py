"""Endpoints that refuse, are out of reach or stay silent are passed over, which no kernel mode can do."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from kproxy.model.plans import Endpoint, Family
from kproxy.modes.userspace.messages import Settings
from tests.userspace.peers import (
    LOOPBACK,
    PATIENCE,
    echo,
    endpoint,
    eventually,
    exactly,
    forwarding,
    free_port,
    named,
    say,
    was_reset,
)

pytestmark = pytest.mark.slow  # starts processes

QUICK = Settings(connect_seconds=(0.05, 0.1, 0.2))
UNREACHABLE = Endpoint("255.255.255.255", 80)
"""connect(2) fails at once."""


@contextlib.contextmanager
def silent() -> Iterator[Endpoint]:
    """An endpoint whose backlog is full: it does not answer any more."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listening.getsockname()[1]
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        time.sleep(0.05)
        yield Endpoint("127.0.0.1", port)


@pytest.mark.parametrize("family", list(Family))
def test_a_refusing_endpoint_is_skipped(family: Family) -> None:
    with (
        endpoint(say(b"here"), LOOPBACK[family]) as good,
        forwarding(free_port(LOOPBACK[family]), good, family=family) as port,
    ):
        assert [port.fetch() for _ in range(4)] == [b"here"] * 4
        assert port.forwarder.statistics().retries >= 2


def test_what_the_client_said_already_goes_to_the_next() -> None:
    with endpoint(echo) as good, forwarding(free_port(), UNREACHABLE, free_port(), good) as port:
        for _ in range(4):
            with port.connect() as client:
                client.sendall(b"hello" * 1000)
                assert exactly(client, 5000) == b"hello" * 1000


def test_data_that_waits_for_a_silent_endpoint_reaches_the_next() -> None:
    with silent() as mute, endpoint(echo) as good, forwarding(mute, good, settings=QUICK) as port:
        with port.connect() as client:
            client.sendall(b"hello")
            assert exactly(client, 5) == b"hello"
        assert port.forwarder.statistics().retries == 1


def test_a_client_that_ends_while_nobody_answers_is_still_served() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(exactly(connection, 100)[::-1])

    with (
        silent() as mute,
        endpoint(answer) as good,
        forwarding(mute, good, settings=QUICK) as port,
        port.connect() as client,
    ):
        client.sendall(b"abc")
        client.shutdown(socket.SHUT_WR)
        assert exactly(client, 100) == b"cba"


def test_the_only_endpoint_has_the_longest_time() -> None:
    slow = Settings(connect_seconds=(0.01, PATIENCE))
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        there = Endpoint(*listening.getsockname()[:2])
        first = socket.create_connection(listening.getsockname(), PATIENCE)
        with first, forwarding(there, settings=slow) as port, port.connect() as client:
            client.sendall(b"x")
            time.sleep(0.1)  # far beyond the first time; the kernel asks again after a second
            assert port.forwarder.statistics().retries == 0
            taken = [listening.accept()[0] for _ in range(2)]
            assert exactly(taken[1], 1) == b"x"
            for connection in taken:
                connection.close()


def test_without_any_endpoint_left_the_client_is_reset() -> None:
    with silent() as mute, forwarding(free_port(), mute, UNREACHABLE, settings=QUICK) as port:
        with port.connect() as client:
            client.sendall(b"x")
            assert was_reset(client)
        counted = port.forwarder.statistics()
        assert (counted.refused, counted.retries, counted.connections) == ({"no-endpoint": 1}, 3, 0)


def test_a_failed_endpoint_loses_its_clients_to_another() -> None:
    with named(2) as endpoints, forwarding(free_port(), *endpoints, affinity=60) as port:
        first = port.fetch()
        assert [port.fetch() for _ in range(3)] == [first] * 3
        assert port.forwarder.statistics().retries == 1


def test_a_client_that_gives_up_while_nobody_answers_is_forgotten() -> None:
    with silent() as mute, forwarding(mute, settings=Settings(connect_seconds=(30.0,))) as port:
        with port.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            assert eventually(lambda: port.forwarder.statistics().connections == 1)
        assert eventually(lambda: port.forwarder.statistics().connections == 0)
