"""docs/nftables.md holds what the code has: figures, names, versions and modules."""

from __future__ import annotations

from pathlib import Path

import pytest

import kproxy.modes.nftables
import kproxy.netfilter
from kproxy.model.node_info import NodePortAddresses
from kproxy.model.plans import Family
from kproxy.modes.nftables import apply, chains, names, render
from kproxy.netfilter import changes, kernel, operations, support, table
from tests.nftables.plans import build_plan, layout_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "nftables.md").read_text()
TEXT = " ".join(PAGE.split())

FIGURES = {
    f"when the set is full: {chains.MAX_CLIENTS:,} clients": "clients of one set",
    f"`nat-prerouting` and `nat-output` (priority {render.DSTNAT}), `nat-postrouting` ({render.SRCNAT}) and "
    f"`filter-forward` ({render.FILTER})": "priorities",
    f"portions** of {operations.ELEMENTS_AT_ONCE:,} elements": "elements of a transaction",
    f"Sets with more than {kernel.LISTED_AT_MOST:,} elements": "elements of a set that is listed",
    f"up to {table.TRIES} times in a row": "repetitions",
    f"after {changes.WAIT:g} s a family goes ahead": "seconds for a turn",
    {3600.0: "listed once an hour"}[apply.READ_AT_LEAST]: "seconds between listings",
    f"`{names.KUBE_PROXY_TABLE}` table deleted": "kube-proxy's table",
    "reject` in a prerouting chain | 5.9": "the newest feature that is needed",
}


@pytest.mark.parametrize("phrase", FIGURES, ids=FIGURES.values())
def test_a_figure_is_the_codes(phrase: str) -> None:
    assert phrase in TEXT


def test_every_set_and_chain_is_described() -> None:
    plan = build_plan(node_port=30000, external_local=True, affinity_seconds=60)
    layout = layout_of(
        plan,
        service_cidrs=("10.96.0.0/16",),
        node_port_addresses=NodePortAddresses(False, ("172.30.0.11",)),
        refuses_localhost=True,
        localhost_networks=("127.0.0.0/8",),
    )
    for name in (*layout.sets, *(chain for chain in layout.chains if not chain.startswith("affinity-"))):
        assert f"`{name}`" in PAGE or f" {name} " in PAGE, name


def test_every_feature_has_its_version_and_the_newest_is_the_requirement() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    needed = [support.TABLES, support.GENERATIONS, *support._features(Family.IPV4)]
    for feature in needed:
        assert any(f"| {feature.since} |" in row for row in rows), feature.words
    newest = max((feature.since for feature in needed), key=lambda text: [int(part) for part in text.split(".")])
    assert f"Linux {newest} or later" in TEXT


def test_every_module_is_named_and_no_other() -> None:
    section = PAGE.partition("## In the code")[2]
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    assert {word.strip(" `") for cell in cells for word in cell.split(",")} == modules(
        kproxy.modes.nftables.__path__[0]
    )
    for module in modules(kproxy.netfilter.__path__[0]):
        assert f"`{module}`" in section or module.endswith(("_codec", "_fields", "expressions")), module


def modules(folder: str) -> set[str]:
    return {path.stem for path in Path(folder).glob("*.py")} - {"__init__"}
