"""The healthz and metrics servers, over real HTTP."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPResponse
from typing import Any

import pytest

from kproxy.errors import InvalidConfig, KernelError
from kproxy.healthz import listeners
from kproxy.healthz.listeners import MAX_CONNECTIONS, Address, parse_address
from kproxy.lab.proxies import wait_for
from kproxy.model.node_info import AUTOSCALER_TAINT, parse
from kproxy.model.objects import Metadata, Node, NodeSpec, Taint
from kproxy.model.plans import Family
from kproxy.status.servers import ServerSettings

DOOMED = parse(Node(Metadata("node1"), NodeSpec(taints=[Taint(AUTOSCALER_TAINT)])))


@pytest.mark.parametrize(
    ("path", "late", "doomed", "status"),
    [
        ("/healthz", False, False, 200),
        ("/healthz", True, False, 503),
        ("/healthz", False, True, 503),
        ("/livez", False, False, 200),
        ("/livez", True, False, 503),
        ("/livez", False, True, 200),
    ],
)
def test_health_pages(node: Any, path: str, late: bool, doomed: bool, status: int) -> None:
    node.health.updated(Family.IPV4)
    if late:
        node.health.queued_update(Family.IPV4)
        node.clock.advance(60)
    if doomed:
        node.health.node_changed(DOOMED)
    answer = node.healthz(path)
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    body = json.loads(answer.body)
    assert body["healthy"] is not late
    assert body["status"] == {"IPv4": {"lastUpdated": "2026-01-02T03:04:05Z", "healthy": not late}}
    assert body.get("nodeEligible") == (not doomed if path == "/healthz" else None)
    metric = f"kubeproxy_proxy_{path[1:]}_total"
    assert f'{metric}{{code="{status}"}} 1.0' in node.metrics.exposition().decode()


def test_metrics_page_is_prometheus_text(node: Any) -> None:
    node.metrics.service_changes(3, 0)
    answer = node.status("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"\nkubeproxy_sync_proxy_rules_service_changes_total 6.0\n" in answer.body


@pytest.mark.parametrize(("path", "text"), [("/healthz", b"ok"), ("/proxyMode", b"iptables")])
def test_plain_pages(node: Any, path: str, text: bytes) -> None:
    answer = node.status(path)
    assert (answer.status, answer.body) == (200, text)
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_configz_has_the_configuration_under_its_group(node: Any) -> None:
    answer = node.status("/configz")
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(answer.body) == {
        "kubeproxy.config.k8s.io": {"mode": "iptables", "iptables": {"masqueradeBit": 14}}
    }


def test_statusz_has_version_and_uptime(node: Any) -> None:
    node.clock.advance(3 * 3600 + 4 * 60 + 5)
    text = node.status("/statusz").body.decode()
    assert text.startswith("\nkube-proxy statusz\nWarning: ")
    assert "\nStarted: Fri Jan  2 03:04:05 UTC 2026\n" in text
    assert "\nUp: 3 hr 04 min 05 sec\n" in text
    assert "\nBinary version: 1.2.3\nEmulation version: 1.36\n" in text
    assert "\nPaths: /configz /flagz /healthz /metrics /metrics/slis /proxyMode /status.json /statusz\n" in text


def test_flagz_lists_the_flags(node: Any) -> None:
    text = node.status("/flagz").body.decode()
    assert text.startswith("\nkube-proxy flagz\nWarning: ")
    assert text.endswith("\nv=2\n")


@pytest.mark.parametrize(
    ("server", "path"), [("healthz", "/"), ("healthz", "/metrics"), ("status", "/livez"), ("status", "/metrics/x")]
)
def test_other_paths_are_not_found(node: Any, server: str, path: str) -> None:
    assert getattr(node, server)(path).status == 404


@pytest.mark.parametrize(("method", "length"), [("HEAD", 0), ("POST", 2), ("OPTIONS", 2)])
def test_the_method_does_not_matter(node: Any, get: Callable[..., Any], method: str, length: int) -> None:
    answer = get(node.servers.metrics_port, "/healthz", method=method)
    assert (answer.status, len(answer.body)) == (200, length)


def test_an_empty_address_means_no_server(start: Callable[[ServerSettings], Any]) -> None:
    node = start(ServerSettings(healthz="", metrics=""))
    assert node.servers.healthz_port is None
    assert node.servers.metrics_port is None


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0", ":0"])
def test_an_unspecified_address_serves_both_families(
    start: Callable[[ServerSettings], Any], get: Callable[..., Any], bind: str
) -> None:
    port = start(ServerSettings(healthz=bind, metrics="")).servers.healthz_port
    assert get(port, "/livez").status == 200
    assert get(port, "/livez", ip="::1").status == 200


def test_a_taken_port_is_served_once_it_is_free(
    start: Callable[[ServerSettings], Any], get: Callable[..., Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = start(ServerSettings(healthz=f"127.0.0.1:{port}", metrics="127.0.0.1:0"))
        assert node.servers.healthz_port is None
        assert node.status("/healthz").status == 200
    assert wait_for(lambda: node.servers.healthz_port is not None, 20)
    assert get(port, "/livez").status == 200


def test_a_taken_port_ends_the_start_when_it_must_not_fail(start: Callable[[ServerSettings], Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(KernelError, match=f"cannot listen on {address}: Address already in use"):
            start(ServerSettings(healthz="127.0.0.1:0", metrics=address, hard_fail=True))


@pytest.mark.parametrize("bind", ["10256", "localhost:10256", "1.2.3.4:70000", "1.2.3.4:", "1.2.3.4:-1", "[::1:80"])
def test_an_impossible_address_is_named(start: Callable[[ServerSettings], Any], bind: str) -> None:
    with pytest.raises(InvalidConfig, match="metricsBindAddress: "):
        start(ServerSettings(healthz="", metrics=bind))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        ("[FD00::0:1]:80", Address("fd00::1", 80)),
        ("010.0.0.1:80", Address("10.0.0.1", 80)),
        ("[::ffff:10.0.0.1]:80", Address("10.0.0.1", 80)),
        ("0.0.0.0:80", Address("", 80)),
        ("[::]:80", Address("", 80)),
        (":80", Address("", 80)),
    ],
)
def test_addresses_are_read_as_go_does(text: str, address: Address) -> None:
    assert parse_address(text) == address


def test_silent_clients_do_not_keep_others_out(node: Any) -> None:
    port = node.servers.healthz_port
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(2 * MAX_CONNECTIONS)]
    try:
        assert node.healthz("/livez").status == 200
        silent[0].settimeout(10)
        with suppress(ConnectionResetError):
            assert silent[0].recv(1) == b""
    finally:
        for sock in silent:
            sock.close()


def test_a_client_with_requests_stays_connected_while_silent_ones_are_cut(node: Any) -> None:
    port = node.servers.healthz_port
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as talker:
        talker.settimeout(10)
        silent = []
        try:
            for _ in range(4):
                silent += [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_CONNECTIONS - 1)]
                talker.sendall(request)
                response = HTTPResponse(talker)
                response.begin()
                assert (response.status, response.read() != b"") == (200, True)
        finally:
            for sock in silent:
                sock.close()


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100000, b"GET /li"],
    ids=["tls", "no path", "endless headers", "cut off"],
)
def test_garbage_is_ignored(node: Any, caplog: pytest.LogCaptureFixture, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", node.servers.healthz_port)) as client, suppress(ConnectionError):
        client.sendall(sent)
    assert node.healthz("/livez").status == 200
    assert not caplog.records


def test_stopping_cuts_open_connections_and_frees_the_port(node: Any) -> None:
    port = node.servers.healthz_port
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(4096)
        node.servers.stop()
        client.settimeout(10)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
    node.servers.stop()


def test_slis_count_the_health_checks_of_the_metrics_address(node: Any) -> None:
    for _ in range(3):
        assert node.status("/healthz").status == 200
    answer = node.status("/metrics/slis")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b'\nkubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 3.0\n' in answer.body


# ---------------------------------------------------------------- what nobody foresaw


@pytest.mark.parametrize(
    ("broken", "server", "path", "stage"),
    [
        ("kproxy.status.store.StatusStore.status", "status", "/", "status-page"),
        ("kproxy.status.store.StatusStore.status", "status", "/status.json", "status-page"),
        ("kproxy.status.zpages.statusz", "status", "/statusz", "status-page"),
        ("kproxy.metrics.registry.Metrics.exposition", "status", "/metrics", "metrics"),
        ("kproxy.healthz.proxier_health.ProxierHealth.health", "healthz", "/livez", "healthz"),
    ],
)
def test_a_page_that_raises_answers_500_with_one_line_and_fails_alone(
    node: Any, monkeypatch: pytest.MonkeyPatch, broken: str, server: str, path: str, stage: str
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a page with a bug")

    with monkeypatch.context() as context:
        context.setattr(broken, fail)
        for _ in range(2):
            answer = getattr(node, server)(path)
            assert (answer.status, answer.body) == (500, b"internal error, see kproxy's log\n")
        assert node.containment.counts()[stage] == 2
        assert node.status("/healthz").status == 200
        assert node.healthz("/healthz").status == (500 if server == "healthz" else 200)
    assert [getattr(node, server)(each).status for each in (path, "/healthz")] == [200, 200]
    assert node.containment.failing() == []


def test_a_listener_that_fails_unexpectedly_is_opened_again(
    start: Callable[[ServerSettings], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([ZeroDivisionError("a bug")] * 2)
    real = listeners.open_socket

    def odd(address: Address) -> socket.socket:
        if error := next(failures, None):
            raise error
        return real(address)

    monkeypatch.setattr(listeners, "open_socket", odd)
    node = start(ServerSettings(healthz="127.0.0.1:0", metrics="127.0.0.1:0"))
    assert wait_for(lambda: node.servers.healthz_port is not None and node.servers.metrics_port is not None, 20)
    assert node.healthz("/livez").status == 200
    assert node.containment.counts()["http"] == 2


def test_the_loop_outlives_what_its_callbacks_raise(node: Any) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    node.servers._thread._loop.call_soon_threadsafe(fail)
    assert wait_for(lambda: node.containment.counts()["http"] == 1, 10)
    assert node.healthz("/livez").status == 200
