"""An exception that nobody foresaw costs one connection, session or listener of a worker, and is counted."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator

import pytest

from kproxy.model.plans import Endpoint, Family
from kproxy.modes.userspace import channel, tcp_relay, udp_listener, worker
from kproxy.modes.userspace.event_loop import EventLoop
from kproxy.modes.userspace.listeners import Listener, ListenerKey
from kproxy.modes.userspace.messages import Change, Settings
from kproxy.modes.userspace.resources import Descriptors
from kproxy.modes.userspace.worker import OpenListeners, WorkerSlot
from tests.userspace.peers import DNS, WEB, datagrams, echo, endpoint, eventually, exactly, was_reset


class Worker:
    """A worker in a thread of this process."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.listeners = OpenListeners(
            Settings(udp_idle_seconds=0.2), self.loop, Descriptors(1000), WorkerSlot(0, 1, [0])
        )
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, key: ListenerKey, one: Endpoint) -> int:
        (port,) = self.listeners.update(Family.IPV4, [Change(key, Listener(Family.IPV4, (one,)))])
        assert isinstance(port, int)
        self._thread.start()
        return port

    def stop(self) -> None:
        self.loop.stop()
        self._thread.join(5)
        self.listeners.update(Family.IPV4, [Change(WEB, None), Change(DNS, None)])
        self.loop.once()

    def _run(self) -> None:
        self.loop.at(0, self._tick, self)
        self.loop.run()

    def _tick(self) -> None:
        self.loop.at(self.loop.now + 0.02, self._tick, self)

    def abort(self) -> None: ...


@pytest.fixture
def running(caplog: pytest.LogCaptureFixture) -> Iterator[Worker]:
    made = Worker()
    yield made
    made.stop()
    logged = [record.message for record in caplog.get_records("call") if "which is a bug" in record.message]
    assert len(logged) == 1, "it is logged once"


def is_reset(address: tuple[str, int]) -> bool:
    """Whether a connection is reset, at whatever stage."""
    try:
        with socket.create_connection(address, 5) as client:
            client.sendall(b"x")
            client.shutdown(socket.SHUT_WR)
            return was_reset(client)
    except OSError as error:
        return error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)


def dies(times: int, error: Exception) -> object:
    """Stands for a method: raises `error` the first `times`."""
    left = [times]

    def broken(original):  # type: ignore[no-untyped-def]
        def call(*arguments, **options):  # type: ignore[no-untyped-def]
            if left[0] > 0:
                left[0] -= 1
                raise error
            return original(*arguments, **options)

        return call

    return broken


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        pytest.param(channel.Channel, "pump", id="copying"),
        pytest.param(channel.Channel, "fetch", id="the first read"),
        pytest.param(tcp_relay.Relay, "_connect", id="connecting"),
        pytest.param(tcp_relay.Relay, "_finish", id="the end"),
        pytest.param(tcp_relay.Relay, "ready", id="an event"),
    ],
)
def test_one_connection_is_reset_and_the_others_go_on(
    running: Worker, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    with endpoint(echo) as one:
        address = "127.0.0.1", running.start(WEB, one)
        with socket.create_connection(address, 5) as before:
            before.sendall(b"a")
            assert exactly(before, 1) == b"a"
            monkeypatch.setattr(owner, method, dies(1, ZeroDivisionError("nobody foresaw it"))(getattr(owner, method)))  # type: ignore[operator]
            assert is_reset(address) or method == "_finish", "at the end both sides may be done already"
            before.sendall(b"b")
            assert exactly(before, 1) == b"b"
            with socket.create_connection(address, 5) as after:
                after.sendall(b"c")
                assert exactly(after, 1) == b"c"
        assert eventually(lambda: running.listeners.statistics().connections == 0)
        assert running.listeners.statistics().refused == {"internal-error": 1}


@pytest.mark.parametrize("method", ["connect", "forward", "ready", "close"])
def test_one_datagram_is_lost_and_its_client_served_anew(
    running: Worker, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    session = udp_listener.Session
    with datagrams(lambda data: data) as one, socket.socket(type=socket.SOCK_DGRAM) as client:
        address = "127.0.0.1", running.start(DNS, one)
        monkeypatch.setattr(session, method, dies(1, ZeroDivisionError("nobody foresaw it"))(getattr(session, method)))  # type: ignore[operator]
        client.settimeout(0.4)
        client.sendto(b"lost", address)
        if method == "close":
            assert client.recv(10) == b"lost"
            assert eventually(lambda: running.loop.failures == 1)
        else:
            with pytest.raises(TimeoutError):
                client.recv(10)
        client.settimeout(5)
        client.sendto(b"served", address)
        assert client.recv(10) == b"served"
        assert eventually(lambda: running.listeners.statistics().sessions == 0)
        assert running.listeners.statistics().refused == {"internal-error": 1}


def test_one_listener_is_refused_and_the_others_opened(running: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("nobody foresaw it")

    with endpoint(echo) as one:
        port = running.start(WEB, one)
        monkeypatch.setattr(worker, "UdpListener", broken)
        wanted = [Change(DNS, Listener(Family.IPV4, (one,))), Change(WEB, Listener(Family.IPV4, (one,)))]
        assert running.listeners.update(Family.IPV4, wanted) == [
            "unexpected ZeroDivisionError: nobody foresaw it",
            port,
        ]
