"""Several processes share the ports: turns, affinity and counts are those of one."""

from __future__ import annotations

import pytest

from kproxy.model.plans import Endpoint, Family
from kproxy.modes.userspace.listeners import ListenerKey, Reach
from kproxy.modes.userspace.messages import Settings
from tests.userspace.peers import (
    DNS,
    LOOPBACK,
    WEB,
    Port,
    eventually,
    forwarding,
    free_port,
    is_refused,
    leave_no_descriptor,
    named,
    restore_descriptors,
)

pytestmark = pytest.mark.slow  # starts processes

THREE = Settings(workers=3)
CLIENTS = [f"127.0.1.{i}" for i in range(1, 13)]


@pytest.mark.parametrize("family", list(Family))
def test_turns_are_exact_over_all_of_them(family: Family) -> None:
    with named(3, LOOPBACK[family]) as endpoints, forwarding(*endpoints, settings=THREE, family=family) as port:
        assert b"".join(port.fetch() for _ in range(60)) == b"012" * 20


def test_the_turn_is_kept_when_endpoints_change() -> None:
    with named(4) as endpoints, forwarding(*endpoints[:3], settings=THREE) as port:
        assert b"".join(port.fetch() for _ in range(4)) == b"0120"
        port.lead_to(*endpoints)
        assert b"".join(port.fetch() for _ in range(8)) == b"12301230"
        port.lead_to(endpoints[0], endpoints[3])
        assert b"".join(port.fetch() for _ in range(4)) == b"3030"


def test_each_client_keeps_its_endpoint() -> None:
    with named(3) as endpoints, forwarding(*endpoints, settings=THREE, affinity=60) as port:
        first = {client: port.fetch(client) for client in CLIENTS}
        assert len(set(first.values())) == 3
        for _ in range(4):
            assert {client: port.fetch(client) for client in CLIENTS} == first


def test_affinity_that_comes_and_goes() -> None:
    with named(3) as endpoints, forwarding(*endpoints, settings=THREE) as port:
        assert b"".join(port.fetch() for _ in range(3)) == b"012"
        port.lead_to(*endpoints, affinity=60)
        assert len({port.fetch() for _ in range(9)}) == 1
        port.lead_to(*endpoints)
        assert len({port.fetch() for _ in range(9)}) == 3


def test_both_listeners_of_a_port_remember_together() -> None:
    with named(3) as endpoints, forwarding(*endpoints, settings=THREE, affinity=60) as port:
        local = Port(port.forwarder, port.family, ListenerKey(WEB.key, Reach.LOCAL)).lead_to(*endpoints, affinity=60)
        for client in CLIENTS:
            assert local.fetch(client) == port.fetch(client)


def test_counts_are_added_up() -> None:
    with named(1) as endpoints, forwarding(*endpoints, settings=THREE) as port:
        for _ in range(30):
            port.fetch()
        assert eventually(lambda: port.forwarder.statistics().connections == 0)
        counted = port.forwarder.statistics()
        assert (counted.accepted, counted.bytes_out) == (30, 30)
        port.lead_to(free_port())
        assert all(is_refused(port) for _ in range(5))
        assert port.forwarder.statistics().refused == {"no-endpoint": 5}


def test_what_one_of_them_cannot_have_none_has() -> None:
    with named(1) as (one,), forwarding(one, settings=THREE) as port:
        leave_no_descriptor(port.forwarder.pids[1])
        with pytest.raises(AssertionError, match="Too many open files"):
            Port(port.forwarder, port.family, DNS).lead_to(Endpoint("127.0.0.1", 9))
        restore_descriptors(port.forwarder.pids[1])
        assert Port(port.forwarder, port.family, DNS).lead_to(one).number
        assert port.fetch() == b"0"
