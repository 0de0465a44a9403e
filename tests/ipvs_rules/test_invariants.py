"""Invariants of rendering over random plans."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kproxy.kernel.virtual_servers import PERSISTENT
from kproxy.model.plans import Family, ServicePlan
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.fragments import Settings
from kproxy.modes.ipvs.render import render_port
from kproxy.modes.ipvs.rules import render_base
from tests.ipvs_rules.plans import any_plan, any_settings

DRAWN = st.sampled_from(Family).flatmap(lambda family: st.tuples(any_plan(family), any_settings(family)))
Drawn = tuple[ServicePlan, Settings]


@given(DRAWN)
def test_served_addresses_and_sets_agree(drawn: Drawn) -> None:
    plan, settings = drawn
    fragment = render_port(plan, settings)
    for served in fragment.served:
        address = served.server.key.address
        assert (address in fragment.addresses) != (address in settings.node_addresses), "bound or the node's own"
    assert set(fragment.addresses) <= {served.server.key.address for served in fragment.served}
    # What the rules let through to IPVS is served there, and what is served there is let through.
    keys = {f"{s.server.key.address},{plan.protocol.lower()}:{s.server.key.port}" for s in fragment.served}
    portals = {
        names.set_name(short, plan.family)
        for short in (names.CLUSTER_IP, names.EXTERNAL_IP, names.EXTERNAL_IP_LOCAL, names.LB)
    }
    let_in = {e.entry for e in fragment.entries if e.set in portals}
    assert let_in <= keys
    ports = {e.entry for e in fragment.entries if "NODE-PORT" in e.set and "HEALTH" not in e.set}
    by_node_port = {entry for entry in keys - let_in if entry in ports or entry.rpartition(":")[2] in ports}
    assert keys == let_in | by_node_port


@given(DRAWN)
def test_each_thing_is_there_once_and_fits_its_kind(drawn: Drawn) -> None:
    plan, settings = drawn
    fragment = render_port(plan, settings)
    keys = [served.server.key for served in fragment.served]
    for things in (keys, fragment.entries, fragment.addresses, fragment.rules):
        assert len(set(things)) == len(things)
    for server, reals in fragment.served:
        found = [(real.key.address, real.key.port) for real in reals]
        assert found in ([(e.ip, e.port) for e in plan.cluster], [(e.ip, e.port) for e in plan.local])
        assert bool(server.flags & PERSISTENT) == bool(server.timeout) == bool(plan.affinity_seconds)
    if not plan.has_endpoints:
        assert all(not served.reals for served in fragment.served)
    types = dict(names.sets(plan.family))
    version = 4 if plan.family is Family.IPV4 else 6
    for name, entry in fragment.entries:
        kinds, parts = types[name].partition(":")[2].split(","), entry.split(",")
        assert len(kinds) == len(parts)
        for kind, part in zip(kinds, parts, strict=True):
            if kind == "port":
                assert 0 < int(part.rpartition(":")[2]) < 65536
            else:
                assert ipaddress.ip_network(part).version == version


@given(DRAWN)
def test_rendering_is_a_function_of_what_the_port_needs(drawn: Drawn) -> None:
    """So a change of what the plan holds for others writes nothing."""
    plan, settings = drawn
    fragment = render_port(plan, settings)
    changed = replace(plan, endpoint_count=99, still_serving=plan.cluster, ready_local_ips=("10.0.0.1",), reachable=())
    assert render_port(changed, settings) == fragment
    filled = {entry.set for entry in fragment.entries}
    assert render_base(settings, filled) == render_base(settings, sorted(filled, reverse=True))


@given(DRAWN)
def test_ports_of_one_service_share_their_addresses(drawn: Drawn) -> None:
    plan, settings = drawn
    fragment = render_port(plan, settings)
    sibling = replace(plan, key=plan.key._replace(port="admin"), port=9090, node_port=0, affinity_seconds=0)
    other = render_port(sibling, settings)
    assert other.addresses == fragment.addresses
    bound = names.set_name(names.IPVS_IPS, plan.family)
    assert {e for e in other.entries if e.set == bound} == {e for e in fragment.entries if e.set == bound}
    assert not {s.server.key for s in other.served} & {s.server.key for s in fragment.served}
