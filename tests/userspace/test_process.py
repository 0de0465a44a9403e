"""The forwarder's process: its listeners and ports, its end, and the daemon's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from kproxy.errors import KernelError
from kproxy.model.plans import Endpoint, Family, PortKey, Protocol
from kproxy.modes.userspace.forwarder import ForwarderProcess
from kproxy.modes.userspace.listener_table import ListenerTable
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Reach, Statistics
from kproxy.modes.userspace.messages import Settings
from tests.userspace.peers import DNS, WEB, Port, endpoint, eventually, forwarding, named, say

pytestmark = pytest.mark.slow  # starts processes

MANY = 2000


@pytest.fixture
def one() -> Iterator[Endpoint]:
    with endpoint(say(b"here")) as made:
        yield made


def listener(*endpoints: Endpoint, family: Family = Family.IPV4) -> Listener:
    return Listener(family, endpoints)


def key(number: int, protocol: Protocol = Protocol.TCP) -> ListenerKey:
    return ListenerKey(PortKey("default", f"service-{number}", "", protocol), Reach.CLUSTER)


# ---- ports


def test_a_listener_keeps_its_port_as_long_as_it_listens(one: Endpoint) -> None:
    with named(1) as (other,), forwarding(one) as port:
        number = port.number
        port.lead_to(other)
        assert (port.number, port.fetch()) == (number, b"0")
        assert Port(port.forwarder, port.family, DNS).lead_to(one).number
        assert port.lead_to(one).fetch() == b"here"
        assert port.number == number


def test_ports_come_from_the_range(one: Endpoint) -> None:
    first = 21_000 + os.getpid() % 5000
    with forwarding(one, settings=Settings(port_range=(first, first + 4))) as port:
        keys = [key(i) for i in range(8)]
        answers = port.forwarder.update(Family.IPV4, {k: listener(one) for k in keys})
        numbers = [answer for answer in answers.values() if isinstance(answer, int)]
        assert len(set(numbers) | {port.number}) == 5
        assert set(numbers) <= set(range(first, first + 5))
        reasons = [answer for answer in answers.values() if isinstance(answer, str)]
        assert reasons == [f"no TCP port is free between {first} and {first + 4}"] * 4
        # Another protocol and another family have the whole range, and a port that is free again is used again.
        assert Port(port.forwarder, Family.IPV4, DNS).lead_to(one).number in range(first, first + 5)
        assert Port(port.forwarder, Family.IPV6, WEB).lead_to(one).number in range(first, first + 5)
        port.close()
        assert Port(port.forwarder, Family.IPV4, keys[-1]).lead_to(one).fetch() == b"here"


def test_a_port_that_somebody_else_has_is_left_out(one: Endpoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        last = min(number + 20, 65_535)
        with forwarding(one, settings=Settings(port_range=(number, last))) as port:
            assert port.number in range(number + 1, last + 1)
            assert port.fetch() == b"here"


def test_a_protocol_that_cannot_be_forwarded(one: Endpoint) -> None:
    with forwarding(one) as port:
        answers = port.forwarder.update(Family.IPV4, {key(1, Protocol.SCTP): listener(one), key(2): listener(one)})
        assert answers[key(1, Protocol.SCTP)] == "SCTP cannot be forwarded in userspace mode"
        assert isinstance(answers[key(2)], int)


# ---- ends


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_process_is_noticed_and_told_to_each_family_once(one: Endpoint, which: int) -> None:
    with forwarding(one, settings=Settings(workers=2)) as port, endpoint(say(b"six"), "::1") as six:
        other = Port(port.forwarder, Family.IPV6, WEB).lead_to(six)
        os.kill(port.forwarder.pids[which], signal.SIGKILL)
        for each, where in ((port, one), (other, six)):
            assert eventually(lambda each=each: not each.alive())  # type: ignore[misc]
            with pytest.raises(KernelError, match="process has ended"):
                each.lead_to(where)
            each.lead_to(where)
            assert each.alive()
        assert (port.fetch(), other.fetch()) == (b"here", b"six")


def test_statistics_notice_the_end_as_well(one: Endpoint) -> None:
    with forwarding(one) as port:
        os.kill(port.forwarder.pids[-1], signal.SIGKILL)
        with pytest.raises(KernelError, match="process has ended"):
            port.forwarder.statistics()
        assert not port.alive()
        with pytest.raises(KernelError):
            port.lead_to(one)
        assert port.lead_to(one).fetch() == b"here"
        assert port.forwarder.statistics().accepted == 1


def test_a_family_without_listeners_does_not_hear_of_the_end(one: Endpoint) -> None:
    with forwarding(one) as port, endpoint(say(b"six"), "::1") as six:
        os.kill(port.forwarder.pids[-1], signal.SIGKILL)
        assert eventually(lambda: not port.alive())
        assert Port(port.forwarder, Family.IPV6, WEB).lead_to(six).fetch() == b"six"
        assert not port.alive()


def test_nothing_runs_before_it_is_needed_or_after_it_was_closed(one: Endpoint) -> None:
    forwarder = ForwarderProcess()
    assert (forwarder.alive(Family.IPV4), forwarder.pids, forwarder.statistics()) == (True, (), Statistics())
    port = Port(forwarder, Family.IPV4, WEB).lead_to(one)
    pids = forwarder.pids
    assert pids
    forwarder.close()
    forwarder.close()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert not forwarder.alive(Family.IPV4)
    for call in (lambda: port.lead_to(one), forwarder.statistics):
        with pytest.raises(KernelError):
            call()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_reach_the_whole_group_do_not_end_it(one: Endpoint, number: signal.Signals) -> None:
    with forwarding(one) as port:
        os.kill(port.forwarder.pids[-1], number)
        assert port.fetch() == b"here"
        assert port.alive()


DAEMON = """
import sys, time
from kproxy.model.plans import Endpoint, Family, PortKey, Protocol
from kproxy.modes.userspace.forwarder import ForwarderProcess
from kproxy.modes.userspace.listener_table import ListenerTable
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Reach
forwarder = ForwarderProcess()
key = ListenerKey(PortKey("default", "web", "", Protocol.TCP), Reach.CLUSTER)
forwarder.update(Family.IPV4, {key: Listener(Family.IPV4, (Endpoint("127.0.0.1", 9),))})
print(*forwarder.pids, flush=True)
time.sleep(60)
"""


def test_it_ends_with_a_daemon_that_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        pids = [int(pid) for pid in daemon.stdout.readline().split()]
        assert pids
        assert not any(ended(pid) for pid in pids)
        daemon.kill()
        assert eventually(lambda: all(ended(pid) for pid in pids))


def ended(pid: int) -> bool:
    """Whether the process has ended, whoever may still have to collect it."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# ---- many listeners


def test_updates_of_both_families_at_once(one: Endpoint) -> None:
    answers: dict[Family, int] = {}

    def update(family: Family) -> None:
        table = ListenerTable(family, forwarder)
        changes = {key(i): listener(Endpoint("127.0.0.1", 9), family=family) for i in range(300)}
        assert table.open(changes) == {}
        answers[family] = len({table.port(one) for one in changes} - {0})

    forwarder = ForwarderProcess()
    try:
        threads = [threading.Thread(target=update, args=(family,)) for family in Family]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert answers == {Family.IPV4: 300, Family.IPV6: 300}
    finally:
        forwarder.close()


def test_no_connection_fails_while_thousands_of_listeners_change(one: Endpoint) -> None:
    failures: list[OSError] = []
    served = [0]
    over = threading.Event()

    def fetch_on(port: Port) -> None:
        while not over.is_set():
            try:
                served[0] += port.fetch() == b"here"
            except OSError as error:
                failures.append(error)

    with forwarding(one) as port:
        thread = threading.Thread(target=fetch_on, args=(port,))
        thread.start()
        try:
            keys = [key(i) for i in range(MANY)]
            table = ListenerTable(Family.IPV4, port.forwarder)
            assert table.open(dict.fromkeys(keys, listener(one))) == {}
            opened = {table.port(each) for each in keys} - {0}
            before = served[0]
            assert table.open(dict.fromkeys(keys, listener(one, Endpoint("127.0.0.1", 9)))) == {}
            during = served[0] - before
            table.close(keys)
        finally:
            over.set()
            thread.join(30)
        assert len(opened) == MANY
        assert failures == []
        assert during > 0
        assert port.forwarder.statistics().refused == {}
