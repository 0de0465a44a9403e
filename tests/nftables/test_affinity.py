"""Client IP affinity: a set of clients for each endpoint, which goes with it."""

from __future__ import annotations

from kproxy.model.nft import Dnat, Goto, Update
from kproxy.modes.nftables.render import render_port
from kproxy.modes.nftables.text import Writer
from tests.nftables.plans import build_plan, elements, layout_of, settings

WRITER = Writer(build_plan().family)


def test_a_client_goes_where_it_went_and_a_new_one_anywhere_evenly() -> None:
    fragment = render_port(build_plan(affinity_seconds=60), settings())
    one, two = (s.name for s in fragment.sets)
    assert one.endswith("-60s-10.244.0.1/8080")
    assert [(s.timeout, s.size) for s in fragment.sets] == [(60, 65535)] * 2
    chain = fragment.chains[-1]
    to = [f"meta l4proto tcp {{}}dnat to 10.244.0.{n}:8080" for n in (1, 2)]
    keep = [f"update @{name} {{ ip saddr }} " for name in (one, two)]
    assert [" ".join(WRITER.statement(s) for s in rule) for rule in chain.rules] == [
        f"ip saddr @{one} {to[0].format(keep[0])}",
        f"ip saddr @{two} {to[1].format(keep[1])}",
        f"numgen random mod 2 0 {to[0].format(keep[0])}",
        to[1].format(keep[1]),
        f"numgen random mod 2 0 {to[0].format('')}",
        to[1].format(""),
    ]


def test_all_ways_to_a_port_share_what_it_knows_of_its_clients() -> None:
    plan = build_plan(
        affinity_seconds=60, external_local=True, node_port=30000, external_ips=("198.51.100.7",), local=(2,)
    )
    fragment = render_port(plan, settings())
    entries = [c for c in fragment.chains if c.name.endswith(("-cluster", "-local", "-node-local"))]
    assert len(entries) == 3
    goals = {s.chain for c in entries for rule in c.rules for s in rule if isinstance(s, Goto)}
    choosing = {c.name: c for c in fragment.chains if c not in entries}
    assert goals == set(choosing)
    used = {s.set for c in choosing.values() for rule in c.rules for s in rule if isinstance(s, Update)}
    assert used == {s.name for s in fragment.sets}


def test_internal_policy_local_keeps_clients_of_the_cluster_ip_here() -> None:
    plan = build_plan(affinity_seconds=60, internal_local=True, cluster=(1, 2), local=(2,), node_port=30000)
    layout = layout_of(plan)
    verdict = elements(layout, "services")[0].rpartition(" ")[2]
    last = layout.chains[verdict].rules[-1][-1]
    assert isinstance(last, Goto)
    ends = {s.address for rule in layout.chains[last.chain].rules for s in rule if isinstance(s, Dnat)}
    assert ends == {"10.244.0.2"}


def test_an_endpoint_that_left_keeps_no_client_and_the_others_keep_theirs() -> None:
    old, new = (render_port(build_plan(affinity_seconds=60, cluster=ends), settings()) for ends in ((1, 2, 3), (1, 3)))
    assert {*new.sets} < {*old.sets}
    assert [s.name.rpartition("-")[2] for s in {*old.sets} - {*new.sets}] == ["10.244.0.2/8080"]


def test_another_timeout_is_another_set() -> None:
    names = [{s.name for s in render_port(build_plan(affinity_seconds=n), settings()).sets} for n in (60, 61)]
    assert not names[0] & names[1]


def test_without_endpoints_nothing_is_remembered() -> None:
    fragment = render_port(build_plan(affinity_seconds=60, cluster=()), settings())
    assert (fragment.sets, fragment.chains) == ((), ())
