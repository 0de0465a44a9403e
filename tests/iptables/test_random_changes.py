"""Whatever changes in whatever order, the kernel ends as after writing everything at once."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import KernelError
from kproxy.kernel.iptables import Backend
from kproxy.model.plans import Family
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings
from kproxy.modes.xtables import reconcile
from tests.fakes.iptables import FakeTables
from tests.plans import Plans, changed

Shape = Callable[[str], dict[tuple[str, str], list[str]]]

BACKENDS = st.sampled_from(list(Backend))
# Edits that another program could make; some leave the tables in a state in which our next change would be refused.
EDITS = (
    "*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n",
    "*nat\n:KUBE-POSTROUTING - [0:0]\nCOMMIT\n",
    "*nat\n-F PREROUTING\nCOMMIT\n",
    "*nat\n-A KUBE-SERVICES -d 10.96.9.9/32 -p udp -m udp --dport 53 -j KUBE-MARK-MASQ\nCOMMIT\n",
    "*nat\n-A KUBE-SERVICES -j KUBE-NODEPORTS\nCOMMIT\n",
    "*nat\n:KUBE-SVC-STALESTALESTALE2 - [0:0]\n-A KUBE-SVC-STALESTALESTALE2 -j KUBE-MARK-MASQ\nCOMMIT\n",
    '*nat\n-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES\nCOMMIT\n',
    "*filter\n:KUBE-FORWARD - [0:0]\n-A KUBE-FORWARD -j DROP\nCOMMIT\n",
    "*filter\n-F INPUT\n-F OUTPUT\nCOMMIT\n",
    "*filter\n:KUBE-EXTERNAL-SERVICES - [0:0]\nCOMMIT\n",
)


def fresh(settings: Settings, plans: Plans, backend: Backend) -> str:
    """The tables of a node on which the plans are the first to be written."""
    tables = FakeTables(Family.IPV4, backend)
    outcome = IptablesDataplane(settings, tables).apply(plans, None)
    assert not outcome.rejected
    return tables.save()


@pytest.fixture(params=[(1, 0), (4, 2), (600, 128)], ids=["alone", "cut", "together"])
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small limits, so that few ports are as many: chains in a restore, rules to take out of a chain."""
    chains, rules = request.param
    monkeypatch.setattr("kproxy.modes.xtables.chain_writer.LIMITS", dict.fromkeys(Backend, chains))
    monkeypatch.setattr(reconcile, "REWRITE_ABOVE", rules)


@pytest.mark.usefixtures("limits")
class TestChanges:
    @given(data=st.data(), backend=BACKENDS)
    def test_changes_end_as_writing_everything_at_once(
        self, data: Any, backend: Backend, clusters: Any, shape: Shape, settings: Settings
    ) -> None:
        tables = FakeTables(Family.IPV4, backend)
        dataplane = IptablesDataplane(settings, tables)
        dataplane.apply({}, None)
        held: Plans = {}
        for wanted in data.draw(st.lists(clusters, min_size=1, max_size=4)):
            extra = data.draw(st.sets(st.sampled_from(sorted({*held, *wanted}))) if held or wanted else st.just(set()))
            reads = tables.saves
            outcome = dataplane.apply(wanted, changed(held, wanted) | extra)
            assert (outcome.rejected, outcome.refusals) == ({}, [])
            assert tables.saves == reads, "a change must not read the kernel"
            held = wanted
            assert shape(tables.save()) == shape(fresh(settings, wanted, backend))
        assert dataplane.apply(held, None).transactions == 0
        assert outcome.rules_total == dataplane.apply(held, None).rules_total

    @given(data=st.data(), backend=BACKENDS)
    def test_edits_and_failures_are_repaired_by_the_next_check(
        self, data: Any, backend: Backend, clusters: Any, shape: Shape, settings: Settings
    ) -> None:
        tables = FakeTables(Family.IPV4, backend)
        dataplane = IptablesDataplane(settings, tables)
        tables.fail_at = data.draw(st.sets(st.integers(1, 8), max_size=3))
        held: Plans = {}
        for wanted in data.draw(st.lists(clusters, min_size=1, max_size=4)):
            for edit in data.draw(st.lists(st.sampled_from(EDITS), max_size=2)):
                with_chains(tables, edit)
            touched = data.draw(st.sampled_from([None, changed(held, wanted)]))
            with contextlib.suppress(KernelError):
                dataplane.apply(wanted, touched)
            held = wanted
        tables.fail_at = set()
        outcome = dataplane.apply(held, None)
        assert not outcome.rejected
        assert shape(tables.save()) == shape(fresh(settings, held, backend))
        again = dataplane.apply(held, None)
        assert (again.transactions, again.repaired) == (0, False)

    @given(data=st.data(), backend=BACKENDS)
    def test_new_settings_rewrite_what_depends_on_them(
        self, data: Any, backend: Backend, clusters: Any, shape: Shape
    ) -> None:
        variants = [
            Settings(Family.IPV4, **fields)
            for fields in ({}, {"masquerade_mark": 1 << 5}, {"comments": False}, {"masquerade_all": True})
        ]
        tables = FakeTables(Family.IPV4, backend)
        dataplane = IptablesDataplane(variants[0], tables)
        wanted = data.draw(clusters)
        for settings in data.draw(st.lists(st.sampled_from(variants), min_size=1, max_size=3)):
            dataplane.configure(settings)
            dataplane.apply(wanted, set())
            assert shape(tables.save()) == shape(fresh(settings, wanted, backend))

    @given(data=st.data(), backend=BACKENDS)
    def test_no_restore_makes_an_incomplete_service_reachable(
        self, data: Any, backend: Backend, clusters: Any, settings: Settings
    ) -> None:
        """After each restore, every chain that a packet can reach from a shared chain has its rules."""
        tables = Watching(Family.IPV4, backend)
        dataplane = IptablesDataplane(settings, tables)
        for wanted in data.draw(st.lists(clusters, min_size=1, max_size=3)):
            dataplane.apply(wanted, None)
        assert tables.incomplete == []


class Watching(FakeTables):
    """Notes after each restore which chains of Services can be reached and are empty."""

    def __init__(self, family: Family, backend: Backend) -> None:
        super().__init__(family, backend)
        self.incomplete: list[str] = []

    def restore(self, text: bytes | str) -> None:
        super().restore(text)
        lines = super().save().splitlines()
        led = {line.rpartition(" -j ")[2] for line in lines if line.startswith("-A ")}
        filled = {line.split()[1] for line in lines if line.startswith("-A ")}
        self.incomplete += [c for c in led if c.startswith(("KUBE-SVC", "KUBE-SEP", "KUBE-FW")) and c not in filled]


def with_chains(tables: FakeTables, edit: str) -> None:
    """An edit by somebody who makes the chains that he needs."""
    have = tables.save()
    table = edit.split("\n", 1)[0]
    section = have.partition(f"{table}\n")[2].partition("COMMIT\n")[0]
    needed = re.findall(r"KUBE-(?:SERVICES|NODEPORTS|MARK-MASQ)\b", edit)
    missing = [chain for chain in needed if f":{chain} " not in section]
    declared = "".join(f":{chain} - [0:0]\n" for chain in missing)
    fail_at, tables.fail_at = tables.fail_at, set()
    tables.restore(f"{table}\n{declared}COMMIT\n{edit}")
    tables.fail_at = fail_at
