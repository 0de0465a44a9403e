"""When file descriptors are used up new connections are refused, nothing breaks, and service resumes."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from kproxy.modes.userspace.messages import Settings
from kproxy.modes.userspace.resources import KEPT_FREE, raise_limit
from tests.userspace.peers import (
    DNS,
    Port,
    datagrams,
    echo,
    endpoint,
    eventually,
    exactly,
    forwarding,
    is_refused,
    leave_no_descriptor,
    restore_descriptors,
)

pytestmark = pytest.mark.slow  # starts processes

LIMIT = 160
"""Room for some forty connections beyond what is kept free."""
ALONE = Settings(workers=1)
FEW = Settings(workers=1, descriptors=LIMIT, udp_idle_seconds=60)


def open_until_refused(port: Port, stack: contextlib.ExitStack, most: int = 200) -> list[socket.socket]:
    """Connections that are served, up to the first that is not."""
    served: list[socket.socket] = []
    for _ in range(most):
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            client = stack.enter_context(port.connect())
            client.sendall(b"x")
            if exactly(client, 1) == b"x":
                served.append(client)
                continue
        return served
    pytest.fail("nobody was refused")


def test_connections_beyond_the_limit_are_reset_and_counted_and_the_others_go_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with endpoint(echo) as one, forwarding(one, settings=FEW) as port:
        with contextlib.ExitStack() as stack:
            served = open_until_refused(port, stack)
            assert 20 <= len(served) <= (LIMIT - KEPT_FREE) // 2
            assert all(is_refused(port) for _ in range(50))
            counted = port.forwarder.statistics()
            assert (counted.connections, counted.refused) == (len(served), {"descriptors": 51})
            for client in served:
                client.sendall(b"still here")
                assert exactly(client, 10) == b"still here"
        assert eventually(lambda: port.forwarder.statistics().connections == 0)
        with port.connect() as client:
            client.sendall(b"again")
            assert exactly(client, 5) == b"again"
        assert port.forwarder.alive(port.family)
    lines = [line for line in capfd.readouterr().err.splitlines() if "file descriptor" in line]
    assert len(lines) == 1
    assert 'what="a TCP connection"' in lines[0]
    assert f"limit={LIMIT}" in lines[0]
    assert lines[0].startswith("W")


def test_much_traffic_at_the_limit_goes_through_memory_when_no_pipe_is_left() -> None:
    with endpoint(echo) as one, forwarding(one, settings=FEW) as port, contextlib.ExitStack() as stack:
        for client in open_until_refused(port, stack):
            client.sendall(bytes(100_000))
            assert len(exactly(client, 100_000)) == 100_000


def test_the_kernel_may_refuse_earlier_than_expected() -> None:
    with endpoint(echo) as one, forwarding(one, settings=ALONE) as port:
        # Nothing is free any more, although the forwarder believes otherwise.
        leave_no_descriptor(port.forwarder.pids[0])
        assert all(is_refused(port) for _ in range(3))
        assert port.forwarder.statistics().refused == {"descriptors": 3}
        cpu = processor_seconds(port.forwarder.pids[0])
        time.sleep(0.2)
        assert processor_seconds(port.forwarder.pids[0]) - cpu < 0.1
        restore_descriptors(port.forwarder.pids[0])
        with port.connect() as client:
            client.sendall(b"again")
            assert exactly(client, 5) == b"again"


def processor_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def test_datagrams_of_new_clients_are_dropped_and_sessions_go_on() -> None:
    with (
        datagrams(lambda data: data) as one,
        forwarding(one, settings=FEW, key=DNS) as port,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(LIMIT)]
        for client in clients:
            client.sendto(b"x", ("127.0.0.1", port.number))
        assert eventually(lambda: port.forwarder.statistics().refused.get("descriptors", 0) > 0)
        counted = port.forwarder.statistics()
        assert 20 <= counted.sessions <= LIMIT - KEPT_FREE
        assert counted.sessions + counted.refused["descriptors"] == LIMIT
        clients[0].settimeout(5)
        clients[0].sendto(b"y", ("127.0.0.1", port.number))
        assert {clients[0].recv(10) for _ in range(2)} == {b"x", b"y"}


def test_a_listener_that_finds_no_descriptor_says_so() -> None:
    with endpoint(echo) as one, forwarding(one, settings=ALONE) as port:
        leave_no_descriptor(port.forwarder.pids[0])
        with pytest.raises(AssertionError, match="Too many open files"):
            Port(port.forwarder, port.family, DNS).lead_to(one)
        restore_descriptors(port.forwarder.pids[0])
        assert Port(port.forwarder, port.family, DNS).lead_to(one).number


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_is_raised(limits: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1] // 2, limits[1]))
    assert raise_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= limits[1]
