"""The forwarder in memory keeps the promises of the real one, as far as they can be seen without traffic."""

from __future__ import annotations

import pytest

from kproxy.errors import KernelError
from kproxy.model.plans import Endpoint, Family, PortKey, Protocol
from kproxy.modes.userspace.listeners import Forwarder, Listener, ListenerKey, Reach
from tests.fakes.forwarder import FakeForwarder

WEB = ListenerKey(PortKey("default", "web", "", Protocol.TCP), Reach.CLUSTER)
WEB_LOCAL = WEB._replace(reach=Reach.LOCAL)


def listener(*ports: int, family: Family = Family.IPV4) -> Listener:
    return Listener(family, tuple(Endpoint("10.0.0.1", port) for port in ports or (80,)))


def port_of(forwarder: Forwarder, key: ListenerKey, wanted: Listener) -> int | str:
    return forwarder.update(wanted.family, {key: wanted})[key]


def test_each_listener_has_a_port_of_its_own_and_keeps_it() -> None:
    fake = FakeForwarder()
    answer = fake.update(Family.IPV4, {WEB: listener(), WEB_LOCAL: listener()})
    assert answer[WEB] != answer[WEB_LOCAL]
    assert port_of(fake, WEB, listener(81)) == answer[WEB]
    assert fake.listeners[Family.IPV4, WEB] == listener(81)
    assert fake.ports == {(Family.IPV4, key): port for key, port in answer.items()}


def test_a_refused_listener_does_not_stop_the_others() -> None:
    fake = FakeForwarder()
    fake.refuse(Family.IPV4, WEB, "no port is free between 6000 and 6001")
    answer = fake.update(Family.IPV4, {WEB: listener(), WEB_LOCAL: listener()})
    assert answer[WEB] == "no port is free between 6000 and 6001"
    assert list(fake.listeners) == [(Family.IPV4, WEB_LOCAL)]
    fake.permit(Family.IPV4, WEB)
    assert isinstance(port_of(fake, WEB, listener()), int)


def test_death_is_told_to_each_family_once() -> None:
    fake = FakeForwarder()
    assert fake.alive(Family.IPV4)
    port_of(fake, WEB, listener())
    port_of(fake, WEB, listener(family=Family.IPV6))
    fake.die()
    assert (fake.alive(Family.IPV4), fake.listeners) == (False, {})
    with pytest.raises(KernelError):
        fake.statistics()
    for family in Family:
        assert not fake.alive(family)
        with pytest.raises(KernelError, match="lost"):
            port_of(fake, WEB, listener(family=family))
        assert isinstance(port_of(fake, WEB, listener(family=family)), int)
        assert fake.alive(family)


def test_a_family_that_had_no_listener_hears_nothing_of_a_death() -> None:
    fake = FakeForwarder()
    port_of(fake, WEB, listener())
    fake.die()
    assert isinstance(port_of(fake, WEB, listener(family=Family.IPV6)), int)
    assert not fake.alive(Family.IPV4)


def test_nothing_is_left_once_it_was_closed() -> None:
    fake = FakeForwarder()
    port_of(fake, WEB, listener())
    fake.close()
    assert (fake.alive(Family.IPV4), fake.ports) == (False, {})
    with pytest.raises(KernelError, match="closed"):
        port_of(fake, WEB, listener())
