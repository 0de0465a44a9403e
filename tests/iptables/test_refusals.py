"""One Service that the kernel refuses keeps nobody else out; a kernel that refuses the node's rules is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kproxy.errors import CommandError, KernelError
from kproxy.kernel.iptables import Backend, HostTables
from kproxy.model.plans import Family, ServicePlan
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings
from tests.fakes.iptables import FakeTables
from tests.plans import Plans


@pytest.fixture
def tables(request: pytest.FixtureRequest) -> FakeTables:
    return FakeTables(Family.IPV4, request.param)


@pytest.fixture
def plans(plan: Callable[..., ServicePlan]) -> Plans:
    return {p.key: p for p in (plan(name, node_port=30000 + n) for n, name in enumerate("abcdefg"))}


BOTH = pytest.mark.parametrize("tables", Backend, indirect=True)


def refuse(*names: str) -> Callable[[str, str, str], bool]:
    """The kernel takes no rule that names one of these Services."""
    return lambda table, chain, rule: any(f"default/{name}:" in rule for name in names)


@BOTH
@pytest.mark.parametrize("bad", ["a", "d", "g", "abc", "aceg"])
def test_refused_services_are_named_and_the_others_are_programmed(
    tables: FakeTables, plans: Plans, settings: Settings, bad: str, shape: Any
) -> None:
    tables.refuse = refuse(*bad)
    outcome = IptablesDataplane(settings, tables).apply(plans, None)
    assert {key.name for key in outcome.rejected} == set(bad)
    assert len(outcome.refusals) >= len(bad)
    for key, why in outcome.rejected.items():
        assert str(key) in why
        assert "\n" not in why
    good = FakeTables(Family.IPV4, tables.backend)
    IptablesDataplane(settings, good).apply({k: p for k, p in plans.items() if k.name not in bad}, None)
    assert shape(tables.save()) == shape(good.save())


def test_nft_names_the_rule(plans: Plans, settings: Settings) -> None:
    tables = FakeTables()
    tables.refuse = lambda table, chain, rule: "--dport 30003 " in rule
    [why] = IptablesDataplane(settings, tables).apply(plans, None).rejected.values()
    assert "--dport 30003" in why


@BOTH
def test_a_refused_change_leaves_what_was_there(
    tables: FakeTables, plans: Plans, settings: Settings, plan: Callable[..., ServicePlan], shape: Any
) -> None:
    dataplane = IptablesDataplane(settings, tables)
    dataplane.apply(plans, None)
    before = shape(tables.save())
    changed, other = plan("a", node_port=30000, cluster=(1, 2, 3)), plan("z")
    tables.refuse = lambda table, chain, rule: "default/a:http -> 10.244.1.3" in rule
    outcome = dataplane.apply(plans | {changed.key: changed}, [changed.key])
    assert set(outcome.rejected) == {changed.key}
    assert shape(tables.save()) == before
    outcome = dataplane.apply(plans | {changed.key: changed, other.key: other}, [changed.key, other.key])
    assert set(outcome.rejected) == {changed.key}, "still refused, and reported"
    assert "default/z:http" in tables.save()


@BOTH
def test_a_refused_service_is_tried_again_by_a_full_check(
    tables: FakeTables, plans: Plans, settings: Settings, shape: Any
) -> None:
    dataplane = IptablesDataplane(settings, tables)
    tables.refuse = refuse("b", "c")
    dataplane.apply(plans, None)
    tables.refuse = refuse()
    reads = len(tables.restores)
    assert set(dataplane.apply(plans, []).rejected) == {k for k in plans if k.name in "bc"}
    assert len(tables.restores) == reads, "a refused plan is not tried at every change"
    assert dataplane.apply(plans, None).rejected == {}
    fresh = FakeTables(Family.IPV4, tables.backend)
    IptablesDataplane(settings, fresh).apply(plans, None)
    assert shape(tables.save()) == shape(fresh.save())


@BOTH
def test_a_refused_service_that_is_changed_or_deleted_is_no_longer_refused(
    tables: FakeTables, plans: Plans, settings: Settings, plan: Callable[..., ServicePlan]
) -> None:
    dataplane = IptablesDataplane(settings, tables)
    tables.refuse = lambda table, chain, rule: "--dport 30001 " in rule
    [key] = dataplane.apply(plans, None).rejected
    better = plans | {key: plan(key.name, node_port=31111)}
    assert dataplane.apply(better, [key]).rejected == {}
    [key] = dataplane.apply(plans, [key]).rejected
    assert dataplane.apply({k: p for k, p in plans.items() if k != key}, [key]).rejected == {}


@BOTH
def test_the_nodes_own_rules_are_needed(tables: FakeTables, plans: Plans, settings: Settings) -> None:
    tables.refuse = lambda table, chain, rule: "MASQUERADE" in rule
    with pytest.raises(KernelError, match=r"node's own rules|MASQUERADE") as failure:
        IptablesDataplane(settings, tables).apply(plans, None)
    assert failure.value.refusals


@BOTH
def test_a_host_that_is_busy_is_nobodys_fault(tables: FakeTables, plans: Plans, settings: Settings) -> None:
    tables.fail_at = {2}
    dataplane = IptablesDataplane(settings, tables)
    with pytest.raises(CommandError, match="lock"):
        dataplane.apply(plans, None)
    outcome = dataplane.apply(plans, list(plans))
    assert outcome.rejected == {}, "whatever is asked for, everything is looked at after a failure"
    assert all(f"default/{key.name}:http cluster IP" in tables.save() for key in plans)


def test_a_stale_chain_that_others_jump_to_stays_and_the_rest_is_deleted(plans: Plans, settings: Settings) -> None:
    tables = FakeTables()
    tables.restore(
        "*nat\n:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]\n:KUBE-SEP-BBBBBBBBBBBBBBBB - [0:0]\n:MINE - [0:0]\n"
        "-A MINE -j KUBE-SEP-AAAAAAAAAAAAAAAA\nCOMMIT\n"
    )
    outcome = IptablesDataplane(settings, tables).apply(plans, None)
    assert outcome.rejected == {}
    assert ":KUBE-SEP-AAAAAAAAAAAAAAAA " in tables.save()
    assert ":KUBE-SEP-BBBBBBBBBBBBBBBB " not in tables.save()


def test_the_real_kernel_refuses_one_service(real: HostTables, plans: Plans, plan: Any, settings: Settings) -> None:
    """A port of 70000 is refused by the tool at its line, DNAT to another family's address by the parser as well."""
    bad = plan("bad", port=70000)
    outcome = IptablesDataplane(settings, real).apply(plans | {bad.key: bad}, None)
    assert set(outcome.rejected) == {bad.key}
    assert "70000" in outcome.rejected[bad.key]
    assert "default/bad:" not in real.save()
    assert "default/a:http cluster IP" in real.save()


def test_the_real_kernel_refuses_at_commit(real: HostTables, plans: Plans, plan: Any, settings: Settings) -> None:
    """A negative timeout passes the parser of no version; an unknown counter passes it, and the kernel refuses it."""
    counted = Settings(Family.IPV4, nfacct=True, tcp_be_liberal=True)
    outcome = IptablesDataplane(counted, real).apply(plans, None)
    assert {key.name for key in outcome.rejected} == set("abcdefg"), "each has a node port, counted in no counter"
    assert "KUBE-SVC-" not in real.save()
    assert IptablesDataplane(settings, real).apply(plans, None).rejected == {}
