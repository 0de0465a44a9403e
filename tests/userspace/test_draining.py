"""Endpoints that leave keep their open connections until the drain time is over."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from kproxy.model.plans import Endpoint
from kproxy.modes.userspace.listeners import ListenerKey, Reach
from kproxy.modes.userspace.messages import Settings
from tests.userspace.peers import WEB, Port, echo, endpoint, eventually, exactly, forwarding, named, was_reset

pytestmark = pytest.mark.slow  # starts processes

SOON = Settings(drain_seconds=0.4)
LATE = Settings(drain_seconds=3600)


@pytest.fixture
def echoing() -> Iterator[Endpoint]:
    with endpoint(echo) as one:
        yield one


def works(client: socket.socket) -> bool:
    client.sendall(b"ping")
    return exactly(client, 4) == b"ping"


def test_an_open_connection_goes_on_and_new_ones_go_elsewhere(echoing: Endpoint) -> None:
    with named(1) as (other,), forwarding(echoing, settings=LATE) as port, port.connect() as client:
        assert works(client)
        port.lead_to(other)
        assert works(client)
        assert [port.fetch() for _ in range(2)] == [b"0"] * 2
        assert works(client)
        assert port.forwarder.statistics().reset == 0


def test_when_the_time_is_over_both_sides_are_reset() -> None:
    ends: list[bool] = []

    def watch(connection: socket.socket) -> None:
        connection.sendall(b"x")
        ends.append(was_reset(connection))

    with endpoint(watch) as one, named(1) as (other,), forwarding(one, settings=SOON) as port:
        with port.connect() as client:
            assert exactly(client, 1) == b"x"
            began = time.monotonic()
            port.lead_to(other)
            assert was_reset(client)
            assert time.monotonic() - began >= 0.4
        assert eventually(lambda: ends == [True])
        counted = port.forwarder.statistics()
        assert (counted.reset, counted.connections) == (1, 0)


def test_an_endpoint_that_comes_back_in_time_keeps_its_connections(echoing: Endpoint) -> None:
    with named(1) as (other,), forwarding(echoing, settings=SOON) as port, port.connect() as client:
        assert works(client)
        port.lead_to(other)
        port.lead_to(other, echoing)
        time.sleep(0.5)
        assert works(client)
        # Leaving again gives it the whole time again.
        port.lead_to(other)
        assert works(client)
        assert was_reset(client)


def test_a_connection_that_ends_in_time_is_not_reset(echoing: Endpoint) -> None:
    with named(1) as (other,), forwarding(echoing, settings=SOON) as port:
        with port.connect() as client:
            assert works(client)
            port.lead_to(other)
        assert eventually(lambda: port.forwarder.statistics().connections == 0)
        time.sleep(0.5)
        assert port.forwarder.statistics().reset == 0


def test_a_closed_listener_takes_no_more_and_drains_what_is_open(echoing: Endpoint) -> None:
    with forwarding(echoing, settings=SOON) as port, port.connect() as client:
        assert works(client)
        port.close()
        assert works(client)
        with pytest.raises(ConnectionRefusedError):
            port.connect()
        assert was_reset(client)
        assert port.forwarder.statistics().reset == 1


def test_a_listener_that_closed_does_not_touch_its_sibling(echoing: Endpoint) -> None:
    local = ListenerKey(WEB.key, Reach.LOCAL)
    with forwarding(echoing, settings=SOON) as port:
        sibling = Port(port.forwarder, port.family, local).lead_to(echoing)
        assert sibling.number != port.number
        with sibling.connect() as client:
            port.close()
            time.sleep(0.5)
            assert works(client)


def test_the_end_of_the_forwarder_ends_every_connection(echoing: Endpoint) -> None:
    with forwarding(echoing) as port, port.connect() as client:
        assert works(client)
        port.forwarder.close()
        assert was_reset(client) or exactly(client, 1) == b""
