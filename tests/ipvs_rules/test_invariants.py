"""Invariants of rendering over random plans."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kproxy.kernel.virtual_servers import PERSISTENT
from kproxy.model.plans import Family, ServicePlan
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.fragments import Fragment, Settings
from kproxy.modes.ipvs.render import render_port
from kproxy.modes.ipvs.rules import render_base

AnySettings = Callable[[Family], st.SearchStrategy[Settings]]
Drawn = tuple[ServicePlan, Settings, Fragment]


def drawn(data: Any, any_plan: st.SearchStrategy[ServicePlan], any_settings: AnySettings) -> Drawn:
    plan = data.draw(any_plan)
    settings = data.draw(any_settings(plan.family))
    return plan, settings, render_port(plan, settings)


@given(data=st.data())
def test_every_served_address_is_bound_or_the_nodes_own(data: Any, any_plan: Any, any_settings: AnySettings) -> None:
    _, settings, fragment = drawn(data, any_plan, any_settings)
    for served in fragment.served:
        assert (served.server.key.address in fragment.addresses) != (
            served.server.key.address in settings.node_addresses
        )
    assert set(fragment.addresses) <= {served.server.key.address for served in fragment.served}


@given(data=st.data())
def test_sets_and_virtual_servers_agree(data: Any, any_plan: Any, any_settings: AnySettings) -> None:
    """What the rules let through to IPVS is served there, and what is served there is let through."""
    plan, _, fragment = drawn(data, any_plan, any_settings)
    served = {f"{s.server.key.address},{plan.protocol.lower()}:{s.server.key.port}" for s in fragment.served}
    portals = {
        names.set_name(short, plan.family)
        for short in (names.CLUSTER_IP, names.EXTERNAL_IP, names.EXTERNAL_IP_LOCAL, names.LB)
    }
    let_in = {e.entry for e in fragment.entries if e.set in portals}
    assert let_in <= served
    ports = {e.entry for e in fragment.entries if "NODE-PORT" in e.set and "HEALTH" not in e.set}
    by_node_port = {entry for entry in served - let_in if entry in ports or entry.rpartition(":")[2] in ports}
    assert served == let_in | by_node_port


@given(data=st.data())
def test_each_thing_is_there_once(data: Any, any_plan: Any, any_settings: AnySettings) -> None:
    _, _, fragment = drawn(data, any_plan, any_settings)
    keys = [served.server.key for served in fragment.served]
    for things in (keys, fragment.entries, fragment.addresses, fragment.rules):
        assert len(set(things)) == len(things)


@given(data=st.data())
def test_real_servers_are_the_plans_endpoints(data: Any, any_plan: Any, any_settings: AnySettings) -> None:
    plan, _, fragment = drawn(data, any_plan, any_settings)
    for server, reals in fragment.served:
        found = [(real.key.address, real.key.port) for real in reals]
        assert found in ([(e.ip, e.port) for e in plan.cluster], [(e.ip, e.port) for e in plan.local])
        assert bool(server.flags & PERSISTENT) == bool(server.timeout) == bool(plan.affinity_seconds)
    if not plan.has_endpoints:
        assert all(not served.reals for served in fragment.served)


@given(data=st.data())
def test_entries_are_in_sets_of_their_family_and_fit_their_type(
    data: Any, any_plan: Any, any_settings: AnySettings
) -> None:
    plan, _, fragment = drawn(data, any_plan, any_settings)
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


@given(data=st.data())
def test_rendering_again_gives_the_same(data: Any, any_plan: Any, any_settings: AnySettings) -> None:
    plan, settings, fragment = drawn(data, any_plan, any_settings)
    assert render_port(replace(plan), settings) == fragment
    filled = {entry.set for entry in fragment.entries}
    assert render_base(settings, filled) == render_base(settings, sorted(filled, reverse=True))


@given(data=st.data())
def test_ports_of_one_service_share_their_addresses(data: Any, any_plan: Any, any_settings: AnySettings) -> None:
    plan, settings, fragment = drawn(data, any_plan, any_settings)
    sibling = replace(plan, key=plan.key._replace(port="admin"), port=9090, node_port=0, affinity_seconds=0)
    other = render_port(sibling, settings)
    assert other.addresses == fragment.addresses
    bound = names.set_name(names.IPVS_IPS, plan.family)
    assert {e for e in other.entries if e.set == bound} == {e for e in fragment.entries if e.set == bound}
    assert not {s.server.key for s in other.served} & {s.server.key for s in fragment.served}


@given(data=st.data())
def test_what_the_plan_holds_for_others_does_not_change_a_fragment(
    data: Any, any_plan: Any, any_settings: AnySettings
) -> None:
    """So a change of it writes nothing."""
    plan, settings, fragment = drawn(data, any_plan, any_settings)
    changed = replace(plan, endpoint_count=99, still_serving=plan.cluster, ready_local_ips=("10.0.0.1",), reachable=())
    assert render_port(changed, settings) == fragment
