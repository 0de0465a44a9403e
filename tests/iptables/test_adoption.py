"""A node that kube-proxy programmed is taken over without a write; what is stale is deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kproxy.errors import KernelError
from kproxy.kernel.iptables import Backend, HostTables
from kproxy.model.plans import Family, Frontend, Protocol
from kproxy.modes.iptables.apply import IptablesDataplane
from tests.fakes.iptables import FakeTables


@pytest.fixture(params=list(Family))
def family(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_the_same_state_is_adopted_without_a_write(taken_over: Callable[..., Any], family: Family) -> None:
    text, settings, plans = taken_over(family)
    tables = FakeTables(family)
    tables.restore(text)
    outcome = IptablesDataplane(settings, tables).apply(plans, None)
    assert (len(tables.restores), outcome.transactions, outcome.repaired) == (1, 0, False)
    assert outcome.rules_total == {table: rules(text, table) for table in ("filter", "nat")}


def rules(text: str, table: str) -> int:
    return text.partition(f"*{table}\n")[2].partition("COMMIT\n")[0].count("\n-A KUBE-")


def test_its_text_is_adopted_as_saved_by_the_real_tools(taken_over: Callable[..., Any], real: HostTables) -> None:
    text, settings, plans = taken_over(Family.IPV4)
    # nfacct counters must be made by the nfacct command, which is not everywhere.
    settings = replace(settings, nfacct=False)
    lines = [line for line in text.splitlines() if "localhost_nps_accepted_pkts" not in line]
    counted = "-m nfacct --nfacct-name  ct_state_invalid_dropped_pkts "
    real.restore("".join(f"{line}\n" for line in lines).replace(counted, ""))
    assert IptablesDataplane(settings, real).apply(plans, None).transactions == 0


def test_after_adoption_a_change_writes_only_itself(taken_over: Callable[..., Any], plan: Callable[..., Any]) -> None:
    text, settings, plans = taken_over(Family.IPV4)
    tables = FakeTables()
    tables.restore(text)
    dataplane = IptablesDataplane(settings, tables)
    dataplane.apply(plans, None)
    new = plan("new")
    dataplane.apply(plans | {new.key: new}, [new.key])
    assert len(tables.restores) == 2
    assert all("default/new:http" in line for line in tables.restores[-1].splitlines() if line.startswith("-I"))


def test_an_adopted_service_can_be_removed(taken_over: Callable[..., Any], real: HostTables) -> None:
    text, settings, plans = taken_over(Family.IPV4)
    settings = replace(settings, nfacct=False)
    lines = [line for line in text.splitlines() if "nfacct" not in line]
    real.restore("".join(f"{line}\n" for line in lines))
    dataplane = IptablesDataplane(settings, real)
    dataplane.apply(plans, None)
    outcome = dataplane.apply({}, list(plans))
    assert (outcome.transactions, outcome.repaired) == (1, False)
    assert "KUBE-SVC" not in real.save()


def test_rules_of_services_that_are_gone_are_deleted(taken_over: Callable[..., Any]) -> None:
    text, settings, plans = taken_over(Family.IPV4)
    tables = FakeTables()
    tables.restore(text)
    kept = {key: plan for key, plan in plans.items() if key.name == "empty"}
    outcome = IptablesDataplane(settings, tables).apply(kept, None)
    saved = tables.save()
    assert not any(prefix in saved for prefix in ("KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-"))
    assert "default/empty:http has no endpoints" in saved
    # TCP clients of a Service that went notice by themselves.
    assert outcome.abandoned == (Frontend("10.96.10.2", 53, Protocol.UDP),)


def test_frontends_that_a_failed_check_deleted_are_reported_by_the_next(taken_over: Callable[..., Any]) -> None:
    """Stale flows to it must go, and it is not in the kernel any more to be found."""
    text, settings, plans = taken_over(Family.IPV4)
    tables = FakeTables()
    tables.restore(text)
    tables.restore("".join(f"*nat\n:KUBE-SEP-{n:016} - [0:0]\nCOMMIT\n" for n in range(700)))
    tables.fail_at = {4}
    dataplane = IptablesDataplane(settings, tables)
    kept = {key: plan for key, plan in plans.items() if key.name == "empty"}
    with pytest.raises(KernelError):
        dataplane.apply(kept, None)
    assert "-A KUBE-SERVICES -d 10.96.10.2" not in tables.save(), "the rule went before the failure"
    assert dataplane.apply(kept, None).abandoned == (Frontend("10.96.10.2", 53, Protocol.UDP),)
    assert dataplane.apply(kept, None).abandoned == ()


@pytest.mark.parametrize("backend", Backend)
def test_what_others_wrote_stays(taken_over: Callable[..., Any], backend: Backend) -> None:
    _, settings, plans = taken_over(Family.IPV4)
    others = (
        "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n"
        "*nat\n:KUBE-MARK-DROP - [0:0]\n:CNI-1 - [0:0]\n-A POSTROUTING -s 10.244.1.0/24 -j CNI-1\n"
        "-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000\n-A CNI-1 -j MASQUERADE\nCOMMIT\n"
        "*filter\n:KUBE-FIREWALL - [0:0]\n:DOCKER - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A FORWARD -j DOCKER\n"
        "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP\n-A FORWARD -i eth1 -j ACCEPT\nCOMMIT\n"
    )
    tables = FakeTables(Family.IPV4, backend)
    tables.restore(others)
    before = tables.save().splitlines()
    dataplane = IptablesDataplane(settings, tables)
    dataplane.apply(plans, None)
    dataplane.apply({}, None)
    after = tables.save().splitlines()
    assert [line for line in after if line in before and line.startswith("-A")] == [
        line for line in before if line.startswith("-A")
    ]
    assert {line for line in before if line.startswith(":")} <= set(after)
