"""Cleanup deletes what any mode of kube-proxy or kproxy ever wrote, and nothing of other programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kproxy.kernel.iptables import HostTables
from kproxy.model.plans import Family
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.xtables.cleanup import clean
from kproxy.modes.xtables.names import NODE_CHAINS
from kproxy.modes.xtables.rules import GUARD
from tests.fakes.iptables import FakeTables

OTHERS = (
    "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"
    "*nat\n:KUBE-MARK-DROP - [0:0]\n:CNI-1 - [0:0]\n-A POSTROUTING -s 10.244.1.0/24 -j CNI-1\nCOMMIT\n"
    "*filter\n:DOCKER - [0:0]\n-A FORWARD -j DOCKER\nCOMMIT\n"
)


def without_comments(text: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("#"))


def test_the_rules_of_kube_proxy_are_deleted(taken_over: Callable[..., Any]) -> None:
    tables = FakeTables()
    tables.restore(OTHERS)
    before = tables.save()
    tables.restore(taken_over(Family.IPV4)[0])
    clean(tables)
    assert tables.save() == before


def test_our_rules_are_deleted_from_the_real_kernel(real: HostTables, plan: Any, settings: Any) -> None:
    real.restore(OTHERS)
    before = without_comments(real.save())
    plans = {p.key: p for p in (plan("web", node_port=30080), plan("none", cluster=()))}
    dataplane = IptablesDataplane(settings, real)
    dataplane.apply(plans, None)
    clean(real)
    assert without_comments(real.save()) == before
    dataplane.apply(plans, None)
    assert "default/web:http cluster IP" in real.save()


def test_chains_of_every_mode_are_deleted() -> None:
    declared = "".join(f":{chain} - [0:0]\n" for chain in sorted(NODE_CHAINS))
    tables = FakeTables()
    for table in ("nat", "filter", "mangle"):
        tables.restore(
            f"*{table}\n{declared}-A OUTPUT -j KUBE-NODE-PORT\n-A KUBE-NODE-PORT -j KUBE-MARK-MASQ\nCOMMIT\n"
        )
    clean(tables)
    assert "KUBE-" not in tables.save()


def test_nothing_is_written_where_nothing_is_left() -> None:
    tables = FakeTables()
    tables.restore(OTHERS)
    assert clean(tables).transactions == 0
    assert len(tables.restores) == 1


@pytest.mark.parametrize("theirs", ["-m mark --mark 0x8000/0x8000 -j DROP", "-s 192.0.2.1/32 -j DROP"])
def test_the_kubelets_firewall_stays(theirs: str) -> None:
    tables = FakeTables()
    tables.restore(
        f"*filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A KUBE-FIREWALL {GUARD}\n"
        f"-A KUBE-FIREWALL {theirs}\nCOMMIT\n"
    )
    clean(tables)
    rules = [line for line in tables.save().splitlines() if line.startswith("-A")]
    assert rules == ["-A INPUT -j KUBE-FIREWALL", f"-A KUBE-FIREWALL {theirs}"]


def test_thousands_of_chains_are_deleted_in_small_restores() -> None:
    chains = "".join(f":KUBE-SEP-{n:016} - [0:0]\n:KUBE-SVC-{n:016} - [0:0]\n" for n in range(1000))
    rules = "".join(f"-A KUBE-SVC-{n:016} -j KUBE-SEP-{n:016}\n" for n in range(1000))
    tables = FakeTables()
    tables.restore(f"*nat\n{chains}{rules}COMMIT\n")
    assert clean(tables).transactions == 4
    assert "KUBE-" not in tables.save()
