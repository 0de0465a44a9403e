"""A change writes what differs and nothing else, however many Services there are."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kproxy.kernel.iptables import Backend
from kproxy.model.plans import Family, PortKey, Protocol, ServicePlan
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings
from kproxy.modes.xtables import reconcile as deltas
from kproxy.modes.xtables.reconcile import Change, delta
from kproxy.modes.xtables.rules import Chain, Fragment, SharedRule
from tests.fakes.iptables import FakeTables

KEY = PortKey("default", "web", "http", Protocol.TCP)
OTHER = PortKey("default", "dns", "", Protocol.UDP)
NONE = Fragment()
ONE = Fragment((Chain("KUBE-SEP-1", ("-j DNAT",)), Chain("KUBE-SVC-W", ("-j KUBE-SEP-1",))))
TWO = Fragment((*ONE.chains[:1], Chain("KUBE-SEP-2", ("-j DNAT",)), Chain("KUBE-SVC-W", ("-j KUBE-SEP-2",))))
LED = SharedRule("nat", "KUBE-SERVICES", "-d 10.96.0.1/32 -j KUBE-SVC-W")
ALSO = SharedRule("nat", "KUBE-SERVICES", "-d 203.0.113.1/32 -j KUBE-SVC-W")
REFUSED = SharedRule("filter", "KUBE-SERVICES", "-d 10.96.0.1/32 -j REJECT")

CASES: dict[str, tuple[Fragment, Fragment, str]] = {
    "nothing": (ONE, ONE, ""),
    "a new port": (
        NONE,
        Fragment(ONE.chains, (LED,)),
        "*nat|:KUBE-SVC-W - [0:0]|:KUBE-SEP-1 - [0:0]|-A KUBE-SEP-1 -j DNAT|-A KUBE-SVC-W -j KUBE-SEP-1|"
        "-I KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-W|COMMIT",
    ),
    "a port that goes": (
        Fragment(ONE.chains, (LED,)),
        NONE,
        "*nat|:KUBE-SVC-W - [0:0]|:KUBE-SEP-1 - [0:0]|-D KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-W|"
        "-X KUBE-SEP-1|-X KUBE-SVC-W|COMMIT",
    ),
    "an endpoint more": (
        ONE,
        TWO,
        "*nat|:KUBE-SVC-W - [0:0]|:KUBE-SEP-2 - [0:0]|-A KUBE-SEP-2 -j DNAT|-A KUBE-SVC-W -j KUBE-SEP-2|COMMIT",
    ),
    "an endpoint less": (
        TWO,
        ONE,
        "*nat|:KUBE-SVC-W - [0:0]|:KUBE-SEP-2 - [0:0]|-A KUBE-SVC-W -j KUBE-SEP-1|-X KUBE-SEP-2|COMMIT",
    ),
    "an address more": (
        Fragment(ONE.chains, (LED,)),
        Fragment(ONE.chains, (LED, ALSO)),
        "*nat|-I KUBE-SERVICES -d 203.0.113.1/32 -j KUBE-SVC-W|COMMIT",
    ),
    "the last endpoint goes: refused before nat lets go": (
        Fragment(ONE.chains, (LED,)),
        Fragment((), (REFUSED,)),
        "*filter|-I KUBE-SERVICES -d 10.96.0.1/32 -j REJECT|COMMIT|*nat|:KUBE-SVC-W - [0:0]|:KUBE-SEP-1 - [0:0]|"
        "-D KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-W|-X KUBE-SEP-1|-X KUBE-SVC-W|COMMIT",
    ),
    "the first endpoint comes: nat leads before it is no longer refused": (
        Fragment((), (REFUSED,)),
        Fragment(ONE.chains, (LED,)),
        "*nat|:KUBE-SVC-W - [0:0]|:KUBE-SEP-1 - [0:0]|-A KUBE-SEP-1 -j DNAT|-A KUBE-SVC-W -j KUBE-SEP-1|"
        "-I KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-W|COMMIT|"
        "*filter|-D KUBE-SERVICES -d 10.96.0.1/32 -j REJECT|COMMIT",
    ),
    "a line that is there twice loses one": (
        Fragment((), (LED, LED)),
        Fragment((), (LED,)),
        "*nat|-D KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-W|COMMIT",
    ),
}


@pytest.mark.parametrize(("old", "new", "text"), CASES.values(), ids=CASES)
def test_one_port_changes_in_one_restore(old: Fragment, new: Fragment, text: str) -> None:
    restores = list(delta([Change(KEY, old, new)], 600, lambda table, chain: []))
    assert "".join(restore.encoded().decode() for restore in restores).replace("\n", "|").rstrip("|") == text
    assert len(restores) == bool(text)


def test_every_line_has_its_owner() -> None:
    changes = [Change(KEY, NONE, Fragment(ONE.chains, (LED,))), Change(OTHER, NONE, Fragment((), (REFUSED,)))]
    [restore] = delta(changes, 600, lambda table, chain: [])
    for number, line in enumerate(restore.encoded().decode().splitlines(), 1):
        place = restore.at(number)
        assert place.line == line
        owner = place.part.owner if place.part else None
        assert owner == (None if line.startswith(("*", "COMMIT")) else OTHER if "REJECT" in line else KEY)


def test_a_chain_that_two_ports_claim_stays_with_the_one_that_has_it() -> None:
    changes = [Change(KEY, ONE, NONE), Change(OTHER, NONE, ONE)]
    text = "".join(r.encoded().decode() for r in delta(changes, 600, lambda table, chain: []))
    assert "-X" not in text


def test_many_changes_are_cut_and_linked_after_they_are_complete() -> None:
    def port(n: int) -> Change:
        chains = (Chain(f"KUBE-SVC-{n}", ("-j ACCEPT",)),)
        led = SharedRule("nat", "KUBE-SERVICES", f"-d 10.96.0.{n}/32 -j KUBE-SVC-{n}")
        return Change(PortKey("default", str(n), "", Protocol.TCP), NONE, Fragment(chains, (led,)))

    texts = [r.encoded().decode() for r in delta(map(port, range(10)), 2, lambda table, chain: [])]
    assert ["-I " in text for text in texts] == [False] * (len(texts) - 1) + [True]
    assert len(texts) == 5


def test_very_many_deletions_rewrite_the_chain_with_its_last_rule_last(
    plan: Callable[..., ServicePlan], settings: Settings
) -> None:
    tables = FakeTables()
    dataplane = IptablesDataplane(settings, tables)
    plans = {p.key: p for n in range(deltas.REWRITE_ABOVE + 3) if (p := plan(f"s{n}", node_port=30000 + n))}
    dataplane.apply(plans, None)
    [kept, also, *gone] = plans
    dataplane.apply({kept: plans[kept], also: plans[also]}, gone)
    assert not any("-D KUBE-SERVICES" in text for text in tables.restores)
    fresh = FakeTables()
    IptablesDataplane(settings, fresh).apply({also: plans[also], kept: plans[kept]}, None)
    assert sorted(tables.save().splitlines()) == sorted(fresh.save().splitlines())
    services = [line for line in tables.save().splitlines() if line.startswith("-A KUBE-SERVICES")]
    assert services[-1].endswith("-j KUBE-NODEPORTS")


@pytest.mark.parametrize("backend", Backend)
def test_the_bytes_of_a_change_do_not_depend_on_how_many_services_there_are(
    plan: Callable[..., ServicePlan], settings: Settings, backend: Backend
) -> None:
    written = set()
    for others in (0, 10, 300):
        tables = FakeTables(Family.IPV4, backend)
        dataplane = IptablesDataplane(settings, tables)
        plans = {p.key: p for n in range(others) if (p := plan(f"s{n}"))}
        first, second = plan("web"), plan("web", cluster=(1, 2, 3))
        dataplane.apply(plans | {first.key: first}, None)
        outcome = dataplane.apply(plans | {second.key: second}, [second.key])
        written.add((outcome.bytes_written, outcome.transactions, outcome.rules_written["nat"]))
    assert len(written) == 1
