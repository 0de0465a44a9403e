"""Whatever the API server or a manifest holds becomes plans, or problems that name the object; nothing raises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import InvalidObject, SourceError
from kproxy.model.events import Changed, Deleted, Invalid, Listed
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Kind, Object
from kproxy.model.plan_store import FamilyPlans, PlanStore, health_checks
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.sources.decode import Broken, Decoder, Gone, Update, split_lines
from kproxy.sources.documents import parse

METADATA = {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "annotations": {"a": "b"}}
VALID: dict[Kind, dict[str, Any]] = {
    Kind.SERVICE: {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": METADATA,
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00::10"],
            "externalIPs": ["203.0.113.1"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 300}},
            "loadBalancerSourceRanges": ["192.0.2.0/24"],
            "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 31000,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.2", "ipMode": "VIP"}]}},
    },
    Kind.ENDPOINT_SLICE: {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            **METADATA,
            "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-02T03:04:05Z"},
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": ["10.244.0.5"],
                "nodeName": "node1",
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "node1"}]},
            }
        ],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    },
    Kind.NODE: {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": "z"}},
        "spec": {"podCIDRs": ["10.244.0.0/24"], "podCIDR": "10.244.0.0/24", "taints": [{"key": "k", "effect": "e"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    },
    Kind.SERVICE_CIDR: {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16"]},
    },
}


class Cluster:
    """What a daemon makes of events: state and plans, after every one of them."""

    def __init__(self) -> None:
        self._state, self._store, self._node = (
            ClusterState("node1"),
            PlanStore(),
            NodeInfo("node1", "z", ("192.0.2.1",)),
        )
        self._families = {family: FamilyPlans() for family in Family}
        self.problems: list[InvalidObject] = []
        for kind, value in VALID.items():
            self.change(kind, Decoder(kind).page(_list(value)).objects)

    def change(self, kind: Kind, objects: list[Object], problems: list[InvalidObject] | None = None) -> None:
        for event in (Listed(kind, tuple(objects)), *map(Invalid, problems or ())):
            self._apply(event)

    def line(self, kind: Kind, line: object) -> None:
        match line:
            case Update(_, item):
                self._apply(Changed(kind, item))
            case Gone(_, namespace, name):
                self._apply(Deleted(kind, namespace, name))
            case Broken(_, error):
                self._apply(Invalid(error))

    def _apply(self, event: Any) -> None:
        self.problems += self._state.apply(event)
        changes = self._store.update(self._state, self._state.take_dirty(), self._node)
        for family, plans in self._families.items():
            plans.update(changes[family])
            health_checks(plans)
        for problem in self.problems:
            assert "\n" not in str(problem)


def _list(*values: Any) -> bytes:
    return json.dumps({"metadata": {"resourceVersion": "7"}, "items": list(values)}).encode()


def _judge(kind: Kind, body: bytes) -> Cluster:
    """BODY, one object, by every way in: a list, a watch, a manifest."""
    cluster, decoder = Cluster(), Decoder(kind)
    try:
        page = decoder.page(b'{"items": [%s]}' % body)
        cluster.change(kind, page.objects, page.problems)
        for event in (b"MODIFIED", b"DELETED"):
            cluster.line(kind, decoder.line(b'{"type": "%s", "object": %s}' % (event, body)))
    except SourceError:
        pass
    try:
        content = parse("manifest.yaml", body)
    except InvalidObject as error:
        cluster.problems.append(error)
    else:
        cluster.problems += content.problems
        for (its_kind, _), item in content.objects.items():
            cluster.change(its_kind, [item])
    return cluster


# ---- addresses and numbers of thousands of digits

DIGITS = "9" * 5000
PATHS_OF_ADDRESSES = [
    (Kind.SERVICE, "spec.clusterIP"),
    (Kind.SERVICE, "spec.clusterIPs.0"),
    (Kind.SERVICE, "spec.externalIPs.0"),
    (Kind.SERVICE, "spec.loadBalancerSourceRanges.0"),
    (Kind.SERVICE, "status.loadBalancer.ingress.0.ip"),
    (Kind.ENDPOINT_SLICE, "endpoints.0.addresses.0"),
    (Kind.NODE, "spec.podCIDR"),
    (Kind.NODE, "spec.podCIDRs.0"),
    (Kind.NODE, "status.addresses.0.address"),
    (Kind.SERVICE_CIDR, "spec.cidrs.0"),
]
PATHS_OF_NUMBERS = [
    (Kind.SERVICE, "spec.ports.0.port"),
    (Kind.SERVICE, "spec.ports.0.nodePort"),
    (Kind.SERVICE, "spec.healthCheckNodePort"),
    (Kind.SERVICE, "spec.sessionAffinityConfig.clientIP.timeoutSeconds"),
    (Kind.ENDPOINT_SLICE, "ports.0.port"),
]


def _with(value: Any, path: str, new: Any) -> Any:
    """A copy of VALUE with NEW at PATH; a part of a path that is not there is made."""
    head, _, rest = path.partition(".")
    if isinstance(value, list):
        return [_with(item, rest, new) if rest and str(i) == head else new if str(i) == head else item
                for i, item in enumerate(value)]  # fmt: skip
    return {**value, head: _with(value[head], rest, new) if rest else new}


def _named(problems: list[InvalidObject]) -> set[str]:
    return {problem.kind for problem in problems}


@pytest.mark.parametrize("text", [DIGITS, f"10.0.0.{DIGITS}", f"10.0.0.1/{DIGITS}", f"fd00::{DIGITS}", f"{DIGITS}::/8"])
@pytest.mark.parametrize(("kind", "path"), PATHS_OF_ADDRESSES)
def test_an_address_of_thousands_of_digits_is_a_problem_of_its_object(kind: Kind, path: str, text: str) -> None:
    value = _with(VALID[kind], path, text)
    if path == "spec.clusterIP":
        value["spec"]["clusterIPs"] = None
    problems = _judge(kind, json.dumps(value).encode()).problems
    assert _named(problems) == (set() if path == "spec.podCIDR" else {kind})  # podCIDRs take its place


@pytest.mark.parametrize("number", [DIGITS, f"-{DIGITS}", f"{DIGITS}.5", "1e999", "99999999999999999999999"])
@pytest.mark.parametrize(("kind", "path"), PATHS_OF_NUMBERS)
def test_a_number_of_thousands_of_digits_is_a_problem_of_its_object(kind: Kind, path: str, number: str) -> None:
    body = json.dumps(_with(VALID[kind], path, "NUMBER")).replace('"NUMBER"', number)
    assert _named(_judge(kind, body.encode()).problems) >= {kind}


@pytest.mark.parametrize("number", [DIGITS, f"-{DIGITS}", f"0x{'f' * 5000}", f"0b{'1' * 50000}", f"0{'7' * 5000}"])
@pytest.mark.parametrize(("kind", "path"), PATHS_OF_NUMBERS)
def test_neither_is_one_in_yaml(kind: Kind, path: str, number: str) -> None:
    body = json.dumps(_with(VALID[kind], path, "NUMBER")).replace('"NUMBER"', number)
    content = parse("manifest.yaml", b"# no JSON\n" + body.encode())
    assert _named(content.problems) == {kind}


@pytest.mark.parametrize(
    ("text", "expected"), [("010.0.0.1", "10.0.0.1"), (f"{'0' * 5000}10.0.0.1", "10.0.0.1")], ids=["one", "many"]
)
def test_leading_zeros_are_read_however_many(text: str, expected: str) -> None:
    from kproxy.model.addresses import canonical_cidr, canonical_ip

    assert canonical_ip(text) == expected
    assert canonical_cidr(f"{text}/{'0' * 5000}24") == "10.0.0.0/24"


TAGS = [
    "!!bool x",
    "!!timestamp x",
    "!!int x",
    "!!float x",
    "!!binary é",
    "!!null [1]",
    "!!set x",
]


@pytest.mark.parametrize("text", TAGS)
def test_senseless_tags_cost_their_file(text: str) -> None:
    assert _judge(Kind.SERVICE, f"kind: Service\nmetadata: {{name: {text}}}".encode()).problems


# ---- anything anywhere

JUNK = st.one_of(
    st.sampled_from(
        [None, True, 0, -1, 2**31, 2**63, 2**64, 1e308, "", "\0", "\n", "é", "\ud7ff", "None", DIGITS, [], {}]
    ),
    st.sampled_from(
        [[None], {"": None}, [[]], "0001-01-01", "9999-12-31T23:59:59-23:59", "10.0.0.1/33", "::1%lo", "/"]
    ),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.recursive(st.none(), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner)),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*path, key))


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    items = value.items() if isinstance(value, dict) else enumerate(value)
    inside = {key: _replaced(inner, path[1:], new) if key == path[0] else inner for key, inner in items}
    return inside if isinstance(value, dict) else list(inside.values())


@st.composite
def mutants(draw: st.DrawFn) -> tuple[Kind, bytes]:
    """A valid object with junk in one to three places, then perhaps with a few bytes changed or cut off."""
    kind = draw(st.sampled_from(list(Kind)))
    value: Any = VALID[kind]
    for _ in range(draw(st.integers(1, 3))):
        value = _replaced(value, draw(st.sampled_from(list(_places(value)))), draw(JUNK))
    body = bytearray(json.dumps(value).encode())
    for _ in range(draw(st.integers(0, 2))):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return kind, bytes(body[: draw(st.none() | st.integers(0, len(body)))])


@given(mutants())
def test_a_mutant_never_raises(mutant: tuple[Kind, bytes]) -> None:
    kind, body = mutant
    _judge(kind, body)


BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"7",
    b"\xff\xfe",
    b"\0",
    b'"' + b"\0" * 10,
    b'{"items": null}',
    b'{"items": [null, 7, [], {}]}',
    b'{"items": {"a": 1}}',
    b'{"metadata": null, "items": [{"metadata": null}]}',
    b'{"metadata": {"resourceVersion": 7}, "items": []}',
    b'{"metadata": {"continue": []}}',
    b'{"items": ' + b"[" * 100_000,
    b'{"items": [' + b'{"spec": ' * 50_000 + b"1" + b"}" * 50_000 + b"]}",
    b'{"metadata": {"resourceVersion": "' + DIGITS.encode() + b'"}, "items": []}',
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:40]))
@pytest.mark.parametrize("kind", list(Kind))
def test_a_list_of_no_use(kind: Kind, body: bytes) -> None:
    cluster = Cluster()
    try:
        page = Decoder(kind).page(body)
    except SourceError:
        return
    cluster.change(kind, page.objects, page.problems)


# ---- lines


class Counting(bytes):
    """Bytes that count how many of them are copied or searched."""

    work = 0

    def split(self, *args: Any) -> list[bytes]:
        Counting.work += len(self)
        return [Counting(part) for part in super().split(*args)]

    def strip(self, *args: Any) -> bytes:
        Counting.work += len(self)
        return super().strip(*args)

    def __radd__(self, other: bytes) -> Counting:
        Counting.work += len(other) + len(self)
        return Counting(bytes(other) + bytes(self))


def test_the_work_for_a_long_line_grows_with_its_length_alone() -> None:
    Counting.work = 0
    chunks = [Counting(b"x" * 1000) for _ in range(1000)] + [Counting(b"\nshort\n")]
    assert list(map(len, split_lines(iter(chunks), 10**9))) == [10**6, 5]
    assert Counting.work < 3 * 10**6
