"""TCP connections through the forwarder: bytes, ends and resets, in both families."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from kproxy.model.plans import Endpoint, Family
from kproxy.modes.userspace.listeners import Statistics
from tests.userspace.peers import (
    LOOPBACK,
    PATIENCE,
    Port,
    Serve,
    echo,
    endpoint,
    eventually,
    exactly,
    forwarding,
    named,
    read_all,
    say,
    was_reset,
)

pytestmark = pytest.mark.slow  # starts processes

AT_ONCE = struct.pack("ii", 1, 0)
BLOCK = bytes(range(256)) * 64


@contextlib.contextmanager
def through(serve: Serve, family: Family = Family.IPV4) -> Iterator[Port]:
    with endpoint(serve, LOOPBACK[family]) as one, forwarding(one, family=family) as port:
        yield port


def statistics(port: Port) -> Statistics:
    return port.forwarder.statistics()


def test_a_client_that_has_sent_all_still_hears_the_answer() -> None:
    def count_all(connection: socket.socket) -> None:
        connection.sendall(str(len(read_all(connection))).encode())

    with through(count_all) as port, port.connect() as client:
        client.sendall(BLOCK)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == str(len(BLOCK)).encode()


def test_an_endpoint_that_has_sent_all_still_hears_the_client() -> None:
    heard: list[bytes] = []

    def talk_then_listen(connection: socket.socket) -> None:
        connection.sendall(b"go on")
        connection.shutdown(socket.SHUT_WR)
        heard.append(read_all(connection))

    with through(talk_then_listen) as port, port.connect() as client:
        assert read_all(client) == b"go on"
        client.sendall(b"late ")
        client.sendall(b"words")
        client.close()
        assert eventually(lambda: heard == [b"late words"])


def test_a_client_that_ends_at_once_leaves_nothing_behind() -> None:
    ended = threading.Event()

    def wait_for_end(connection: socket.socket) -> None:
        if not connection.recv(1):
            ended.set()

    with through(wait_for_end) as port:
        port.connect().close()
        assert ended.wait(PATIENCE)
        assert eventually(lambda: statistics(port).connections == 0)


@pytest.mark.parametrize("family", list(Family))
def test_much_passes_unchanged_in_both_directions_at_once(family: Family) -> None:
    much = BLOCK * 1024  # 16 MiB

    def swap(connection: socket.socket) -> None:
        sender = threading.Thread(target=connection.sendall, args=(much[::-1],))
        sender.start()
        got.append(exactly(connection, len(much)) == much)
        sender.join(PATIENCE)

    got: list[bool] = []
    with through(swap, family) as port, port.connect() as client:
        sender = threading.Thread(target=client.sendall, args=(much,))
        sender.start()
        assert exactly(client, len(much)) == much[::-1]
        sender.join(PATIENCE)
        assert read_all(client) == b""
        assert got == [True]
        counted = statistics(port)
        assert (counted.bytes_in, counted.bytes_out) == (len(much), len(much))


def test_urgent_data_does_not_hold_up_what_follows() -> None:
    def hear(connection: socket.socket) -> None:
        connection.sendall(read_all(connection))

    with through(hear) as port, port.connect() as client:
        client.sendall(b"before")
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"after")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).replace(b"!", b"") == b"beforeafter"


def test_a_reset_by_the_endpoint_reaches_the_client() -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)

    with through(reset) as port, port.connect() as client:
        client.sendall(b"x")
        assert was_reset(client)
        assert eventually(lambda: statistics(port).connections == 0)


def test_a_reset_by_the_client_reaches_the_endpoint() -> None:
    seen: list[bool] = []

    def watch(connection: socket.socket) -> None:
        connection.sendall(b"x")
        seen.append(was_reset(connection))

    with through(watch) as port:
        with port.connect() as client:
            assert client.recv(1) == b"x"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        assert eventually(lambda: seen == [True])


def test_open_connections_and_bytes_are_counted() -> None:
    with through(echo) as port:
        with port.connect() as client:
            client.sendall(b"12345")
            assert exactly(client, 5) == b"12345"
            assert statistics(port) == Statistics(connections=1, accepted=1, bytes_in=5, bytes_out=5)
        assert eventually(lambda: statistics(port) == Statistics(accepted=1, bytes_in=5, bytes_out=5))


def test_many_at_once() -> None:
    answers: list[bytes] = []

    def fetch_some(port: Port) -> None:
        answers.extend(port.fetch() for _ in range(20))

    with named(4) as endpoints, forwarding(*endpoints) as port:
        threads = [threading.Thread(target=fetch_some, args=(port,)) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        taken = Counter(answers)
        assert set(taken) == {b"0", b"1", b"2", b"3"}
        assert max(taken.values()) - min(taken.values()) <= 25
        assert statistics(port).accepted == taken.total() == 200


def test_both_families_have_the_same_port_number_for_different_things() -> None:
    with (
        endpoint(say(b"four")) as four,
        endpoint(say(b"six"), "::1") as six,
        forwarding(four) as port,
    ):
        other = Port(port.forwarder, Family.IPV6, port.key).lead_to(Endpoint(six.ip, six.port))
        assert (port.fetch(), other.fetch()) == (b"four", b"six")
        # A listener of one family does not take connections of the other.
        if other.number != port.number:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", other.number), PATIENCE)
