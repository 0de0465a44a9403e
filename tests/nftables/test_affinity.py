"""Client IP affinity: clients are remembered by the number of their endpoint."""

from __future__ import annotations

from kproxy.modes.nftables.names import PortNames
from kproxy.modes.nftables.render import render_port
from kproxy.modes.nftables.text import Writer
from kproxy.netfilter.objects import Dnat, Goto, InSet, Update
from tests.nftables.plans import build_plan, elements, layout_of, settings

WRITER = Writer(build_plan().family)


def test_a_client_keeps_its_endpoint_and_a_new_one_gets_any_of_them_evenly() -> None:
    plan = build_plan(affinity_seconds=60)
    fragment = render_port(plan, settings())
    assert [(s.name, s.timeout, s.size) for s in fragment.sets] == [("clients-60s", 60, 393216)]
    chain = fragment.chains[-1]
    to = [f"meta l4proto tcp {{}}dnat to 10.244.0.{n}:8080" for n in (1, 2)]
    numbers = [PortNames(plan.key).number(e) for e in plan.cluster]
    clients = [f"ip saddr . numgen random mod 1 offset {number}" for number in numbers]
    keep = [f"update @clients-60s {{ {client} }} " for client in clients]
    assert [" ".join(WRITER.statement(s) for s in rule) for rule in chain.rules] == [
        f"{clients[0]} @clients-60s {to[0].format(keep[0])}",
        f"{clients[1]} @clients-60s {to[1].format(keep[1])}",
        f"numgen random mod 2 0 {to[0].format(keep[0])}",
        to[1].format(keep[1]),
        f"numgen random mod 2 0 {to[0].format('')}",
        to[1].format(""),
    ]


def test_each_endpoint_of_each_port_has_a_number_of_its_own() -> None:
    plans = [build_plan(name, cluster=range(1, 200)) for name in ("a", "b")]
    numbers = {PortNames(p.key).number(e) for p in plans for e in p.cluster}
    assert len(numbers) == 2 * 199
    assert all(0 <= n < 1 << 32 for n in numbers)


def test_all_frontends_of_a_port_share_its_clients() -> None:
    plan = build_plan(
        affinity_seconds=60, external_local=True, node_port=30000, external_ips=("198.51.100.7",), local=(2,)
    )
    fragment = render_port(plan, settings())
    entries = [c for c in fragment.chains if c.name.endswith(("-cluster", "-local", "-node-local"))]
    assert len(entries) == 3
    goals = {s.chain for c in entries for rule in c.rules for s in rule if isinstance(s, Goto)}
    choosing = {c.name: c for c in fragment.chains if c not in entries}
    assert goals == set(choosing)
    of_two = [{s.key for rule in c.rules for s in rule if isinstance(s, Update)} for c in choosing.values()]
    assert len(of_two[0]) == 2
    assert of_two[1] < of_two[0]


def test_internal_policy_local_keeps_clients_of_the_cluster_ip_here() -> None:
    plan = build_plan(affinity_seconds=60, internal_local=True, cluster=(1, 2), local=(2,), node_port=30000)
    layout = layout_of(plan)
    verdict = elements(layout, "services")[0].rpartition(" ")[2]
    last = layout.chains[verdict].rules[-1][-1]
    assert isinstance(last, Goto)
    ends = {s.address for rule in layout.chains[last.chain].rules for s in rule if isinstance(s, Dnat)}
    assert ends == {"10.244.0.2"}


def test_a_removed_endpoint_keeps_no_client_and_the_others_keep_theirs() -> None:
    old, new = (
        {
            s
            for rule in render_port(build_plan(affinity_seconds=60, cluster=ends), settings()).chains[-1].rules
            for s in rule
        }
        for ends in ((1, 2, 3), (1, 3))
    )
    asked, asked_now = ({s.key for s in some if isinstance(s, InSet)} for some in (old, new))
    assert asked_now < asked
    assert {s.address for s in new if isinstance(s, Dnat)} == {"10.244.0.1", "10.244.0.3"}


def test_ports_with_one_timeout_share_a_set() -> None:
    plans = [build_plan(name, affinity_seconds=n) for name, n in (("a", 60), ("b", 60), ("c", 61))]
    assert [n for n in layout_of(*plans).sets if n.startswith("clients")] == ["clients-60s", "clients-61s"]


def test_without_endpoints_nothing_is_remembered() -> None:
    fragment = render_port(build_plan(affinity_seconds=60, cluster=()), settings())
    assert (fragment.sets, fragment.chains) == ((), ())
