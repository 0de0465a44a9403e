"""UDP through the forwarder: sessions, who answers, and from which address."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from kproxy.model.plans import Endpoint, Family
from kproxy.modes.userspace.messages import Settings
from tests.userspace.peers import DNS, LOOPBACK, NUMBER, PATIENCE, Port, datagrams, eventually, forwarding, free_port

pytestmark = pytest.mark.slow  # starts processes

STAYING = Settings(udp_idle_seconds=60)
ELSEWHERE = {Family.IPV4: "127.0.0.77", Family.IPV6: "::1"}


@contextlib.contextmanager
def answering(count: int = 1, ip: str = "127.0.0.1") -> Iterator[list[Endpoint]]:
    """COUNT endpoints that put their number in front of what they hear."""

    def name(i: int, data: bytes) -> bytes:
        return b"%d:%s" % (i, data)

    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(datagrams(lambda data, i=i: name(i, data), ip)) for i in range(count)]  # type: ignore[misc]


@contextlib.contextmanager
def client(family: Family = Family.IPV4, source: str = "") -> Iterator[socket.socket]:
    with socket.socket(NUMBER[family], socket.SOCK_DGRAM) as made:
        made.bind((source or LOOPBACK[family], 0))
        made.settimeout(PATIENCE)
        yield made


def ask(made: socket.socket, port: Port, text: bytes = b"?", ip: str = "") -> bytes:
    made.sendto(text, (ip or LOOPBACK[port.family], port.number))
    return made.recvfrom(65_536)[0]


def sessions(port: Port) -> int:
    return port.forwarder.statistics().sessions


@pytest.mark.parametrize("family", list(Family))
def test_a_client_stays_with_its_endpoint_and_clients_take_turns(family: Family) -> None:
    with answering(3, LOOPBACK[family]) as endpoints:  # noqa: SIM117
        with forwarding(*endpoints, settings=STAYING, family=family, key=DNS) as port, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(client(family)) for _ in range(6)]
            for _ in range(3):
                assert [ask(one, port) for one in clients] == [b"0:?", b"1:?", b"2:?"] * 2
            counted = port.forwarder.statistics()
            assert (counted.sessions, counted.bytes_in, counted.bytes_out) == (6, 18, 54)


@pytest.mark.parametrize("family", list(Family))
def test_the_answer_comes_from_the_address_that_was_asked(family: Family) -> None:
    with answering(1, LOOPBACK[family]) as (one,), forwarding(one, family=family, key=DNS) as port:
        for ip in (LOOPBACK[family], ELSEWHERE[family]):
            with client(family) as made:
                made.sendto(b"?", (ip, port.number))
                answer, sender = made.recvfrom(100)
                assert (answer, sender[0], sender[1]) == (b"0:?", ip, port.number)


def test_a_client_has_a_session_for_each_address_that_it_asks() -> None:
    with answering() as (one,), forwarding(one, settings=STAYING, key=DNS) as port, client() as made:
        for ip in ("127.0.0.1", "127.0.0.77", "127.0.0.1"):
            ask(made, port, ip=ip)
        assert sessions(port) == 2


@pytest.mark.parametrize("size", [0, 1, 1400, 9000, 65_000])
def test_datagrams_of_any_size(size: int) -> None:
    with datagrams(lambda data: data) as one, forwarding(one, key=DNS) as port, client() as made:
        assert ask(made, port, bytes(size)) == bytes(size)


def test_a_session_ends_when_it_is_idle_and_the_client_has_a_turn_again() -> None:
    with answering(2) as endpoints, forwarding(*endpoints, key=DNS) as port, client() as made:
        assert ask(made, port) == b"0:?"
        assert eventually(lambda: sessions(port) == 0)
        assert ask(made, port) == b"1:?"


@pytest.mark.parametrize("direction", ["client", "endpoint"])
def test_datagrams_of_either_direction_keep_a_session(direction: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as there, client() as made:
        there.bind(("127.0.0.1", 0))
        there.settimeout(PATIENCE)
        quick = Settings(udp_idle_seconds=0.3)
        with forwarding(Endpoint("127.0.0.1", there.getsockname()[1]), settings=quick, key=DNS) as port:
            made.sendto(b"?", ("127.0.0.1", port.number))
            _, seen = there.recvfrom(100)
            for _ in range(8):
                time.sleep(0.1)
                if direction == "client":
                    made.sendto(b"?", ("127.0.0.1", port.number))
                    assert there.recvfrom(100)[1] == seen
                else:
                    there.sendto(b"!", seen)
                    assert made.recv(100) == b"!"
            assert eventually(lambda: sessions(port) == 0)


def test_an_endpoint_that_answers_more_than_once() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as there, client() as made:
        there.bind(("127.0.0.1", 0))
        with forwarding(Endpoint("127.0.0.1", there.getsockname()[1]), settings=STAYING, key=DNS) as port:
            made.sendto(b"?", ("127.0.0.1", port.number))
            _, seen = there.recvfrom(100)
            for i in range(100):
                there.sendto(b"%d" % i, seen)
            assert [made.recv(100) for _ in range(100)] == [b"%d" % i for i in range(100)]


def test_the_datagram_that_an_endpoint_refused_goes_to_the_next() -> None:
    refusing = [free_port(kind=socket.SOCK_DGRAM) for _ in range(2)]
    with answering() as (good,), forwarding(*refusing, good, settings=STAYING, key=DNS) as port, client() as made:
        assert ask(made, port, b"first") == b"0:first"
        assert ask(made, port, b"second") == b"0:second"
        counted = port.forwarder.statistics()
        assert (counted.retries, counted.sessions) == (2, 1)


def test_an_endpoint_that_stops_loses_its_session_to_another() -> None:
    with answering() as (good,), contextlib.ExitStack() as life, client() as made:
        first = life.enter_context(datagrams(lambda data: b"first"))
        with forwarding(first, good, settings=STAYING, key=DNS) as port:
            assert ask(made, port) == b"first"
            life.close()
            assert ask(made, port) == b"0:?"
            assert sessions(port) == 1


def test_when_all_refuse_the_session_is_given_up() -> None:
    refusing = [free_port(kind=socket.SOCK_DGRAM) for _ in range(2)]
    with forwarding(*refusing, settings=STAYING, key=DNS) as port, client() as made:
        made.sendto(b"?", ("127.0.0.1", port.number))
        assert eventually(lambda: port.forwarder.statistics().refused == {"no-endpoint": 1})
        assert sessions(port) == 0


def test_sessions_with_an_endpoint_that_leaves_end_at_once() -> None:
    with answering(2) as (first, second), forwarding(first, settings=STAYING, key=DNS) as port, client() as made:
        assert ask(made, port) == b"0:?"
        port.lead_to(second)
        assert sessions(port) == 0
        assert ask(made, port) == b"1:?"
        port.close()
        assert sessions(port) == 0


def test_affinity_holds_beyond_a_session() -> None:
    with answering(3) as endpoints, forwarding(*endpoints, affinity=60, key=DNS) as port:
        seen = set()
        for _ in range(3):
            with client(source="127.0.0.9") as made:
                seen.add(ask(made, port))
        assert len(seen) == 1


def test_a_flood_of_clients_is_served() -> None:
    with answering(2) as endpoints, forwarding(*endpoints, key=DNS) as port, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client()) for _ in range(150)]
        for one in clients:
            one.sendto(b"?", ("127.0.0.1", port.number))
        answers = Counter(one.recv(100) for one in clients)
    # Several processes take turns together; those that come at the same moment may both take one.
    assert answers.total() == 150
    assert answers.keys() == {b"0:?", b"1:?"}
    assert abs(answers[b"0:?"] - answers[b"1:?"]) <= 30
