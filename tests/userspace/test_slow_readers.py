"""A slow reader holds back a fast writer, and costs the forwarder no memory meanwhile."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from kproxy.modes.userspace.messages import Settings
from tests.userspace.peers import PATIENCE, Port, endpoint, eventually, exactly, forwarding

pytestmark = pytest.mark.slow  # starts processes

ALONE = Settings(workers=1)
PIECE = bytes(1_000_000)


def largest(name: str) -> int:
    """The most bytes that the kernel keeps in one buffer of a TCP socket."""
    return int(Path("/proc/sys/net/ipv4", name).read_text().split()[2])


# What may be under way: two connections' buffers at both ends, one pipe, and what the test holds itself.
UNDER_WAY = 2 * (largest("tcp_rmem") + largest("tcp_wmem")) + (1 << 20) + 2 * len(PIECE)
SIZE = max(100_000_000, UNDER_WAY + 20_000_000) // len(PIECE) * len(PIECE)


def resident(port: Port) -> int:
    """Bytes of memory that the forwarder's process has."""
    pages = int(Path(f"/proc/{port.forwarder.pids[0]}/statm").read_text().split()[1])
    return pages * 4096


def test_a_hundred_megabytes_through_a_slow_reader() -> None:
    sent = [0]

    def write_fast(connection: socket.socket) -> None:
        for _ in range(SIZE // len(PIECE)):
            connection.sendall(PIECE)
            sent[0] += len(PIECE)

    with endpoint(write_fast) as one, forwarding(one, settings=ALONE) as port, port.connect() as client:
        assert len(exactly(client, 1000)) == 1000
        before, most, ahead, got = resident(port), 0, 0, 1000
        while data := client.recv(1 << 20):
            got += len(data)
            if got < SIZE // 4:
                time.sleep(0.002)
            ahead = max(ahead, sent[0] - got)
            most = max(most, resident(port))
        assert got == SIZE
        assert most - before < 4_000_000
        assert ahead <= UNDER_WAY


def test_a_client_that_does_not_read_stops_the_endpoint_and_nobody_else() -> None:
    sent: list[int] = []

    def write_fast(connection: socket.socket) -> None:
        connection.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while sum(sent) < SIZE:
                sent.append(connection.send(PIECE))
        connection.settimeout(PATIENCE)

    with endpoint(write_fast) as one, forwarding(one, settings=ALONE) as port, port.connect() as client:
        assert eventually(lambda: len(sent) > 2 and port.forwarder.statistics().connections == 1)
        with port.connect() as other:
            assert len(exactly(other, 20_000_000)) == 20_000_000
        stopped = sum(sent)
        assert stopped < SIZE
        # Once it reads everything comes.
        client.settimeout(PATIENCE)
        assert len(exactly(client, 2_000_000)) == 2_000_000


def test_a_slow_endpoint_holds_back_a_fast_client() -> None:
    go = threading.Event()
    got: list[int] = []

    def read_late(connection: socket.socket) -> None:
        go.wait(PATIENCE)
        got.append(len(exactly(connection, SIZE)))

    with endpoint(read_late) as one, forwarding(one, settings=ALONE) as port, port.connect(seconds=0.3) as client:
        before, sent = resident(port), 0
        with contextlib.suppress(TimeoutError):
            while sent < SIZE:
                sent += client.send(PIECE)
        assert 0 < sent <= UNDER_WAY
        assert resident(port) - before < 4_000_000
        go.set()
        client.settimeout(PATIENCE)
        client.shutdown(socket.SHUT_WR)
        assert eventually(lambda: got == [sent])
