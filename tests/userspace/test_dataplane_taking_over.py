"""A node that changes between iptables mode and userspace mode: what one left goes once the other stands."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kproxy.kernel.iptables import Backend
from kproxy.model.plans import Family, Frontend, Protocol
from kproxy.modes.base import Outcome
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings
from kproxy.modes.userspace.apply import UserspaceDataplane
from tests.fakes.forwarder import FakeForwarder
from tests.fakes.iptables import FakeTables
from tests.plans import Plans, build_plan
from tests.userspace.portal_plans import BY_CIDR

V4 = Family.IPV4
LOCAL = build_plan("web", node_port=30080, external_local=True, local=(1,), load_balancer_ips=("203.0.113.5",))
DNS, NONE = build_plan("dns", Protocol.UDP, node_port=30053), build_plan("none", cluster=())
MANY: Plans = {
    plan.key: plan for plan in (LOCAL, DNS, NONE, *(build_plan(f"n{n}", node_port=31000 + n) for n in range(20)))
}
# The chain that a foreign program leads to is not ours to take away.
FOREIGN = "*nat\n:CNI-1 - [0:0]\n-A PREROUTING -j CNI-1\nCOMMIT\n"

JUMPS = (
    '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    '-m comment --comment "handle ClusterIPs; NOTE: this must be before the NodePort rules" -j KUBE-PORTALS-CONTAINER',
)

Mode = Callable[[FakeTables, Plans], Outcome]


def iptables(tables: FakeTables, plans: Plans) -> Outcome:
    return IptablesDataplane(Settings(V4, detect_local=BY_CIDR.detect_local), tables).apply(plans, None)


def userspace(tables: FakeTables, plans: Plans) -> Outcome:
    return UserspaceDataplane(BY_CIDR, tables, FakeForwarder()).apply(plans, None)


def held(tables: FakeTables) -> list[str]:
    return sorted(line for line in tables.save().splitlines() if line[0] in "*:-")


def watched(tables: FakeTables) -> list[str]:
    """What the tables hold after each restore from now on."""
    states: list[str] = []
    done = tables.restore

    def restore(text: bytes | str) -> None:
        done(text)
        states.append(tables.save())

    tables.restore = restore  # type: ignore[method-assign]
    return states


BOTH = pytest.mark.parametrize("backend", Backend)
WAYS = pytest.mark.parametrize(("old", "new"), [(iptables, userspace), (userspace, iptables)])


@BOTH
@WAYS
def test_only_the_new_modes_rules_are_left(old: Mode, new: Mode, backend: Backend) -> None:
    tables, fresh = FakeTables(V4, backend), FakeTables(V4, backend)
    for each in (tables, fresh):
        each.restore(FOREIGN)
    old(tables, MANY)
    before = len(tables.restores)
    assert new(tables, MANY).rejected == {}
    new(fresh, MANY)
    assert held(tables) == held(fresh)
    assert len(tables.restores) - before < 10, "however many ports there are"
    assert new(tables, MANY).transactions == 0


@WAYS
def test_every_state_on_the_way_leads_every_address_somewhere(old: Mode, new: Mode) -> None:
    """No restore takes away the last rule for an address before another restore has brought a new one."""
    tables = FakeTables()
    old(tables, MANY)
    texts = watched(tables)
    new(tables, MANY)
    assert len(texts) > 2
    for text in texts:
        nat = text.partition("*nat")[2]
        for plan in MANY.values():
            assert ("-d " + plan.cluster_ip in nat) is plan.has_endpoints
        assert any(f"-A PREROUTING {rest}" in nat for rest in JUMPS)


@pytest.mark.parametrize("old", [iptables, userspace])
@pytest.mark.parametrize("new", [iptables, userspace])
def test_udp_addresses_that_are_gone_meanwhile_are_told(old: Mode, new: Mode) -> None:
    tables = FakeTables()
    old(tables, MANY)
    plans = {key: plan for key, plan in MANY.items() if plan is not DNS}
    gone = {Frontend(DNS.cluster_ip, 80, Protocol.UDP), Frontend("", 30053, Protocol.UDP)}
    assert gone <= set(new(tables, plans).abandoned)


def test_jumps_of_userspace_mode_stand_before_those_of_the_other_mode() -> None:
    tables = FakeTables()
    iptables(tables, MANY)
    saves = watched(tables)
    userspace(tables, MANY)
    both = next(text for text in saves if "-j KUBE-PORTALS-CONTAINER" in text)
    for chain, ours in (("PREROUTING", "CONTAINER"), ("OUTPUT", "HOST")):
        nat = [line.rpartition(" ")[2] for line in both.partition("*nat")[2].splitlines() if f"-A {chain} " in line]
        assert nat == [f"KUBE-PORTALS-{ours}", f"KUBE-NODEPORT-{ours}", "KUBE-SERVICES"]
