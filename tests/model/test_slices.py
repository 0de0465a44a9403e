"""What an EndpointSlice says, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.errors import UnusedObject
from kproxy.model.plans import Family, Protocol
from kproxy.model.slices import MAX_ENDPOINTS, Slice, SliceAddress, parse
from tests.model.builders import endpoint, slice_

READY, DRAINING, DEAD = (True, True, False), (False, True, True), (False, False, False)


def only(*endpoints: dict[str, Any], **fields: Any) -> Slice:
    """A slice without problems."""
    found, problems = parse(slice_("web-1", endpoints, **fields))
    assert problems == []
    assert found is not None
    return found


def refused(*endpoints: dict[str, Any], **fields: Any) -> tuple[Slice | None, list[str]]:
    """What is left of a slice, and the fields that are wrong; each problem is one line that names the slice."""
    found, problems = parse(slice_("web-1", endpoints, **fields))
    for problem in problems:
        assert str(problem).startswith(f"EndpointSlice default/web-1: {problem.field}: ")
        assert str(problem).isprintable()
    return found, [p.field for p in problems]


def test_a_plain_slice() -> None:
    assert only(endpoint("10.244.0.1")) == Slice(
        "web", Family.IPV4, (("http", Protocol.TCP, 8080),), (SliceAddress("10.244.0.1", "node1"),)
    )


# ---------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, READY),
        ({}, READY),
        ({"ready": None, "serving": None, "terminating": None}, READY),
        ({"ready": True}, READY),
        ({"ready": True, "serving": None, "terminating": False}, READY),
        ({"ready": False}, (False, True, False)),
        ({"ready": False, "serving": False}, DEAD),
        ({"ready": False, "serving": False, "terminating": False}, DEAD),
        ({"ready": False, "serving": True, "terminating": True}, DRAINING),
        ({"ready": False, "serving": None, "terminating": True}, DRAINING),
        ({"ready": False, "serving": False, "terminating": True}, (False, False, True)),
        # publishNotReadyAddresses: ready says so although the pod is not; terminating ones stay ready as well.
        ({"ready": True, "serving": False, "terminating": False}, (True, False, False)),
        ({"ready": True, "serving": True, "terminating": True}, (True, True, True)),
        ({"serving": False}, (True, False, False)),
        ({"terminating": True}, (True, True, True)),
    ],
)
def test_conditions(conditions: dict[str, bool | None] | None, expected: tuple[bool, bool, bool]) -> None:
    (address,) = only({"addresses": ["10.244.0.1"], "conditions": conditions}).addresses
    assert (address.ready, address.serving, address.terminating) == expected


# ---------------------------------------------------------------- addresses


def test_an_endpoint_without_node_has_none() -> None:
    (address,) = only(endpoint("10.244.0.1", None)).addresses
    assert address.node == ""


def test_only_the_first_address_of_an_endpoint_counts() -> None:
    found = only({"addresses": ["10.244.0.1", "10.244.0.2", "nonsense"]})
    assert [a.ip for a in found.addresses] == ["10.244.0.1"]


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [("IPv4", "010.244.000.1", "10.244.0.1"), ("IPv6", "FD00:0:0::1", "fd00::1")],
)
def test_addresses_become_canonical(family: str, text: str, expected: str) -> None:
    (address,) = only(endpoint(text), addressType=family).addresses
    assert address.ip == expected


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("IPv4", "fd00::1"),
        ("IPv6", "10.244.0.1"),
        pytest.param("IPv6", "::ffff:10.244.0.1", id="IPv4-mapped counts as IPv4"),
        ("IPv4", "10.244.0.256"),
        ("IPv4", "pod.example.com"),
        ("IPv4", ""),
        ("IPv4", "10.0.0.1\n-j ACCEPT"),
    ],
)
def test_a_bad_address_costs_only_itself(family: str, text: str) -> None:
    good = "10.244.0.9" if family == "IPv4" else "fd00::9"
    found, problems = refused(endpoint(text), endpoint(good), addressType=family)
    assert found is not None
    assert [a.ip for a in found.addresses] == [good]
    assert problems == ["endpoints[0].addresses[0]"]


@pytest.mark.parametrize("addresses", [[], None])
def test_an_endpoint_without_address_costs_only_itself(addresses: list[str] | None) -> None:
    found, problems = refused({"addresses": addresses}, endpoint("10.244.0.9"))
    assert found is not None
    assert len(found.addresses) == 1
    assert problems == ["endpoints[0].addresses"]


@pytest.mark.parametrize("nothing", [[], None])
def test_no_endpoints_is_a_slice_all_the_same(nothing: list[dict[str, Any]] | None) -> None:
    found, problems = parse(slice_("web-1", nothing))
    assert found is not None
    assert (found.addresses, problems) == ((), [])


def test_hints_keep_their_names() -> None:
    (address,) = only(endpoint("10.244.0.1", zones=["zone-a", "zone-b"], nodes=["node7"])).addresses
    assert (address.zone_hints, address.node_hints) == (("zone-a", "zone-b"), ("node7",))


@pytest.mark.parametrize("hints", [None, {}, {"forZones": None, "forNodes": None}, {"forZones": [], "forNodes": []}])
def test_no_hints(hints: dict[str, Any] | None) -> None:
    (address,) = only({"addresses": ["10.244.0.1"], "hints": hints}).addresses
    assert (address.zone_hints, address.node_hints) == ((), ())


# ---------------------------------------------------------------- ports


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        (None, ()),
        ([], ()),
        ([{"name": "http", "port": 8080}], (("http", Protocol.TCP, 8080),)),
        ([{"name": "http", "port": 8080, "protocol": None}], (("http", Protocol.TCP, 8080),)),
        ([{"name": "", "port": 8080}], (("", Protocol.TCP, 8080),)),
        pytest.param([{"name": "http"}], (), id="all ports: not for a Service proxy"),
        pytest.param([{"name": "http", "port": None}], (), id="port null"),
        pytest.param([{"port": 8080}], (), id="no name, not even an empty one"),
        pytest.param(
            [
                {"port": 1},
                {"name": "sip", "port": 5060, "protocol": "SCTP"},
                {"name": "d", "port": 53, "protocol": "UDP"},
            ],
            (("sip", Protocol.SCTP, 5060), ("d", Protocol.UDP, 53)),
            id="the others stay",
        ),
    ],
)
def test_ports(ports: Any, expected: tuple[tuple[str, Protocol, int], ...]) -> None:
    assert only(ports=ports).ports == expected


@pytest.mark.parametrize(
    ("port", "field"),
    [
        ({"name": "x", "port": 0}, "ports[0].port"),
        ({"name": "x", "port": 70000}, "ports[0].port"),
        ({"name": "x", "port": -1}, "ports[0].port"),
        ({"name": "x", "port": 1, "protocol": "tcp"}, "ports[0].protocol"),
        ({"name": "x", "port": 1, "protocol": "QUIC"}, "ports[0].protocol"),
    ],
)
def test_a_bad_port_costs_only_itself(port: dict[str, Any], field: str) -> None:
    found, problems = refused(endpoint("10.244.0.1"), ports=[port, {"name": "http", "port": 8080}])
    assert found is not None
    assert found.ports == (("http", Protocol.TCP, 8080),)
    assert problems == [field]


# ---------------------------------------------------------------- the slice as a whole


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"addressType": "FQDN"}, id="FQDN is for others"),
        pytest.param({"labels": {"service.kubernetes.io/headless": ""}}, id="of a headless Service"),
        pytest.param(
            {"labels": {"service.kubernetes.io/headless": ""}, "addressType": "Tin cans"},
            id="of a headless Service, of a kind that only others may know",
        ),
    ],
)
def test_a_slice_that_is_not_for_this_proxy_is_no_problem(fields: dict[str, Any]) -> None:
    assert refused(endpoint("10.244.0.1"), **fields) == (None, [])


@pytest.mark.parametrize("kind", [None, "", "ipv4", "IPv5"])
def test_an_unknown_address_type_is_a_problem(kind: str | None) -> None:
    assert refused(endpoint("10.244.0.1"), addressType=kind) == (None, ["addressType"])


def test_a_slice_without_a_service_is_somebodys_right() -> None:
    for service in (None, ""):
        found, problems = parse(slice_("web-1", [endpoint("10.244.0.1")], service))
        assert found is None
        assert [(type(p), p.field) for p in problems] == [(UnusedObject, "metadata.labels[kubernetes.io/service-name]")]


def test_a_slice_of_a_service_with_an_impossible_name_is_a_problem() -> None:
    found, problems = parse(slice_("web-1", [], 'web"\n-j ACCEPT'))
    assert found is None
    assert str(problems[0]).isprintable()


@pytest.mark.parametrize(("count", "taken"), [(MAX_ENDPOINTS, True), (MAX_ENDPOINTS + 1, False), (2000, False)])
def test_more_endpoints_than_the_api_allows_is_one_problem(count: int, taken: bool) -> None:
    many = [endpoint(f"10.244.{i // 250}.{i % 250}") for i in range(count)]
    found, problems = refused(*many)
    assert (found is not None) is taken
    assert problems == ([] if taken else ["endpoints"])


def test_a_slice_without_namespace_is_in_namespace_default() -> None:
    _, problems = parse(slice_("web-1", [], namespace=None, addressType="?"))
    assert str(problems[0]).startswith("EndpointSlice default/web-1: ")
