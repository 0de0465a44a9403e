"""Classes of first packets are proved: disjoint, together the whole space, and each treated in one way."""

from __future__ import annotations

from itertools import product
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.model.objects import Object
from kproxy.model.plans import Family
from kproxy.preflight.classes import Box, Space, classes, interface_names
from kproxy.preflight.other_rules import together
from kproxy.trace.comparisons import PROTOCOLS, Intervals, common, has, network, united, without
from kproxy.trace.iptables import IptablesTracer
from kproxy.trace.layered import LayeredTracer
from kproxy.trace.nftables import NftablesTracer
from tests.model.builders import endpoint, service, slice_
from tests.preflight.nodes import preview_of, space_of, tracer_of
from tests.trace.test_random_states import CONFIGURATIONS, FAMILIES, objects

OTHERS = """*filter
:INPUT ACCEPT [0:0]
-A INPUT -p tcp -m tcp --dport 81 -j DROP
-A INPUT -i cbr0 -p udp -m udp --dport 79:80 -j DROP
-A OUTPUT -s 172.18.0.2/32 -p sctp -j REJECT
-A FORWARD -s 10.244.2.8/31 -p icmp -j DROP
COMMIT
"""
SETS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), max_size=5).map(
    lambda found: united((low, low + more) for low, more in found)
)


@given(SETS, SETS)
def test_sets_of_numbers_are_those_of_their_members(left: Intervals, right: Intervals) -> None:
    in_left, in_right = ({n for n in range(40) if has(each, n)} for each in (left, right))
    assert {n for n in range(40) if has(common(left, right), n)} == in_left & in_right
    assert {n for n in range(40) if has(without(left, right), n)} == in_left - in_right
    assert {n for n in range(40) if has(united([*left, *right]), n)} == in_left | in_right


PATTERNS = st.sets(st.sampled_from(["veth+", "veth0", "veth1+", "eth0", "cbr0", "~", "cbr+", "net0"]))


@given(PATTERNS, st.sampled_from(["veth0", "veth1", "veth10", "veth2", "eth0", "eth1", "cbr0", "cbr1", "~", "net0"]))
def test_each_interface_is_represented(patterns: set[str], name: str) -> None:
    def compares(name: str) -> set[str]:
        return {p for p in patterns if (name.startswith(p[:-1]) if p.endswith("+") else name == p)}

    assert compares(name) in [compares(each) for each in interface_names(patterns)]


@settings(max_examples=15, deadline=None)
@given(objects(), CONFIGURATIONS, FAMILIES, st.randoms(use_true_random=False))
def test_no_packet_of_a_class_is_treated_unlike_its_representative(
    items: list[Object], config: dict[str, Any], family: Family, random: Random
) -> None:
    preview, host = preview_of(items, **config)
    before, after = (tracer_of(preview, mode, family, host) for mode in ("iptables", "nftables"))
    space = space_of(preview, family, host)
    found = list(classes(space, before, after))
    for each in random.sample(found, min(len(found), 60)):
        for values in [_member(each.box, random) for _ in range(3)]:
            probe = space.packet(*values)
            assert before.trace(probe).chances == each.before.chances, (each.probe, probe)
            assert after.trace(probe).chances == each.after.chances, (each.probe, probe)
            assert [one for one in found if one.box.has(values)] == [each]
    for box in space.boxes():
        values = _member(box, random)
        assert sum(one.box.has(values) for one in found) == 1, space.packet(*values)


def _member(box: Box, random: Random) -> tuple[int, int, int, int, int]:
    """A packet of the box; the ends of ranges as often as what is between them."""
    one, *others = (
        random.choice((low, high, random.randint(low, high))) for low, high in map(random.choice, box.values)
    )
    return one, *others  # type: ignore[return-value]


def test_every_packet_of_a_small_space_is_treated_as_its_class_says() -> None:
    """Each address and port about two Services, from each kind of sender, past rules of another program."""
    items: list[Object] = [
        service("web", ports=[{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 82}], type="NodePort"),
        slice_("web-4", [endpoint("10.244.1.7", "node1"), endpoint("10.244.2.8", "node2")], "web"),
        service("none", clusterIP="10.96.0.3", clusterIPs=["10.96.0.3"], externalIPs=["172.18.0.3"]),
    ]
    preview, host = preview_of(items, detectLocalMode="ClusterCIDR", nodePortAddresses=["192.168.0.0/16"])
    before = IptablesTracer(together(preview.iptables(Family.IPV4), OTHERS), Family.IPV4, host)
    others = IptablesTracer(OTHERS, Family.IPV4, host)
    table = NftablesTracer(preview.nftables_layout(Family.IPV4), host)
    after = LayeredTracer(Family.IPV4, host, others, table)
    space = Space(Family.IPV4, host.addresses - {"::1", "fd00:18::2", "fd00:10:244:1::1"}, ("eth0", "cbr0"))
    found, boxes = list(classes(space, before, after)), space.boxes()
    assert any(each.differs for each in found)
    assert not all(each.differs for each in found)
    starts = ("10.96.0.0", "172.18.0.1", "127.0.0.0", "192.168.9.6")
    destinations = [network(start)[0] + more for start in starts for more in range(4)]
    sources = [
        network(ip)[0] for ip in ("10.244.1.7", "10.244.2.8", "10.244.2.9", "172.18.0.2", "127.0.0.1", "8.8.8.8")
    ]
    asked = 0
    ways = product(sources, destinations, range(len(PROTOCOLS)), range(79, 84), range(len(space.names)))
    for values in ways:
        if not any(box.has(values) for box in boxes):
            continue
        asked += 1
        (of,) = (each for each in found if each.box.has(values))
        probe = space.packet(*values)
        assert (before.trace(probe).chances, after.trace(probe).chances) == (of.before.chances, of.after.chances), probe
    assert asked > 1500
