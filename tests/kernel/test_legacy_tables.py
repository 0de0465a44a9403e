"""The size of a legacy table reveals edits, and asking for it never loads the table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kproxy.kernel.legacy_tables import loaded, table_info
from kproxy.model.plans import Family

TOOLS = [(Family.IPV4, "iptables-legacy"), (Family.IPV6, "ip6tables-legacy")]


@pytest.mark.parametrize("family", Family)
def test_a_question_does_not_load_a_table(netns: None, family: Family) -> None:
    assert table_info(family, "nat") is None
    assert "nat" not in loaded(family)


@pytest.mark.parametrize(("family", "tool"), TOOLS)
def test_the_size_follows_the_rules(shell: Callable[..., str], family: Family, tool: str) -> None:
    shell(f"{tool} -t nat -N KUBE-SERVICES")
    assert loaded(family) == {"nat"}
    before = table_info(family, "nat")
    assert before is not None
    assert table_info(family, "filter") is None

    shell(f"{tool} -t nat -A KUBE-SERVICES -j RETURN")
    more = table_info(family, "nat")
    assert more is not None
    assert more.entries == before.entries + 1
    assert more.size > before.size
    assert more.chains == before.chains

    shell(f"{tool} -t nat -I PREROUTING -j KUBE-SERVICES")
    jump = table_info(family, "nat")
    assert jump is not None
    assert jump.chains != more.chains

    shell(f"{tool} -t nat -F")
    shell(f"{tool} -t nat -X")
    empty = table_info(family, "nat")
    assert empty is not None
    assert empty.entries < before.entries


def test_the_families_have_tables_of_their_own(shell: Callable[..., str]) -> None:
    shell("iptables-legacy -t mangle -L")
    assert (loaded(Family.IPV4), loaded(Family.IPV6)) == (frozenset({"mangle"}), frozenset())
