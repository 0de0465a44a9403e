"""What the suite writes to the API server, and which proof it waits for."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cluster import Shape, items
from benchmarks.suite.objects import Objects, Write, spread, storm
from kproxy.model.objects import Kind

SHAPE = Shape(10, 3)


def body(write: Write) -> Any:
    return json.loads(write.body)


@given(services=st.integers(1, 5000), count=st.integers(1, 20))
def test_watched_services_are_spread_from_the_first_to_the_last(services: int, count: int) -> None:
    found = spread(services, count)
    assert len(found) == min(services, count)
    assert found[0] == 0
    assert count == 1 or found[-1] == services - 1
    gaps = {later - earlier for earlier, later in pairwise(found)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(services=st.integers(1, 300), endpoints=st.integers(1, 30), seconds=st.floats(0.1, 30))
def test_a_storm_reaches_every_service_before_any_a_second_time(services: int, endpoints: int, seconds: float) -> None:
    turns = storm(services, endpoints, 0.1, 100, seconds)
    assert 1 <= len(turns) <= max(1, 100 * seconds)
    assert len(turns) <= max(1, round(services * endpoints * 0.1))
    for start in range(0, len(turns), services):
        part = turns[start : start + services]
        assert len(set(part)) == len(part)
    assert all(0 <= turn < services for turn in turns)


def test_a_replaced_endpoint_is_a_new_one_and_the_others_stay() -> None:
    objects = Objects(SHAPE)
    before = list(objects.endpoints(4))
    change = objects.replace(4)
    sent = [endpoint["addresses"][0] for endpoint in body(change.write)["endpoints"]]
    assert change.write.method == "PATCH"
    assert change.write.path.endswith("/endpointslices/service-00004-ipv4")
    assert sent == [*change.addresses, *before[1:]] == objects.endpoints(4)
    assert not set(change.addresses) & set(before)


def test_every_endpoint_has_its_turn_and_no_address_is_used_twice() -> None:
    objects = Objects(SHAPE)
    initial = set(objects.endpoints(0))
    added = [objects.replace(0).addresses[0] for _ in range(SHAPE.endpoints * 2)]
    assert not initial & set(objects.endpoints(0))
    assert len(set(added)) == len(added)
    assert objects.endpoints(0) == added[SHAPE.endpoints :]


def test_the_cluster_that_is_written_is_the_one_that_the_stand_in_holds() -> None:
    """But for what a server adds to an object, and the selector."""
    held = {item["metadata"]["name"]: item["spec"] for item in items(SHAPE, Kind.SERVICE)}
    slices = {item["metadata"]["name"]: item["endpoints"] for item in items(SHAPE, Kind.ENDPOINT_SLICE)}
    objects = Objects(SHAPE)
    for number, first, service in objects.everything():
        name = body(service)["metadata"]["name"]
        assert body(first)["endpoints"] == slices[body(first)["metadata"]["name"]]
        assert body(service)["spec"] == {key: value for key, value in held[name].items() if key != "selector"}
        assert objects.ip(number) == held[name]["clusterIP"]


def test_a_new_service_is_beyond_the_cluster_and_goes_as_a_whole() -> None:
    objects = Objects(SHAPE, "elsewhere")
    first, change = objects.add()
    assert change.number == 10
    assert body(change.write)["spec"]["clusterIP"] == objects.ip(10)
    assert [endpoint["addresses"][0] for endpoint in body(first)["endpoints"]] == list(change.addresses)
    assert [(write.method, write.path.rpartition("/")[2]) for write in objects.remove(10)] == [
        ("DELETE", "service-00010"),
        ("DELETE", "service-00010-ipv4"),
    ]
    assert objects.add()[1].number == 11
    assert all("/namespaces/elsewhere/" in write.path for write in (first, change.write))


def test_a_server_that_chooses_cluster_ips_is_not_asked_for_one() -> None:
    objects = Objects(SHAPE, addressed=False)
    _, change = objects.add()
    assert not {"clusterIP", "clusterIPs"} & set(body(change.write)["spec"])
    objects.learn(change.number, "10.0.0.9")
    assert objects.ip(change.number) == "10.0.0.9"


@pytest.mark.parametrize("services", [1, 2])
def test_the_smallest_clusters_can_be_planned(services: int) -> None:
    objects = Objects(Shape(services, 1))
    assert len(list(objects.everything())) == services
    assert objects.replace(services - 1).addresses == tuple(objects.endpoints(services - 1))
