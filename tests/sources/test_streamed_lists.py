"""Lists that the API server streams as the beginning of a watch, and what is done where it does not, or fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import InvalidObject
from kproxy.model.events import Changed, Invalid, Listed, ListPage
from kproxy.model.objects import Kind, Metadata, Service
from kproxy.sources.listing import ListAssembly
from tests.fakes.apifaults import Cut, EndAtOnce, ErrorEvent, Fault, Garbled, Hang, Refuse, Silent, Unended
from tests.fakes.apihandler import Rules
from tests.fakes.apiserver import ApiServer
from tests.fakes.sinks import Mirror
from tests.sources.cluster import agrees, endpoint_slice, eventually, service
from tests.sources.conftest import FAST, Follow


def asked(server: ApiServer, kind: str = "Service") -> list[str]:
    """What was asked of the server about `kind`: the verbs."""
    return [request.verb for request in list(server.requests) if request.kind == kind]


def change(server: ApiServer) -> None:
    server.apply(service("new"))
    server.apply(endpoint_slice("web", "10.244.0.5", "10.244.0.6"))
    server.delete("Service", "default", "api")


def test_one_request_is_the_list_and_the_watch(server: ApiServer, follow: Follow) -> None:
    mirror, _ = follow(server, streamed=True)
    assert mirror.wait(lambda m: agrees(server, m))
    change(server)
    assert mirror.wait(lambda m: agrees(server, m))
    assert (asked(server), asked(server, "EndpointSlice"), asked(server, "Node")) == (["stream"],) * 3
    assert asked(server, "ServiceCIDR")[0] == "list", "a list tells best which version of it there is"
    first = next(request for request in server.requests if request.kind == "Service").query
    assert (first["resourceVersion"], first["resourceVersionMatch"]) == ("0", "NotOlderThan")
    assert [mirror.lists(kind) for kind in Kind] == [1, 1, 1, 1]


def test_a_stream_that_breaks_later_is_taken_up_and_a_forgotten_version_streamed_anew(
    server: ApiServer, follow: Follow
) -> None:
    mirror, _ = follow(server, streamed=True)
    assert mirror.wait(lambda m: agrees(server, m))
    server.break_connections()
    assert eventually(lambda: asked(server) == ["stream", "watch"])
    change(server)
    assert mirror.wait(lambda m: agrees(server, m))
    server.go_down()
    server.apply(service("later"))
    server.compact()
    server.come_up()
    assert mirror.wait(lambda m: agrees(server, m))
    assert [word for word in asked(server) if word != "watch"] == ["stream", "stream"]
    again = [request.query for request in server.requests if request.verb == "stream"][-1]
    assert int(again["resourceVersion"]) > 0, "a list may not be older than what is known"


# The first request meets it; whether the next list is read in pages, and asks for the latest version.
FAULTS: list[tuple[Fault, bool]] = [
    *[(Refuse(status), False) for status in (500, 503, 403, 404, 429)],
    *[(Refuse(status), True) for status in (410, 504)],
    *[(ErrorEvent(500), False), (ErrorEvent(410), True), (ErrorEvent(504), True)],
    *[(fault, False) for fault in (Hang(), Silent(), EndAtOnce(), Unended(), Cut(0), Cut(1), Garbled(0), Garbled(1))],
]


@pytest.mark.parametrize(("fault", "latest"), FAULTS, ids=lambda value: repr(value))
def test_a_stream_that_fails_is_followed_by_a_list_in_pages(
    server: ApiServer, follow: Follow, fault: Fault, latest: bool
) -> None:
    for kind in ("Service", "EndpointSlice"):
        server.inject(fault, verb="stream", kind=kind)
    mirror, _ = follow(server, streamed=True, read_timeout=0.4)
    assert mirror.wait(lambda m: agrees(server, m))
    assert asked(server)[:2] == ["stream", "list"]
    second = [request.query for request in server.requests if request.kind == "Service"][1]
    assert (second.get("resourceVersion", "") == "") is latest
    assert eventually(lambda: asked(server) == ["stream", "list", "watch"])
    change(server)
    assert mirror.wait(lambda m: agrees(server, m))
    server.inject(ErrorEvent(410), verb="watch", kind="Service")
    server.break_connections()
    assert eventually(lambda: asked(server).count("stream") == 2), "the next list is streamed again"


def test_a_server_that_streams_no_lists_is_asked_for_pages_without_delay(
    server: ApiServer, follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="kproxy.source")
    server.rules = Rules(watch_lists=False)
    mirror, _ = follow(server, timing=replace(FAST, backoff=30.0, backoff_cap=60.0, settled=30.0), streamed=True)
    assert mirror.wait(lambda m: agrees(server, m), 10), "it waited as after a failure"
    assert eventually(lambda: asked(server) == ["stream", "list", "watch"])
    said = [record.getMessage() for record in caplog.records if getattr(record, "fields", {}).get("kind") == "Service"]
    assert said == ["The server does not stream lists; they are read page by page"]


def test_a_refusal_of_streams_is_remembered_for_a_while(server: ApiServer, follow: Follow) -> None:
    server.rules = Rules(watch_lists=False)
    mirror, _ = follow(server, timing=replace(FAST, absent=5.0), streamed=True)

    def list_again(count: int) -> None:
        server.inject(ErrorEvent(410), verb="watch", kind="Service")
        server.break_connections()
        assert mirror.wait(lambda m: m.lists(Kind.SERVICE) >= count)

    assert mirror.wait(lambda m: agrees(server, m))
    assert eventually(lambda: asked(server)[-1] == "watch")
    list_again(2)
    assert asked(server).count("stream") == 1
    server.rules = Rules()

    def streamed_again() -> bool:
        list_again(mirror.lists(Kind.SERVICE) + 1)
        return asked(server).count("stream") > 1

    assert eventually(streamed_again)
    change(server)
    assert mirror.wait(lambda m: agrees(server, m))


@pytest.mark.parametrize("cut", [0, 600, 1100])
def test_a_long_list_is_delivered_as_it_comes_and_what_goes_while_it_breaks_off_is_gone(
    server: ApiServer, follow: Follow, cut: int
) -> None:
    for number in range(1200):
        server.apply(service(f"s{number:04}"))
    if cut:
        server.inject(Cut(after=cut), verb="stream", kind="Service")
    mirror = Mirror()
    gone = [f"s{number:04}" for number in (0, 700, 1199)]

    class Meddling(Mirror):
        def put(self, event: object) -> None:
            mirror.put(event)  # type: ignore[arg-type]
            if isinstance(event, ListPage) and gone:
                server.delete("Service", "default", gone.pop())

    follow(server, mirror=Meddling(), streamed=True)
    assert mirror.wait(lambda m: agrees(server, m))
    pages = [event for event in mirror.events if isinstance(event, ListPage)]
    assert {len(page.objects) for page in pages} == {500}
    assert len(pages) >= 2
    if cut:
        lists = [request.query for request in server.requests if request.verb == "list" and request.kind == "Service"]
        assert "resourceVersion" not in lists[0], "it must not be older than what was told already"


def _named(name: str, version: int) -> Service:
    return Service(metadata=Metadata(name=name, namespace="default", resource_version=str(version)))


NAMES = st.sampled_from("abcd")
STEPS = st.lists(st.tuples(st.sampled_from(["add", "break", "remove", "page", "begin"]), NAMES), max_size=30)


@given(known=st.sets(NAMES), steps=STEPS)
def test_whatever_happens_while_a_list_comes_its_end_is_the_truth(
    known: set[str], steps: list[tuple[str, str]]
) -> None:
    mirror, assembly = Mirror(), ListAssembly(Kind.SERVICE)
    for name in known:
        mirror.put(Changed(Kind.SERVICE, _named(name, 0)))
    truth: dict[str, str] = {}
    broken: set[str] = set()
    for version, (step, name) in enumerate(steps, 1):
        match step:
            case "add":
                assembly.add(_named(name, version))
                truth[name] = str(version)
                broken.discard(name)
            case "break":
                assembly.add_problem(InvalidObject(Kind.SERVICE, f"default/{name}", "spec", "is odd"))
                broken.add(name)
            case "remove":
                assembly.remove("default", name)
                truth.pop(name, None)
                broken.discard(name)
            case "page":
                mirror.put(assembly.page())
            case "begin":
                assembly.begin()
                truth, broken = {}, set()
    (listed, *problems) = assembly.end()
    assert isinstance(listed, Listed)
    assert not listed.delivered & {f"default/{item.metadata.name}" for item in listed.objects}
    assert {str(each) for each in problems} == {
        str(Invalid(InvalidObject(Kind.SERVICE, f"default/{name}", "spec", "is odd"))) for name in broken
    }
    mirror.put(listed)
    held = {key.removeprefix("default/"): version for key, version in mirror.versions(Kind.SERVICE).items()}
    assert {name: version for name, version in held.items() if name not in broken} == {
        name: version for name, version in truth.items() if name not in broken
    }
