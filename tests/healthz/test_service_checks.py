"""Health check node ports of Services: their answers, and when they open and close."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck as Check
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.healthz import service_checks
from kproxy.healthz.listeners import Address, Listener
from kproxy.healthz.service_checks import HealthCheck, check_response
from kproxy.lab.proxies import wait_for
from kproxy.model.plans import Family

LOOPBACK = ["127.0.0.1"]


def is_open(port: int, ip: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((ip, port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize(
    ("endpoints", "healthy", "status"),
    [(3, True, 200), (1, True, 200), (0, True, 503), (3, False, 503), (0, False, 503)],
)
def test_answer(
    node: Any, get: Callable[..., Any], free_port: Callable[[], int], endpoints: int, healthy: bool, status: int
) -> None:
    port = free_port()
    assert node.check({port: HealthCheck("shop", "web", endpoints)}, LOOPBACK)
    if not healthy:
        node.health.queued_update(Family.IPV6)
        node.clock.advance(60)
    answer = get(port, "/any/path")
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Load-Balancing-Endpoint-Weight"] == str(endpoints)
    assert json.loads(answer.body) == {
        "service": {"namespace": "shop", "name": "web"},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": healthy,
    }


def test_the_body_is_compact_json() -> None:
    body = b'{"service":{"namespace":"a","name":"b"},"localEndpoints":2,"serviceProxyHealthy":true}'
    assert check_response(HealthCheck("a", "b", 2), True) == (200, body, {"X-Load-Balancing-Endpoint-Weight": "2"})


def test_a_changed_count_shows_on_a_connection_that_stays(node: Any, free_port: Callable[[], int]) -> None:
    port = free_port()
    node.check({port: HealthCheck("shop", "web", 0)}, LOOPBACK)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 503 ")
        node.check({port: HealthCheck("shop", "web", 1)}, LOOPBACK)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_ports_open_and_close_with_their_services(
    node: Any, get: Callable[..., Any], free_port: Callable[[], int]
) -> None:
    one, two = free_port(), free_port()
    node.check({one: HealthCheck("shop", "one", 1)}, LOOPBACK)
    assert (is_open(one), is_open(two)) == (True, False)
    node.check({one: HealthCheck("shop", "one", 1), two: HealthCheck("shop", "two", 1)}, LOOPBACK)
    assert (is_open(one), is_open(two)) == (True, True)
    node.check({two: HealthCheck("shop", "two", 1)}, LOOPBACK)
    assert (is_open(one), is_open(two)) == (False, True)
    node.check({two: HealthCheck("shop", "other", 1)}, LOOPBACK)
    assert json.loads(get(two, "/").body)["service"]["name"] == "other"
    node.check({}, LOOPBACK)
    assert not is_open(two)


def test_the_same_ports_again_are_no_update(node: Any, free_port: Callable[[], int]) -> None:
    checks = {free_port(): HealthCheck("shop", "web", 1)}
    assert node.check(checks, LOOPBACK)
    assert not node.check(dict(checks), tuple(LOOPBACK))
    assert node.check(checks, None)


def test_without_addresses_it_listens_on_all(node: Any, get: Callable[..., Any], free_port: Callable[[], int]) -> None:
    port = free_port()
    node.check({port: HealthCheck("shop", "web", 1)}, None)
    assert [get(port, "/", ip=ip).status for ip in ("127.0.0.1", "127.0.0.2", "::1")] == [200, 200, 200]


@pytest.mark.parametrize(("ip", "answers", "silent"), [("0.0.0.0", "127.0.0.2", "::1"), ("::", "::1", "127.0.0.1")])
def test_all_addresses_of_one_family_are_none_of_the_other(
    node: Any, get: Callable[..., Any], free_port: Callable[[], int], ip: str, answers: str, silent: str
) -> None:
    port = free_port()
    node.check({port: HealthCheck("shop", "web", 1)}, [ip])
    assert get(port, "/", ip=answers).status == 200
    with pytest.raises(ConnectionRefusedError):
        get(port, "/", ip=silent)


def test_it_listens_on_the_given_addresses_only(
    node: Any, get: Callable[..., Any], free_port: Callable[[], int]
) -> None:
    port = free_port()
    checks = {port: HealthCheck("shop", "web", 1)}
    node.check(checks, ["127.0.0.2", "::1"])
    assert [is_open(port, ip) for ip in ("127.0.0.1", "127.0.0.2", "::1")] == [False, True, True]
    node.check(checks, ["127.0.0.1"])
    assert [is_open(port, ip) for ip in ("127.0.0.1", "127.0.0.2", "::1")] == [True, False, False]
    node.check(checks, None)
    assert [is_open(port, ip) for ip in ("127.0.0.1", "127.0.0.2", "::1")] == [True, True, True]
    node.check(checks, [])
    assert [is_open(port, ip) for ip in ("127.0.0.1", "127.0.0.2", "::1")] == [False, False, False]


def test_a_taken_port_is_reported_once_and_opened_when_free(
    node: Any, get: Callable[..., Any], free_port: Callable[[], int]
) -> None:
    fine = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check = HealthCheck("shop", "taken", 1, frozenset(LOOPBACK))
        node.check({port: check, fine: HealthCheck("shop", "fine", 1)}, LOOPBACK)
        assert get(fine, "/").status == 200
        node.check({port: HealthCheck("shop", "taken", 2), fine: HealthCheck("shop", "fine", 2)}, LOOPBACK)
        assert node.failures == [(port, check, f"cannot listen on 127.0.0.1:{port}: Address already in use")]
    assert wait_for(lambda: is_open(port), 20)
    assert json.loads(get(port, "/").body)["localEndpoints"] == 2
    assert len(node.failures) == 1


def test_a_taken_port_that_changes_hands_is_reported_for_the_new_service(node: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node.check({port: HealthCheck("shop", "old", 1)}, LOOPBACK)
        node.check({port: HealthCheck("shop", "new", 1)}, LOOPBACK)
        assert [check.name for _, check, _ in node.failures] == ["old", "new"]


def test_a_taken_port_that_is_given_up_is_not_opened_later(node: Any, free_port: Callable[[], int]) -> None:
    later = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node.check({port: HealthCheck("shop", "web", 1)}, LOOPBACK)
        with socket.create_server(("127.0.0.1", later)):
            node.check({later: HealthCheck("shop", "web", 1)}, LOOPBACK)
    # Both were refused at about the same time, so once the second is open the first would be as well.
    assert wait_for(lambda: is_open(later), 20)
    assert not is_open(port)


def test_an_address_that_the_node_does_not_have_stops_no_other(node: Any, free_port: Callable[[], int]) -> None:
    port = free_port()
    node.check({port: HealthCheck("shop", "web", 1)}, ["192.0.2.1", "127.0.0.1"])
    assert is_open(port)
    assert [error for _, _, error in node.failures] == [
        f"cannot listen on 192.0.2.1:{port}: Cannot assign requested address"
    ]


def test_an_update_that_fails_unexpectedly_is_retried_until_it_has_worked(
    node: Any, get: Callable[..., Any], free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fine, odd = sorted((free_port(), free_port()))
    broken = True

    class Odd(Listener):
        def __init__(self, address: Address, *others: Any) -> None:
            if broken and address.port == odd:
                raise ZeroDivisionError("a bug")
            super().__init__(address, *others)

    monkeypatch.setattr(service_checks, "Listener", Odd)
    checks = {port: HealthCheck("shop", f"web-{port}", 1, frozenset(LOOPBACK)) for port in (fine, odd)}
    done = node.servers.update_health_checks(checks)
    assert wait_for(lambda: node.containment.counts()[service_checks.STAGE] >= 1, 10)
    assert (get(fine, "/").status, is_open(odd), done.done()) == (200, False, False)
    assert node.servers.update_health_checks(checks) is None  # remembered, and still tried again
    broken = False
    node.clock.advance(60)
    done.result(10)
    assert get(odd, "/").status == 200
    assert node.containment.failing() == []


def test_a_newer_update_replaces_one_that_fails(
    node: Any, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with monkeypatch.context() as context:
        context.setattr(service_checks, "Listener", None)
        older = node.servers.update_health_checks({port: HealthCheck("shop", "web", 1, frozenset(LOOPBACK))})
        assert wait_for(lambda: node.containment.counts()[service_checks.STAGE] >= 1, 10)
    assert node.check({port: HealthCheck("shop", "web", 2)}, LOOPBACK)
    assert is_open(port)
    older.result(10)


def test_a_report_that_raises_costs_no_listener(node: Any, free_port: Callable[[], int]) -> None:
    node.servers._checks._on_failure = None
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port, fine = taken.getsockname()[1], free_port()
        node.check({port: HealthCheck("shop", "web", 1), fine: HealthCheck("shop", "other", 1)}, LOOPBACK)
        assert is_open(fine)
    assert wait_for(lambda: is_open(port), 20)
    assert node.containment.counts()[service_checks.STAGE] == 1


def test_stopped_servers_ignore_updates(node: Any, free_port: Callable[[], int]) -> None:
    port = free_port()
    node.check({port: HealthCheck("shop", "web", 1)}, LOOPBACK)
    node.servers.stop()
    assert not is_open(port)
    assert not node.check({port: HealthCheck("shop", "web", 2)}, LOOPBACK)


@settings(max_examples=15, deadline=None, suppress_health_check=[Check.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.integers(0, 3), st.integers(0, 2), max_size=4), min_size=1, max_size=6))
def test_after_any_updates_the_last_one_holds(
    node: Any, get: Callable[..., Any], free_port: Callable[[], int], updates: list[dict[int, int]]
) -> None:
    ports = [free_port() for _ in range(4)]
    done = [
        node.servers.update_health_checks(
            {ports[i]: HealthCheck("ns", f"s{n}", n, frozenset(LOOPBACK)) for i, n in update.items()}
        )
        for update in updates
    ]
    for future in filter(None, done):
        future.result(10)
    for i, port in enumerate(ports):
        if i in updates[-1]:
            assert json.loads(get(port, "/").body)["localEndpoints"] == updates[-1][i]
        else:
            assert not is_open(port)
