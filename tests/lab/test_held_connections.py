"""Connections that clients keep: whether they go on, how they fail, and how they end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from kproxy.lab.clusters import Cluster
from kproxy.lab.probes import Answered, Held, Nothing
from kproxy.model.plans import Family

WHO = b'{"pod": "a", "source": "127.0.0.1", "source_port": 1, "reached": "127.0.0.1", "reached_port": 2}\n'


@pytest.fixture
def ends() -> Iterator[tuple[Held, socket.socket]]:
    """A client's connection, and the other end of it after the introduction."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def introduce() -> None:
            accepted.append(listener.accept()[0])
            accepted[0].sendall(WHO)

        server = threading.Thread(target=introduce)
        server.start()
        with closing(Held(*listener.getsockname())) as held:
            server.join()
            with accepted[0] as peer:
                peer.settimeout(10)
                yield held, peer


def test_it_lives_while_its_line_comes_back(ends: tuple[Held, socket.socket]) -> None:
    held, peer = ends
    peer.sendall(b"still there?\n")
    assert isinstance(held.first, Answered)
    assert held.failure() is None
    peer.sendall(b"still there?\n")
    assert held.alive()


def test_silence_is_told_from_an_end(ends: tuple[Held, socket.socket]) -> None:
    held, peer = ends
    assert held.failure(timeout=0.05) is Nothing.TIMED_OUT
    peer.close()
    assert held.failure() is Nothing.CUT
    assert not held.alive()


def test_a_reset_is_one(ends: tuple[Held, socket.socket]) -> None:
    held, peer = ends
    held.reset()
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_all_connections_of_a_labs_servers_can_be_reset_at_once(cluster: Cluster) -> None:
    def connect() -> Held:
        return cluster.spaces["client"].call(Held, cluster.pods["one"].ip(Family.IPV4), 8080)

    with closing(connect()) as one, closing(connect()) as other:
        assert one.alive()
        cluster.servers.hang_up()
        assert [one.failure(), other.failure()] == [Nothing.CUT] * 2
        with closing(connect()) as later:
            assert later.alive()
