"""Whatever goes wrong with the API server, the source ends up knowing the truth."""

from __future__ import annotations

import logging
from typing import Any, Literal

import pytest

from kproxy.model.events import Listed
from kproxy.model.objects import Kind
from kproxy.sources.watching import Timing
from tests.fakes.apifaults import Cut, CutBody, EndAtOnce, ErrorEvent, Fault, Garbled, Hang, Refuse, Silent
from tests.fakes.apihandler import Rules
from tests.fakes.apiserver import ApiServer
from tests.sources.cluster import agrees, endpoint_slice, eventually, fill, service
from tests.sources.conftest import FAST, Follow


def _change(server: ApiServer) -> None:
    """Some of everything: added, changed, deleted."""
    server.apply(service("new"))
    server.apply(service("web", ip="10.96.0.77"))
    server.apply(endpoint_slice("web", "10.244.0.9"))
    server.delete("Service", "default", "api")


def _of_services(caplog: pytest.LogCaptureFixture) -> list[tuple[logging.LogRecord, dict[str, Any]]]:
    """The log lines about Services, and their fields."""
    lines = [(record, getattr(record, "fields", {})) for record in caplog.records]
    return [(record, fields) for record, fields in lines if fields.get("kind") == "Service"]


@pytest.mark.parametrize("fault", [Refuse(500), Refuse(503), Refuse(403), Refuse(410), Refuse(504), Hang(), CutBody()])
@pytest.mark.parametrize("times", [1, 3])
def test_a_list_that_fails_is_asked_for_again(server: ApiServer, follow: Follow, fault: Fault, times: int) -> None:
    for kind in ("Service", "EndpointSlice", "Node"):
        server.inject(fault, verb="list", kind=kind, times=times)
    mirror, _ = follow(server, read_timeout=0.4)
    assert mirror.wait(lambda m: agrees(server, m))
    assert server.faults_left == 0
    assert server.served["list", "Service"] == times + 1


WATCH_FAULTS = [
    Refuse(500),
    Refuse(503),
    Refuse(410),
    Refuse(404),
    Hang(),
    EndAtOnce(),
    ErrorEvent(410),
    ErrorEvent(500),
    Cut(0),
    Cut(1),
    Garbled(0),
    Garbled(1),
]


@pytest.mark.parametrize("fault", WATCH_FAULTS, ids=repr)
@pytest.mark.parametrize("times", [1, 4])
def test_a_watch_that_breaks_misses_nothing(server: ApiServer, follow: Follow, fault: Fault, times: int) -> None:
    for kind in ("Service", "EndpointSlice"):
        server.inject(fault, verb="watch", kind=kind, times=times)
    mirror, _ = follow(server, read_timeout=0.4)
    assert mirror.wait(lambda m: m.complete)
    for _ in range(times + 1):
        _change(server)
        # Broken streams only break when something is written to them, so each gets its share.
        assert mirror.wait(lambda m: agrees(server, m))
    assert server.faults_left == 0


@pytest.mark.parametrize("fault", [Cut(0), Cut(1), Garbled(0), EndAtOnce(), Refuse(500), Hang()], ids=repr)
def test_a_broken_watch_is_taken_up_without_a_new_list(server: ApiServer, follow: Follow, fault: Fault) -> None:
    server.inject(fault, verb="watch", kind="Service")
    mirror, _ = follow(server, read_timeout=0.4)
    assert mirror.wait(lambda m: m.complete)
    _change(server)
    assert mirror.wait(lambda m: agrees(server, m))
    assert server.faults_left == 0
    assert server.served["list", "Service"] == 1


@pytest.mark.parametrize("fault", [Refuse(410), ErrorEvent(410)], ids=repr)
def test_a_forgotten_version_leads_to_a_new_list(server: ApiServer, follow: Follow, fault: Fault) -> None:
    server.inject(fault, verb="watch", kind="Service")
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: m.lists(Kind.SERVICE) == 2)
    again = [r for r in server.requests if (r.verb, r.kind) == ("list", "Service")][-1]
    assert int(again.query["resourceVersion"]) > 0, "a list may not be older than what is known"
    assert again.query["resourceVersionMatch"] == "NotOlderThan"
    _change(server)
    assert mirror.wait(lambda m: agrees(server, m))
    assert server.served["list", "EndpointSlice"] == 1


@pytest.mark.parametrize("gone_as", ["status", "event"])
def test_changes_during_an_outage_and_a_compaction_become_the_difference(
    follow: Follow, gone_as: Literal["status", "event"]
) -> None:
    with ApiServer(rules=Rules(gone_as=gone_as), bookmark_seconds=3600) as server:
        fill(server)
        mirror, _ = follow(server)
        assert mirror.wait(lambda m: agrees(server, m))
        server.go_down()
        _change(server)
        server.compact()
        server.come_up()
        assert mirror.wait(lambda m: agrees(server, m))
        assert mirror.lists(Kind.SERVICE) == 2
        last = [e for e in mirror.events if isinstance(e, Listed) and e.kind is Kind.SERVICE][-1]
        assert {item.metadata.name for item in last.objects} == {"web", "new"}


def test_a_server_that_comes_back_is_taken_up_where_it_left(server: ApiServer, follow: Follow) -> None:
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: agrees(server, m))
    assert eventually(lambda: all(server.served["watch", kind] for kind in Kind))
    server.go_down()
    _change(server)
    server.come_up()
    assert mirror.wait(lambda m: agrees(server, m))
    assert server.served["list", "Service"] == 1


def test_a_restored_etcd_whose_versions_start_lower_is_listed_anew(server: ApiServer, follow: Follow) -> None:
    for number in range(50):
        server.apply(service(f"s{number}"))
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: agrees(server, m))
    server.go_down()
    server.store.rewind(20)
    server.delete("Service", "default", "web")
    server.come_up()
    assert mirror.wait(lambda m: "default/web" not in m.objects(Kind.SERVICE))
    server.apply(service("after"))
    assert mirror.wait(lambda m: agrees(server, m))


def test_a_stream_that_stays_silent_is_given_up_once_bookmarks_are_known(server: ApiServer, follow: Follow) -> None:
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: agrees(server, m))
    assert eventually(lambda: server.served["watch", "Service"] == 1)
    for _ in range(3):
        count = server.store.version
        server.apply(service("web"))
        server.bookmark()
        assert mirror.wait(lambda m, n=count: int(m.versions(Kind.SERVICE)["default/web"]) > n)  # type: ignore[misc]
    server.inject(Silent(), verb="watch", kind="Service")
    server.break_connections()
    assert eventually(lambda: server.faults_left == 0)
    _change(server)
    assert mirror.wait(lambda m: agrees(server, m))
    assert server.served["list", "Service"] == 1


def test_a_server_that_asks_for_patience_gets_it(server: ApiServer, follow: Follow) -> None:
    server.inject(Refuse(429, retry_after=1), verb="list", kind="Node")
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: m.lists(Kind.SERVICE) == 1 and m.lists(Kind.ENDPOINT_SLICE) == 1)
    assert not mirror.lists(Kind.NODE), "asked again at once"
    assert mirror.wait(lambda m: agrees(server, m))


def test_watches_that_keep_ending_at_once_are_asked_for_ever_less_often(
    server: ApiServer, follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    server.inject(EndAtOnce(), verb="watch", kind="Service", times=1000)
    caplog.set_level(logging.INFO, logger="kproxy.source")
    mirror, _ = follow(server, timing=Timing(watch=(20.0, 30.0), backoff=0.05, backoff_cap=60.0))
    assert eventually(lambda: server.served["watch", "Service"] >= 4)
    assert {str(fields["err"]) for _, fields in _of_services(caplog)} == {"the watch ended at once"}
    assert server.served["watch", "Service"] < 100
    assert mirror.complete


def test_a_server_whose_every_watch_is_refused_as_too_old_is_not_flooded_with_lists(
    server: ApiServer, follow: Follow
) -> None:
    server.inject(ErrorEvent(410), verb="watch", kind="Service", times=1000)
    mirror, _ = follow(server, timing=Timing(backoff=0.05, backoff_cap=60.0))
    assert mirror.wait(lambda m: m.lists(Kind.SERVICE) >= 4)
    assert server.served["list", "Service"] < 100


def test_an_outage_is_one_line_in_the_log_and_so_is_its_end(
    server: ApiServer, follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO - 4, logger="kproxy.source")
    mirror, _ = follow(server, timing=FAST)
    assert mirror.wait(lambda m: agrees(server, m))
    assert eventually(lambda: server.served["watch", "Service"] > 0)
    server.go_down()
    assert eventually(lambda: any(fields["attempt"] >= 6 for _, fields in _of_services(caplog)))
    server.come_up()
    server.apply(service("new"))
    assert mirror.wait(lambda m: agrees(server, m))
    assert eventually(
        lambda: any("listed and watched again" in record.getMessage() for record, _ in _of_services(caplog))
    )
    lines = [(record, fields) for record, fields in _of_services(caplog) if record.levelno >= logging.INFO]
    assert [record.levelname for record, _ in lines] == ["WARNING", "INFO"]
    assert "Connection refused" in str(lines[0][1]["err"])
    assert lines[1][1]["failures"] >= 6


def test_a_single_cut_of_a_watch_is_not_worth_a_line(
    server: ApiServer, follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="kproxy.source")
    server.inject(Cut(0), verb="watch", kind="Service")
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: m.complete)
    _change(server)
    assert mirror.wait(lambda m: agrees(server, m))
    assert server.faults_left == 0
    assert not _of_services(caplog)


def test_a_peer_that_vanished_is_noticed_by_its_socket(server: ApiServer, follow: Follow) -> None:
    """The options that end a connection whose other end is silently gone stand on the real socket."""
    import socket

    from kproxy.sources.client import ApiClient
    from kproxy.sources.credentials import ClientSettings

    client = ApiClient(ClientSettings(master=server.url))
    query = {"watch": "true", "resourceVersion": str(server.store.version), "timeoutSeconds": "5"}
    with client.stream("/api/v1/services", query, 7.0) as stream:
        sock = stream._response.connection.sock  # type: ignore[union-attr]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000
        idle = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        probes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) * sock.getsockopt(
            socket.IPPROTO_TCP, socket.TCP_KEEPCNT
        )
        assert idle + probes <= 60
        assert sock.gettimeout() == 7.0
    client.close()


SHORT = Timing(watch=(0.8, 1.0), slack=0.3, backoff=0.01, backoff_cap=0.2, settled=0.3)


@pytest.mark.parametrize("times", [1, 2])
def test_a_watch_that_outlasts_its_own_length_is_given_up(server: ApiServer, follow: Follow, times: int) -> None:
    for kind in ("Service", "EndpointSlice"):
        server.inject(Silent(), verb="watch", kind=kind, times=times)
    mirror, _ = follow(server, timing=SHORT)
    assert mirror.wait(lambda m: m.complete)
    assert eventually(lambda: server.served["watch", "Service"] == server.served["watch", "EndpointSlice"] == 1)
    server.apply(service("new"))
    server.apply(endpoint_slice("web", "10.244.0.9"))
    server.delete("Service", "default", "api")
    assert mirror.wait(lambda m: agrees(server, m))
    assert server.faults_left == 0
    assert server.served["watch", "Service"] == times + 1
    assert server.served["list", "Service"] == 1, "what was missed is had by a watch from the same version"
