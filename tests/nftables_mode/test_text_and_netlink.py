"""What `kproxy render --format native` prints, loaded by nft, is what the daemon programs by netlink."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.model.plans import Family
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.text import table_text
from kproxy.modes.preview import Preview, load
from kproxy.modes.settings import nftables_settings
from tests.netfilter.values import settled
from tests.nftables.plans import build_plan, layout_of, settings
from tests.nftables_mode.test_real_kernel import Plans, Rig
from tests.parity.conftest import cases

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable(("nft",))), reason=unavailable(("nft",)))]

CASES = cases()
SAMPLE = CASES[::23]
CLIENT = {Family.IPV4: "10.244.0.7", Family.IPV6: "fd00:244::7"}


@pytest.fixture(scope="module")
def netns() -> Iterator[Namespace]:
    with closing(Namespace("text")) as space:
        yield space


def ruleset(netns: Namespace) -> list[str]:
    return settled(netns.run(["nft", "-j", "list", "ruleset"]))


def programmed(netns: Namespace, chosen: Settings, plans: Plans) -> None:
    """As the daemon does at its first sync."""
    with closing(netns.call(Rig, chosen)) as rig:
        rig.plans = plans
        assert not netns.call(rig.check).rejected


def test_every_sampled_case_of_kube_proxy_s(netns: Namespace) -> None:
    sizes = []
    for case in SAMPLE:
        state, _ = load(case.raw["node"], case.kinds(case.raw["final"]))
        preview = Preview(state, case.config, case.host)
        netns.run(["nft", "flush", "ruleset"])
        for family in Family:
            netns.run(["nft", "-f", "-"], preview.nftables(family))
        by_text = ruleset(netns)
        netns.run(["nft", "flush", "ruleset"])
        for family in Family:
            chosen = nftables_settings(case.config, family, preview.node)
            programmed(netns, chosen, dict(preview.families[family].plans))
        assert ruleset(netns) == by_text, case.raw["id"]
        sizes.append(len(by_text))
    assert max(sizes) > 100


@pytest.mark.parametrize("family", Family)
def test_a_table_loaded_as_text_is_adopted_with_the_clients_that_packets_added(
    netns: Namespace, family: Family
) -> None:
    plan = build_plan("dns", family=family, affinity_seconds=600, node_port=30053, local=(1,), external_local=True)
    netns.run(["nft", "flush", "ruleset"])
    netns.run(["nft", "-f", "-"], table_text(layout_of(plan)))
    table = f"{'ip' if family is Family.IPV4 else 'ip6'} kproxy"
    netns.run(["nft", "-f", "-"], f"add element {table} clients-600s {{ {CLIENT[family]} . 7 }}")
    before = ruleset(netns)
    assert any(CLIENT[family] in item for item in before)
    with closing(netns.call(Rig, settings(family))) as rig:
        rig.plans = {plan.key: plan}
        outcome = netns.call(rig.check)
        assert (outcome.rejected, sum(outcome.rules_written.values()), netns.call(rig.differs)) == ({}, 0, [])
    assert ruleset(netns) == before
