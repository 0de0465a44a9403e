"""What another program flushed or edited is found by the next full check and repaired, without touching the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kproxy.kernel.iptables import HostTables
from kproxy.model.plans import Family, Protocol
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings
from kproxy.modes.xtables.chain_writer import READ_AT_LEAST
from tests.fakes.iptables import FakeTables

JUMP = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
LAST = '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain"'
EDITS = {
    "the nat table is flushed": "*nat\n-F PREROUTING\n-F OUTPUT\n:KUBE-SERVICES - [0:0]\nCOMMIT\n",
    "the filter table is flushed": "*filter\n-F INPUT\n-F FORWARD\n-F OUTPUT\n:KUBE-FORWARD - [0:0]\nCOMMIT\n",
    "a jump is missing": f"*nat\n-D OUTPUT {JUMP}\nCOMMIT\n",
    "a jump is there twice": f"*nat\n-A OUTPUT {JUMP}\nCOMMIT\n",
    "a jump is of an older release": '*filter\n-A FORWARD -m comment --comment "kubernetes service portals" '
    "-j KUBE-SERVICES\nCOMMIT\n",
    "a Service's line is there twice": "*nat\n-I KUBE-SERVICES -d 10.96.0.121/32 -p tcp -m comment "
    '--comment "default/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-{web}\nCOMMIT\n',
    "a foreign line in a shared chain": "*nat\n-A KUBE-NODEPORTS -p tcp -m tcp --dport 30000 -j ACCEPT\nCOMMIT\n",
    "a line after the one that must be last": "*nat\n-A KUBE-SERVICES -d 10.9.9.9/32 -j ACCEPT\nCOMMIT\n",
    "the last line is there twice": f"*nat\n-I KUBE-SERVICES {LAST} -m addrtype --dst-type LOCAL "
    "-j KUBE-NODEPORTS\nCOMMIT\n",
    "the last line is gone": f"*nat\n-D KUBE-SERVICES {LAST} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n",
    "the last line is of other settings": f"*nat\n-A KUBE-SERVICES -d 192.0.2.9/32 {LAST} -j KUBE-NODEPORTS\nCOMMIT\n",
    "a Service's chain is empty": "*nat\n:KUBE-SVC-{web} - [0:0]\nCOMMIT\n",
    "a Service's chain has a line too many": "*nat\n-A KUBE-SVC-{web} -j ACCEPT\nCOMMIT\n",
    "the node's own chain is changed": "*nat\n-I KUBE-POSTROUTING -j RETURN\nCOMMIT\n",
    "the guard of loopback is gone": "*filter\n-F KUBE-FIREWALL\nCOMMIT\n",
    "a chain of no Service": "*nat\n:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]\n:KUBE-XLB-AAAAAAAAAAAAAAAA - [0:0]\n"
    "-A KUBE-XLB-AAAAAAAAAAAAAAAA -j KUBE-SEP-AAAAAAAAAAAAAAAA\n"
    "-A KUBE-SERVICES -j KUBE-XLB-AAAAAAAAAAAAAAAA\nCOMMIT\n",
}


def edit(text: str, saved: str) -> str:
    """An edit with the name of the chain of Service web put in."""
    line = next(
        line for line in saved.splitlines() if '"default/web:http cluster IP"' in line and "-A KUBE-SVC" in line
    )
    return text.replace("{web}", line.split()[1].removeprefix("KUBE-SVC-"))


@pytest.fixture
def plans(plan: Callable[..., Any]) -> dict[Any, Any]:
    made = (plan("web", node_port=30080), plan("dns", Protocol.UDP, affinity_seconds=60), plan("none", cluster=()))
    return {p.key: p for p in made}


@pytest.fixture
def masquerading() -> Settings:
    return Settings(Family.IPV4, masquerade_all=True)


@pytest.mark.parametrize("text", EDITS.values(), ids=EDITS)
def test_edits_are_repaired(text: str, plans: Any, masquerading: Settings, shape: Any) -> None:
    tables = FakeTables()
    dataplane = IptablesDataplane(masquerading, tables)
    dataplane.apply(plans, None)
    before = tables.save()
    tables.restore(edit(text, before))
    assert shape(tables.save()) != shape(before)
    outcome = dataplane.apply(plans, None)
    assert outcome.repaired
    assert shape(tables.save()) == shape(before)
    assert not dataplane.apply(plans, None).repaired


def test_edits_are_repaired_in_the_real_kernel(
    real: HostTables, plans: Any, masquerading: Settings, shape: Any
) -> None:
    dataplane = IptablesDataplane(masquerading, real)
    dataplane.apply(plans, None)
    before = real.save()
    for name, text in EDITS.items():
        real.restore(edit(text, before))
        assert dataplane.apply(plans, None).repaired, name
        assert shape(real.save()) == shape(before), name
    assert dataplane.apply(plans, None).transactions == 0


def test_a_small_repair_leaves_the_rest_alone(plans: Any, masquerading: Settings) -> None:
    tables = FakeTables()
    dataplane = IptablesDataplane(masquerading, tables)
    dataplane.apply(plans, None)
    tables.restore(edit(EDITS["a Service's chain is empty"], tables.save()))
    dataplane.apply(plans, None)
    declared = [line for line in tables.restores[-1].splitlines() if line.startswith(":")]
    assert len(declared) == 1
    assert declared[0].startswith(":KUBE-SVC-")


def test_jumps_are_put_at_the_head_in_order(masquerading: Settings) -> None:
    tables = FakeTables()
    tables.restore("*filter\n-A INPUT -s 192.0.2.7/32 -j DROP\nCOMMIT\n")
    IptablesDataplane(masquerading, tables).apply({}, None)
    targets = [line.split()[-1] for line in tables.save().splitlines() if line.startswith("-A INPUT")]
    assert targets == ["KUBE-FIREWALL", "KUBE-PROXY-FIREWALL", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "DROP"]


class Told:
    """A drift detector that knows what the test tells it."""

    def __init__(self, proves: bool) -> None:
        self.proves = proves
        self.edited = False

    def reading(self) -> None:
        self.edited = False

    def wrote(self) -> None:
        """Our own writes are no drift."""

    def changed(self) -> bool:
        return self.edited


def test_tables_that_are_proved_unchanged_are_read_once_an_hour(plans: Any, masquerading: Settings) -> None:
    now = 0.0
    tables, drift = FakeTables(), Told(proves=True)
    dataplane = IptablesDataplane(masquerading, tables, drift, lambda: now)
    dataplane.apply({}, None)
    dataplane.apply(plans, None)
    dataplane.apply(plans, None)
    assert tables.saves == 1
    now = READ_AT_LEAST
    dataplane.apply(plans, None)
    assert tables.saves == 2


def test_drift_is_noticed_and_repaired(plans: Any, masquerading: Settings, shape: Any) -> None:
    tables, drift = FakeTables(), Told(proves=True)
    dataplane = IptablesDataplane(masquerading, tables, drift, lambda: 0.0)
    dataplane.apply(plans, None)
    before = shape(tables.save())
    tables.flush("nat")
    drift.edited = True
    assert dataplane.drifted()
    assert dataplane.apply(plans, None).repaired
    assert not dataplane.drifted()
    assert shape(tables.save()) == before


def test_a_likelihood_does_not_save_the_reading(plans: Any, masquerading: Settings) -> None:
    tables = FakeTables()
    dataplane = IptablesDataplane(masquerading, tables, Told(proves=False), lambda: 0.0)
    dataplane.apply(plans, None)
    dataplane.apply(plans, None)
    assert tables.saves == 2


def test_a_change_of_flushed_tables_repairs_them(plans: Any, masquerading: Settings, plan: Any, shape: Any) -> None:
    """A change is refused when its chains are gone; that is no reason to reject its Service."""
    tables = FakeTables()
    dataplane = IptablesDataplane(masquerading, tables)
    dataplane.apply(plans, None)
    tables.flush("nat")
    new = plan("new")
    outcome = dataplane.apply(plans | {new.key: new}, [new.key])
    assert not outcome.rejected
    fresh = FakeTables()
    IptablesDataplane(masquerading, fresh).apply(plans | {new.key: new}, None)
    assert shape(tables.save()) == shape(fresh.save())
