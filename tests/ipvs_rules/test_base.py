"""The rules of a node in IPVS mode, which do not depend on its Services: what the kube-proxy cases do not show."""

from __future__ import annotations

import re

import pytest

from kproxy.model.plans import Family
from kproxy.modes.iptables.render import text
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.rules import render_base
from kproxy.modes.xtables.node_rules import repair_base
from kproxy.modes.xtables.rules import Base
from kproxy.modes.xtables.saved import Saved, as_saved
from tests.ipvs_rules.plans import node_settings

V4, V6 = Family.IPV4, Family.IPV6
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=lambda f: f.value)
SETS = re.compile(r"--match-set (\S+) (\S+)")


def all_sets(family: Family) -> dict[str, str]:
    return dict(names.sets(family))


def rules(base: Base) -> list[tuple[str, str, str]]:
    """Table, chain, rule of every rule."""
    parts = (base.jumps, base.owned, base.shared, base.joint)
    return [(table, chain, rule) for part in parts for (table, chain), lines in part.items() for rule in lines]


@FAMILIES
@pytest.mark.parametrize("filled", [False, True])
def test_rules_match_on_sets_that_exist_with_as_many_parts_as_the_set_has(family: Family, filled: bool) -> None:
    known = all_sets(family)
    found = [
        match
        for _, _, rule in rules(render_base(node_settings(family), known if filled else ()))
        for match in SETS.findall(rule)
    ]
    assert found
    for name, how in found:
        parts = 1 if known[name] in ("hash:ip", "bitmap:port") else len(known[name].split(","))
        assert len(how.split(",")) == parts, name


@FAMILIES
def test_every_set_is_matched_by_some_rule(family: Family) -> None:
    known = all_sets(family)
    matched = {
        name for _, _, rule in rules(render_base(node_settings(family), known)) for name, _ in SETS.findall(rule)
    }
    assert matched == set(known)


@FAMILIES
@pytest.mark.parametrize("filled", [False, True])
def test_every_jump_has_an_existing_target(family: Family, filled: bool) -> None:
    base = render_base(node_settings(family), all_sets(family) if filled else ())
    chains = {*base.owned, *base.shared}
    for table, _, rule in rules(base):
        target = rule.rpartition("-j ")[2].split()[0]
        assert (table, target) in chains or not target.startswith("KUBE-")


@FAMILIES
def test_rules_of_empty_sets_are_left_out(family: Family) -> None:
    """But for those of the access filter and of health checks, as kube-proxy has them."""
    always = {("filter", names.IPVS_FILTER), ("filter", names.NODE_PORT)}
    found = {
        (table, chain) for table, chain, rule in rules(render_base(node_settings(family), ())) if SETS.search(rule)
    }
    assert found == always


@FAMILIES
def test_a_set_that_fills_up_adds_its_own_rules_only(family: Family) -> None:
    empty = rules(render_base(node_settings(family), ()))
    for name in all_sets(family):
        added = [rule for rule in rules(render_base(node_settings(family), {name})) if rule not in empty]
        assert all(f"--match-set {name} " in rule for _, _, rule in added)


@pytest.mark.parametrize(("fully", "tail"), [(True, " --random-fully"), (False, "")])
def test_the_mark_is_set_masqueraded_and_cleared(fully: bool, tail: str) -> None:
    base = render_base(node_settings(masquerade_mark=1 << 20, random_fully=fully), ())
    assert base.owned["nat", "KUBE-MARK-MASQ"] == ("-j MARK --set-xmark 0x100000/0x100000",)
    assert base.owned["nat", "KUBE-POSTROUTING"] == (
        "-m mark ! --mark 0x100000/0x100000 -j RETURN",
        "-j MARK --set-xmark 0x100000/0x0",
        f'-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE{tail}',
    )


# ---------------------------------------------------------------- held against what a node has


def saved(base: Base, family: Family) -> str:
    """The text that iptables-save prints of a node with this base."""
    lines = []
    for line in text(base, ()).splitlines():
        if not line.startswith("-A "):
            lines.append(line)
            continue
        add, chain, rule = line.split(" ", 2)
        lines.append(f"{add} {chain} {as_saved(rule, family)}")
    return "\n".join(lines) + "\n"


@FAMILIES
def test_a_node_that_has_it_all_needs_nothing(family: Family) -> None:
    base = render_base(node_settings(family), all_sets(family))
    sections, bodies = repair_base(Saved(saved(base, family)), base, family)
    assert sections == ()
    assert bodies == {("filter", names.IPVS_OUT_FILTER): []}


@pytest.mark.parametrize("chain", ["INPUT", "FORWARD", "OUTPUT"])
def test_a_duplicate_jump_is_deleted_once(chain: str) -> None:
    """Whichever comment kube-proxy gives it."""
    base = render_base(node_settings(), ())
    for jump in base.jumps["filter", chain]:
        doubled = saved(base, V4).replace(f"-A {chain} {jump}\n", f"-A {chain} {jump}\n" * 2)
        sections, _ = repair_base(Saved(doubled), base, V4)
        assert [part.unlink for section in sections for part in section.parts] == [(f"-D {chain} {jump}",)]
