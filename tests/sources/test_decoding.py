"""Bytes of the API server become objects; what is broken is named, and costs only itself."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import InvalidObject, SourceError
from kproxy.model.events import Invalid, Listed
from kproxy.model.objects import EndpointSlice, Kind, Node, Service
from kproxy.sources.decode import Bookmark, Broken, Decoder, Failure, Gone, Update, object_of, split_lines
from kproxy.sources.intern import Interner
from kproxy.sources.listing import ListAssembly
from tests.sources.cluster import endpoint_slice, service


def _list(*items: Any, **metadata: str) -> bytes:
    return json.dumps({"kind": "List", "metadata": {"resourceVersion": "7", **metadata}, "items": items}).encode()


def _line(sort: str, item: Any) -> bytes:
    return json.dumps({"type": sort, "object": item}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b'{"items": null}',
        b'{"metadata": null, "items": []}',
        b'{"metadata": {"resourceVersion": null, "continue": null}, "novelty": [{"x": 1}]}',
        b"{}",
    ],
)
def test_a_list_without_items_is_empty(body: bytes) -> None:
    page = Decoder(Kind.SERVICE).page(body)
    assert (page.objects, page.problems, page.more, page.version) == ([], [], "", "")


def test_a_page_names_its_version_and_the_next_page() -> None:
    page = Decoder(Kind.SERVICE).page(_list(service("web"), **{"continue": "abc"}))
    assert (page.version, page.more) == ("7", "abc")


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"<html>", b'{"items": {}}', b'{"items": [', b"[" * 100_000])
def test_what_is_no_list_is_an_error_of_the_source(body: bytes) -> None:
    with pytest.raises(SourceError):
        Decoder(Kind.SERVICE).page(body)


BROKEN: list[tuple[Kind, Any, str, str]] = [
    (Kind.SERVICE, {"spec": {"ports": [{"port": "x"}]}}, "spec.ports[0].port", "Expected int, got str"),
    (Kind.SERVICE, {"spec": {"ports": [{}, {"nodePort": []}]}}, "spec.ports[1].nodePort", "Expected int, got array"),
    (Kind.SERVICE, {"spec": {"clusterIPs": "10.0.0.1"}}, "spec.clusterIPs", "Expected array, got str"),
    (Kind.SERVICE, {"spec": {"clusterIPs": [None]}}, "spec.clusterIPs[0]", "Expected str, got null"),
    (
        Kind.SERVICE,
        {"status": {"loadBalancer": {"ingress": [7]}}},
        "status.loadBalancer.ingress[0]",
        "Expected object, got int",
    ),
    (Kind.SERVICE, {"spec": {"ports": [{"port": 80.5}]}}, "spec.ports[0].port", "Expected int, got float"),
    (
        Kind.ENDPOINT_SLICE,
        {"endpoints": [{}, {"addresses": "::"}]},
        "endpoints[1].addresses",
        "Expected array, got str",
    ),
    (
        Kind.ENDPOINT_SLICE,
        {"endpoints": [{"conditions": {"ready": 1}}]},
        "endpoints[0].conditions.ready",
        "Expected bool, got int",
    ),
    (Kind.NODE, {"spec": {"podCIDRs": [1]}}, "spec.podCIDRs[0]", "Expected str, got int"),
]


@pytest.mark.parametrize(("kind", "fields", "field", "reason"), BROKEN, ids=[case[2] for case in BROKEN])
def test_a_broken_object_is_named_with_its_field(kind: Kind, fields: dict[str, Any], field: str, reason: str) -> None:
    metadata = {"name": "bad", "namespace": "shop", "resourceVersion": "9"}
    bad, good = {"metadata": metadata, **fields}, {"metadata": {"name": "good", "namespace": "shop"}}
    decoder = Decoder(kind)

    page = decoder.page(_list(bad, good))
    assert [item.metadata.name for item in page.objects] == ["good"]
    assert [(p.kind, p.name, p.field, p.reason) for p in page.problems] == [(kind, "shop/bad", field, reason)]

    line = decoder.line(_line("MODIFIED", bad))
    assert isinstance(line, Broken)
    assert (line.version, str(line.error)) == ("9", f"{kind} shop/bad: {field}: {reason}")
    assert decoder.line(_line("DELETED", bad)) == Gone("9", "shop", "bad")  # to delete it, its name is enough

    with pytest.raises(InvalidObject) as caught:
        object_of(kind, bad)
    assert str(caught.value) == f"{kind} shop/bad: {field}: {reason}"


@pytest.mark.parametrize("item", [None, 7, [], {}, {"metadata": None}, {"metadata": {"name": 7}}, {"metadata": {}}])
def test_an_item_without_a_name_is_passed_over(item: Any) -> None:
    page = Decoder(Kind.SERVICE).page(_list(item, service("web")))
    assert [o.metadata.name for o in page.objects] == ["web"]
    assert [p.name for p in page.problems] == ["(without a name)"]


@pytest.mark.parametrize(
    ("kind", "metadata", "place"),
    [(Kind.SERVICE, {"name": "bad", "namespace": "shop"}, "shop/bad"), (Kind.NODE, {"name": "n1"}, "default/n1")],
)
def test_what_cannot_be_read_is_in_the_list_all_the_same(kind: Kind, metadata: dict[str, str], place: str) -> None:
    """Until it becomes readable, or goes, while the list is still coming."""
    list_ = ListAssembly(kind)
    page = Decoder(kind).page(_list({"metadata": metadata, "spec": 7}))
    assert not page.objects
    for problem in page.problems:
        list_.add_problem(problem)
    assert list(list_.end()) == [Listed(kind, (), frozenset({place})), Invalid(page.problems[0])]
    list_.remove(metadata.get("namespace", ""), metadata["name"])
    assert list(list_.end()) == [Listed(kind, ())]


def test_bad_text_in_one_object_costs_only_that_object() -> None:
    body = _list(service("web"), service("bad")).replace(b'"10.96.0.10"', b'"\xff\xfe"', 1)
    page = Decoder(Kind.SERVICE).page(body)
    assert [o.metadata.name for o in page.objects] == ["bad"]
    assert len(page.problems) == 1


def test_lines_say_what_happened() -> None:
    decoder = Decoder(Kind.SERVICE)
    item = service("web") | {"metadata": {"name": "web", "namespace": "shop", "resourceVersion": "12"}}
    for sort in ("ADDED", "MODIFIED"):
        line = decoder.line(_line(sort, item))
        assert isinstance(line, Update)
        assert (line.version, line.object.metadata.name) == ("12", "web")
    assert decoder.line(_line("DELETED", item)) == Gone("12", "shop", "web")
    for noted, ends in (({"k8s.io/initial-events-end": "true"}, True), ({}, False), (None, False), (7, False)):
        bookmark = {"metadata": {"resourceVersion": "99", "annotations": noted}}
        assert decoder.line(_line("BOOKMARK", bookmark)) == Bookmark("99", ends)


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        ({"message": "too old", "code": 410}, Failure(410, "too old")),
        ({"message": "internal error", "reason": "Expired"}, Failure(410, "internal error")),
        ({"reason": "InternalError", "message": "410 Gone: too old resource version"},
         Failure(500, "410 Gone: too old resource version")),
        ({"reason": "Odd"}, Failure(0, "Odd")),
        ({"code": 429, "details": {"retryAfterSeconds": 3}}, Failure(429, "no reason given", 3.0)),
        ({"code": 504, "details": [], "reason": "Timeout"}, Failure(504, "Timeout")),
        ({}, Failure(0, "no reason given")),
    ],
)  # fmt: skip
def test_why_a_watch_ends_is_told_by_code_or_reason_never_by_the_text(status: Any, failure: Failure) -> None:
    assert Decoder(Kind.SERVICE).line(_line("ERROR", {"kind": "Status", **status})) == failure


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b'{"type": "ADDED"}',
        b'{"object": {}}',
        b'{"type": "NEW", "object": {}}',
        b"null",
        b'{"type": "ADDED", "obj',
    ],
)
def test_what_is_no_event_is_an_error_of_the_source(line: bytes) -> None:
    with pytest.raises(SourceError):
        Decoder(Kind.SERVICE).line(line)


def test_only_the_labels_and_annotations_that_are_read_are_kept() -> None:
    item = endpoint_slice("web", "10.244.0.5")
    item["metadata"]["labels"] |= {"app": "web", "service.kubernetes.io/headless": ""}
    item["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": "t", "note": "n" * 5000}
    (found,) = Decoder(Kind.ENDPOINT_SLICE).page(_list(item)).objects
    assert found.metadata.labels == {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}
    assert found.metadata.annotations == {"endpoints.kubernetes.io/last-change-trigger-time": "t"}
    zone = {
        "metadata": {
            "name": "n",
            "labels": {"topology.kubernetes.io/zone": "z", "kubernetes.io/hostname": "h", "x": "y"},
        }
    }
    (node,) = Decoder(Kind.NODE).page(_list(zone)).objects
    assert isinstance(node, Node)
    assert node.metadata.labels == {"topology.kubernetes.io/zone": "z", "kubernetes.io/hostname": "h"}


_words = st.sampled_from(["a", "b", "node-1", "zone", ""])
_flags = st.sampled_from([None, True, False])
_hints = st.none() | st.fixed_dictionaries(
    {
        "forZones": st.none() | st.lists(st.fixed_dictionaries({"name": _words}), max_size=2),
        "forNodes": st.none() | st.lists(st.fixed_dictionaries({"name": _words}), max_size=2),
    }
)
_endpoints = st.fixed_dictionaries(
    {
        "addresses": st.lists(_words, max_size=2),
        "nodeName": st.none() | _words,
        "hints": _hints,
        "conditions": st.none() | st.fixed_dictionaries({"ready": _flags, "serving": _flags, "terminating": _flags}),
    }
)
_ports = st.fixed_dictionaries({"name": st.none() | _words, "port": st.none() | st.integers(0, 3), "protocol": _words})
_slices = st.fixed_dictionaries(
    {
        "metadata": st.just({"name": "s", "namespace": "n"}),
        "endpoints": st.none() | st.lists(_endpoints, max_size=4),
        "ports": st.none() | st.lists(_ports, max_size=3),
    }
)


@given(st.lists(_slices, max_size=5))
def test_sharing_equal_values_changes_no_value(slices: list[dict[str, Any]]) -> None:
    found, interner = [msgspec.convert(item, EndpointSlice) for item in slices], Interner()
    for item in found:
        interner.intern(item)
    assert found == [msgspec.convert(item, EndpointSlice) for item in slices]


def test_equal_values_are_kept_once() -> None:
    interner = Interner()
    first, second = (msgspec.convert(endpoint_slice("web", "10.0.0.1", "10.0.0.2"), EndpointSlice) for _ in range(2))
    interner.intern(first)
    interner.intern(second)
    assert first.endpoints
    assert second.endpoints
    assert first.ports is second.ports
    assert {id(e.conditions) for e in first.endpoints + second.endpoints} == {id(first.endpoints[0].conditions)}


@given(st.lists(st.binary(min_size=1).filter(lambda b: b"\n" not in b and b.strip() != b"")), st.data())
def test_lines_are_found_however_the_stream_is_cut(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(line + b"\n" for line in lines) + b"half a li"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert list(split_lines(iter(pieces), 1 << 20)) == lines


def test_a_line_without_end_is_given_up() -> None:
    endless = iter(lambda: b"x" * 1000, b"")
    with pytest.raises(SourceError, match="longer than 10000 bytes"):
        list(split_lines(endless, 10_000))


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["metadata", "name", "spec", "ports", "port", "labels", "x"]), inner)
        ),
        max_leaves=12,
    )
)
def test_no_object_breaks_its_list(value: Any) -> None:
    page = Decoder(Kind.SERVICE).page(_list(value, service("web")))
    assert isinstance(page.objects[-1], Service)
    assert page.objects[-1].metadata.name == "web"
    assert len(page.objects) + len(page.problems) == 2
