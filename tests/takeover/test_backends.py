"""Which iptables a node uses is read off the node, and the other one is left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kproxy.lab.proxies import choose_backend

if TYPE_CHECKING:
    from tests.takeover.conftest import Node

OTHER = {"nft": "legacy", "legacy": "nft"}
RULES = "".join(f"-A PREROUTING -p tcp --dport {n} -j RETURN\n" for n in range(1, 9))
FOREIGN = f"*nat\n:PREROUTING ACCEPT [0:0]\n{RULES}COMMIT\n"


def test_more_rules_decide_where_the_kubelet_left_nothing(node: Node) -> None:
    other = OTHER[node.backend]
    node.run(f"iptables-{other}-restore", given=FOREIGN)
    before = node.saved(other)
    syncs = node.start()
    assert node.lines("Started")[-1]["backend"] == node.backend
    assert [line["transactions"] for line in syncs] == [0, 0]
    assert node.saved(other) == before


@pytest.mark.parametrize("chain", ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"])
def test_the_kubelets_chains_decide_over_the_number_of_rules(node: Node, chain: str) -> None:
    """The kubelet has moved to the other backend: so does the proxy, and what stands in the old one stays as it is."""
    other = OTHER[node.backend]
    node.run(f"iptables-{other}", "-w", "-t", "mangle", "-N", chain)
    before = node.saved()
    node.start()
    assert node.lines("Started")[-1]["backend"] == other
    assert node.saved() == before
    assert all("-j KUBE-SERVICES" in text for text in node.saved(other).values())


def test_the_kubelets_chains_stay_beside_rules_taken_over(node: Node) -> None:
    choose_backend(node.space, node.backend)
    before = node.saved()
    assert [line["transactions"] for line in node.start()] == [0, 0]
    assert node.saved() == before
    assert not any("-A" in text for text in node.saved(OTHER[node.backend]).values())


@pytest.mark.parametrize("node", ["nft"], indirect=True)
def test_a_flag_decides_over_all(node: Node) -> None:
    choose_backend(node.space, "nft")
    before = node.saved()
    node.start("--iptables-backend=legacy")
    assert node.lines("Started")[-1]["backend"] == "legacy"
    assert node.saved() == before
