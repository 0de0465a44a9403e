"""After a change of mode the chains of the other mode are deleted, and only once the new rules are complete."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings
from kproxy.modes.xtables.rules import GUARD
from tests.fakes.iptables import FakeTables

IPVS = (
    "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODE-PORT - [0:0]\n:KUBE-LOAD-BALANCER - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n"
    '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES\n'
    "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT\n"
    "-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\n"
    "-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ\nCOMMIT\n"
    "*filter\n:KUBE-IPVS-FILTER - [0:0]\n:KUBE-NODE-PORT - [0:0]\n"
    '-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER\n'
    "-A KUBE-IPVS-FILTER -m set --match-set KUBE-IPVS-IPS dst -j REJECT\nCOMMIT\n"
)
USERSPACE = (
    "*nat\n:KUBE-PORTALS-CONTAINER - [0:0]\n:KUBE-PORTALS-HOST - [0:0]\n"
    '-A PREROUTING -m comment --comment "handle ClusterIPs" -j KUBE-PORTALS-CONTAINER\n'
    "-A KUBE-PORTALS-CONTAINER -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 40001\nCOMMIT\n"
    "*filter\n:KUBE-NODEPORT-NON-LOCAL - [0:0]\n"
    '-A INPUT -m comment --comment "Ensure that non-local NodePort traffic can flow" -j KUBE-NODEPORT-NON-LOCAL\n'
    "COMMIT\n"
)
OTHERS = "*nat\n:CNI-1 - [0:0]\n-A POSTROUTING -j CNI-1\n-A CNI-1 -j KUBE-LOAD-BALANCER\nCOMMIT\n"


@pytest.mark.parametrize("left", [IPVS, USERSPACE, IPVS + USERSPACE], ids=["ipvs", "userspace", "both"])
def test_chains_of_another_mode_are_deleted(left: str, plan: Any, settings: Settings) -> None:
    plans = {p.key: p for p in (plan("web"), plan("none", cluster=()))}
    expected, tables = FakeTables(), FakeTables()
    IptablesDataplane(settings, expected).apply(plans, None)
    tables.restore(left)
    dataplane = IptablesDataplane(settings, tables)
    dataplane.apply(plans, None)
    assert sorted(tables.save().splitlines()) == sorted(expected.save().splitlines())
    assert dataplane.apply(plans, None).transactions == 0


def test_they_are_deleted_after_the_new_rules_are_complete(plan: Any, settings: Settings) -> None:
    tables = FakeTables()
    tables.restore(IPVS)
    web = plan("web")
    IptablesDataplane(settings, tables).apply({web.key: web}, None)
    texts = [restore if isinstance(restore, str) else restore.decode() for restore in tables.restores]
    first_gone = next(i for i, text in enumerate(texts) if "-X KUBE-NODE-PORT" in text)
    linked = next(i for i, text in enumerate(texts) if "default/web:http cluster IP" in text)
    assert linked < first_gone


def test_chains_that_others_jump_to_stay(plan: Any, settings: Settings) -> None:
    tables = FakeTables()
    tables.restore(IPVS + OTHERS)
    web = plan("web")
    IptablesDataplane(settings, tables).apply({web.key: web}, None)
    assert ":KUBE-LOAD-BALANCER" in tables.save()
    assert "KUBE-IPVS-FILTER" not in tables.save()


def test_the_guard_of_localhost_stays_with_this_mode(plan: Any, settings: Settings) -> None:
    tables = FakeTables()
    tables.restore(f"*filter\n:KUBE-FIREWALL - [0:0]\n-A KUBE-FIREWALL {GUARD}\n-A KUBE-FIREWALL -j DROP\nCOMMIT\n")
    web = plan("web")
    IptablesDataplane(settings, tables).apply({web.key: web}, None)
    assert sum(line.startswith("-A KUBE-FIREWALL") for line in tables.save().splitlines()) == 2
