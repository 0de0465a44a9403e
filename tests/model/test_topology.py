"""Which endpoints serve which traffic: every row of the table, and what holds for all of them."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.model.plans import Endpoint
from kproxy.model.slices import SliceAddress
from kproxy.model.topology import Candidate, Choice, choose

NODE, ZONE = "node1", "zone-a"

# An endpoint is written as NAME:STATE@NODE/zone,zone!node,node; left out: ready, on another node, no hints.
STATES = {
    "ready": (True, True, False),
    "draining": (False, True, True),
    "dead": (False, False, False),
    "dying": (False, False, True),
    "starting": (False, True, False),  # serves but is not ready and does not terminate: never used
    "published": (True, False, True),  # publishNotReadyAddresses: ready whatever it does
}


def candidate(text: str) -> Candidate:
    text, _, nodes = text.partition("!")
    text, _, zones = text.partition("/")
    text, _, node = text.partition("@")
    name, _, state = text.partition(":")
    ready, serving, terminating = STATES[state or "ready"]
    ip = f"10.244.0.{ord(name) - ord('a') + 1}"
    where = {"here": NODE, "": "node2"}.get(node, node)
    address = SliceAddress(ip, where, ready, serving, terminating, _split(zones), _split(nodes))
    return Candidate(Endpoint(ip, 80, where == NODE), address)


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def letters(endpoints: tuple[Endpoint, ...]) -> str:
    return "".join(chr(int(e.ip.rpartition(".")[2]) - 1 + ord("a")) for e in endpoints)


class Row(NamedTuple):
    """endpoints: blank-separated. cluster, local: the letters expected in each list."""

    scenario: str
    endpoints: str
    cluster: str = ""
    local: str = ""
    anywhere: bool = True
    zone: str = ZONE


CLUSTER_ONLY = [
    Row("nothing", "", anywhere=False),
    Row("all ready", "a@here b", "ab"),
    Row("not ready is left out", "a b:dead", "a"),
    Row("none ready", "a:dead b:starting@here", anywhere=False),
    Row("starting is no fallback", "a:starting", anywhere=False),
    Row("draining does not mix with ready", "a b:draining", "a"),
    Row("draining when nothing is ready", "a:draining b:dead c:draining@here d:dying", "ac"),
    Row("dying serves nobody", "a:dying", anywhere=False),
    Row("published endpoints count as ready", "a:published b:draining", "a"),
    Row("policy Local does not matter", "a@here b", "ab"),
]

ZONE_HINTS = [
    Row("zone hints pick", "a/zone-a b/zone-b", "a"),
    Row("a hint may name several zones", "a/zone-b,zone-a b/zone-b", "a"),
    Row("all or nothing: one ready endpoint without", "a/zone-a b", "ab"),
    Row("one that is not ready may lack hints", "a/zone-a b:dead c/zone-b", "a"),
    Row("one that drains may lack hints", "a/zone-a b:draining c/zone-b", "a"),
    Row("no endpoint for this zone", "a/zone-b b/zone-c", "ab"),
    Row("hints of those that are not ready do not count", "a:dead/zone-a b/zone-b", "b"),
    Row("draining ones are taken whatever their hints", "a:draining/zone-a b:draining/zone-b", "ab"),
    Row("the node has no zone", "a/zone-a b/zone-b", "ab", zone=""),
    Row("local ones have no privilege", "a@here/zone-b b/zone-a", "b"),
]

NODE_HINTS = [
    Row("node hints pick", "a!node1 b!node2", "a"),
    Row("node hints come before zone hints", "a/zone-a!node2 b/zone-b!node1", "b"),
    Row("a node hint for others falls back to zone hints", "a/zone-a!node2 b/zone-b!node3", "a"),
    Row("node hints incomplete: zone hints", "a/zone-a!node1 b/zone-a c/zone-b!node3", "ab"),
    Row("node hints incomplete, no zone hints", "a!node1 b", "ab"),
    Row("node hints without a zone", "a!node1 b!node2", "a", zone=""),
    Row("nothing for this node or zone", "a/zone-b!node2 b/zone-c!node3", "ab"),
    Row("a hint may name several nodes", "a!node2,node1 b!node3", "a"),
]

LOCAL_ONLY = [
    Row("nothing", "", anywhere=False),
    Row("those on this node", "a@here b", local="a"),
    Row("none here, one elsewhere: dropped, not rejected", "a", anywhere=True),
    Row("none here, one drains elsewhere", "a:draining", anywhere=True),
    Row("dead everywhere", "a:dead@here b:dying", anywhere=False),
    Row("draining here when nothing here is ready", "a:draining@here b", local="a"),
    Row("draining does not mix with ready here", "a:draining@here b@here", local="b"),
    Row("dead here", "a:dead@here b", anywhere=True),
    Row("hints do not matter", "a@here/zone-b b/zone-a", local="a"),
    Row("hints for other nodes do not matter", "a@here!node2 b!node1", local="a"),
    Row("published here", "a:published@here", local="a"),
]

BOTH = [
    Row("all and those here", "a@here b", "ab", "a"),
    Row("none here", "a b", "ab", ""),
    Row("draining here only for policy Local", "a:draining@here b", "b", "a"),
    Row("draining everywhere", "a:draining@here b:draining", "ab", "a"),
    Row("hints bind policy Cluster only", "a@here/zone-b b/zone-a", "b", "a"),
    Row("nothing usable", "a:dead@here b:dying", anywhere=False),
    Row("none here, one drains elsewhere", "a:draining", "a", ""),
]


def cases(rows: list[Row], cluster: bool, local: bool) -> list[object]:
    uses = "+".join(name for name, used in (("cluster", cluster), ("local", local)) if used)
    return [pytest.param(row, cluster, local, id=f"{uses}: {row.scenario}") for row in rows]


@pytest.mark.parametrize(
    ("row", "uses_cluster", "uses_local"),
    [
        *cases(CLUSTER_ONLY + ZONE_HINTS + NODE_HINTS, True, False),
        *cases(LOCAL_ONLY, False, True),
        *cases(BOTH, True, True),
    ],
)
def test_choice(row: Row, uses_cluster: bool, uses_local: bool) -> None:
    found = choose([candidate(t) for t in row.endpoints.split()], uses_cluster, uses_local, NODE, row.zone)
    assert (letters(found.cluster), letters(found.local)) == (row.cluster, row.local)
    assert letters(found.reachable) == "".join(sorted({*row.cluster, *row.local}))
    assert found.anywhere is row.anywhere


def test_a_node_without_zone_is_in_no_zone_even_if_a_hint_has_no_name() -> None:
    nameless = [Candidate(c.endpoint, _with_zones(c.address, ("",))) for c in (candidate("a"), candidate("b"))]
    (named,) = [candidate("c/zone-b")]
    assert letters(choose([*nameless, named], True, False, NODE, "").cluster) == "abc"


def _with_zones(address: SliceAddress, zones: tuple[str, ...]) -> SliceAddress:
    return SliceAddress(address.ip, address.node, zone_hints=zones)


# ---------------------------------------------------------------- invariants

flags = st.booleans()
zones = st.lists(st.sampled_from([ZONE, "zone-b", "zone-c"]), max_size=2).map(tuple)
nodes = st.lists(st.sampled_from([NODE, "node2", "node3"]), max_size=2).map(tuple)
addresses = st.builds(
    SliceAddress,
    st.integers(1, 30).map(lambda n: f"10.244.0.{n}"),
    st.sampled_from([NODE, "node2", "node3", ""]),
    flags,
    flags,
    flags,
    zones,
    nodes,
)
candidate_lists = st.lists(addresses, max_size=8, unique_by=lambda a: a.ip).map(
    lambda found: sorted(
        (Candidate(Endpoint(a.ip, 80, a.node == NODE), a) for a in found), key=lambda c: str(c.endpoint)
    )
)
zone_names = st.sampled_from([ZONE, "zone-b", ""])
policies = st.sampled_from([(True, False), (False, True), (True, True)])


@given(candidate_lists, policies, zone_names)
def test_what_holds_for_every_choice(found: list[Candidate], uses: tuple[bool, bool], zone: str) -> None:
    choice = choose(found, *uses, NODE, zone)
    ready = {c.endpoint for c in found if c.address.ready}
    alive = ready | {c.endpoint for c in found if c.address.serving and c.address.terminating}
    assert set(choice.reachable) == {*choice.cluster, *choice.local}
    assert alive.issuperset(choice.reachable)
    assert choice.anywhere is bool(alive)
    assert all(endpoint.local for endpoint in choice.local)
    for endpoints in choice[:3]:
        assert list(endpoints) == sorted(set(endpoints), key=str)
    for used, endpoints in zip(uses, (choice.cluster, choice.local), strict=True):
        assert used or not endpoints, "a policy that nothing uses has none"
        assert ready.issuperset(endpoints) or ready.isdisjoint(endpoints), "ready and draining ones never mix"


@given(candidate_lists, zone_names)
def test_hints_never_leave_policy_cluster_without_an_endpoint(found: list[Candidate], zone: str) -> None:
    plain = [Candidate(c.endpoint, SliceAddress(c.address.ip, c.address.node, *_conditions(c.address))) for c in found]
    hinted, unhinted = choose(found, True, True, NODE, zone), choose(plain, True, True, NODE, zone)
    assert bool(hinted.cluster) == bool(unhinted.cluster)
    assert set(hinted.cluster) <= set(unhinted.cluster)
    assert hinted.local == unhinted.local


@given(candidate_lists, policies, zone_names, st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_does_not_matter(
    found: list[Candidate], uses: tuple[bool, bool], zone: str, rng: random.Random
) -> None:
    shuffled = list(found)
    rng.shuffle(shuffled)

    def sets(choice: Choice) -> tuple[object, ...]:
        return (*map(frozenset, choice[:3]), choice.anywhere)

    assert sets(choose(found, *uses, NODE, zone)) == sets(choose(shuffled, *uses, NODE, zone))


def _conditions(address: SliceAddress) -> tuple[bool, bool, bool]:
    return address.ready, address.serving, address.terminating
