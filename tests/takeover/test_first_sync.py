"""A node that kube-proxy programmed: nothing is written that is right, and what is wrong is all that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kproxy.lab.proxies import choose_backend, wait_for
from kproxy.model.plans import Family

if TYPE_CHECKING:
    from tests.takeover.conftest import Node

SOON = 60.0
DATA = Path(__file__).parent / "data"


def test_the_first_sync_writes_nothing(node: Node) -> None:
    before, handles = node.saved(), node.handles()
    syncs = node.start()
    assert {line["family"]: (line["transactions"], line["bytes"]) for line in syncs} == {"IPv4": (0, 0), "IPv6": (0, 0)}
    assert node.saved() == before
    assert node.handles().keys() == handles.keys()
    (started,) = node.lines("Started")
    assert started["backend"] == node.backend


def test_it_tells_how_many_rules_it_took_over(node: Node) -> None:
    """As kube-proxy counts them: without those of built-in chains."""
    saved = node.saved()
    node.start()
    metrics = node.metrics()
    for family in Family:
        for table in ("filter", "nat"):
            rules = saved[family].partition(f"*{table}\n")[2].partition("COMMIT\n")[0].count("\n-A KUBE-")
            labels = f'{{ip_family="{family}",table="{table}"}}'
            assert metrics[f"kubeproxy_sync_proxy_rules_iptables_total{labels}"] == rules
            assert metrics[f"kubeproxy_sync_proxy_rules_iptables_last{labels}"] == 0


# What is done to kube-proxy's rules, and how many of the rules that nf_tables holds may be written anew for it.
HARMS = {
    "an endpoint's rule leads elsewhere": (
        "-t nat -R KUBE-SEP-UIQK3OSOSTRHRPBX 2 -p tcp -m tcp -j DNAT --to-destination 10.244.1.9:8080",
        2,
    ),
    "a Service's rule is missing": ("-t nat -D KUBE-SVC-CDGGSHYLG3RE2FKL 2", 3),
    "a rule too many in a Service's chain": ("-t nat -I KUBE-SVC-CDGGSHYLG3RE2FKL 1 -j RETURN", 3),
    "a cluster IP is missing": ("-t nat -D KUBE-SERVICES 2", 4),
    "a node port is missing, but not its rule that counts": ("-t nat -D KUBE-NODEPORTS 2", 2),
    "a node port's rule that counts is missing": ("-t nat -D KUBE-NODEPORTS 1", 1),
    "a wrong rule in a shared chain": ("-t nat -I KUBE-SERVICES 1 -d 10.96.99.99/32 -p tcp -j KUBE-MARK-MASQ", 0),
    "the jump to the Services is missing": ("-t nat -D PREROUTING 1", 1),
    "the jump from FORWARD is missing": ("-t filter -D FORWARD 2", 4),
    "the mark is wrong": ("-t nat -R KUBE-MARK-MASQ 1 -j MARK --set-xmark 0x8000/0x8000", 1),
    "a chain of a Service that is gone": ("-t nat -N KUBE-SVC-AAAAAAAAAAAAAAAA", 0),
    "an endpoint's chain that nobody leads to": ("-t nat -N KUBE-SEP-AAAAAAAAAAAAAAAA", 0),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_wrong_is_repaired_and_the_rest_untouched(node: Node, harm: str) -> None:
    words, allowed = HARMS[harm]
    right = node.saved()
    node.run(node.tool(Family.IPV4), "-w", *words.split())
    spoilt = node.saved()
    assert spoilt != right
    handles = node.handles()
    syncs = node.start()
    assert {line["family"]: line["transactions"] > 0 for line in syncs} == {"IPv4": True, "IPv6": False}
    found = node.saved()
    assert unordered(found[Family.IPV4]) == unordered(right[Family.IPV4])
    assert found[Family.IPV6] == right[Family.IPV6]
    if node.backend == "nft":
        written = [rule for handle, rule in node.handles().items() if handle not in handles]
        assert len(written) <= allowed, written


def unordered(text: str) -> dict[str, list[str]]:
    """Rules by table and chain; in no order those of built-in chains and of KUBE-SERVICES, but for its last in nat."""
    chains: dict[str, list[str]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line
        elif line.startswith(":"):
            chains[f"{table} {line.split()[0][1:]}"] = []
        elif line.startswith("-A"):
            chains[f"{table} {line.split()[1]}"].append(line)
    for name, rules in chains.items():
        if name == "*nat KUBE-SERVICES":
            rules[:-1] = sorted(rules[:-1])
        elif " KUBE-" not in name or name == "*filter KUBE-SERVICES":
            rules.sort()
    return chains


@pytest.mark.parametrize("node", ["nft"], indirect=True)
def test_its_nftables_tables_go_and_their_services_stay(node: Node) -> None:
    """A node's real tables, of kube-proxy in nftables mode."""
    node.run("nft", "-f", "-", given=(DATA / "nft-list-ruleset.txt").read_text())
    node.start("--proxy-mode=nftables")
    tables = node.run("nft", "list", "tables").splitlines()
    assert {"table ip kproxy", "table ip6 kproxy"} <= set(tables)
    assert not any("kube-proxy" in line for line in tables)
    services = node.run("nft", "list", "map", "ip", "kproxy", "services")
    for frontend in (
        "10.96.10.1 . tcp . 80",
        "10.96.10.2 . udp . 53",
        "203.0.113.5 . tcp . 80",
        "10.96.10.3 . tcp . 80",
    ):
        assert frontend in services


def test_after_it_only_what_changes_is_written(node: Node) -> None:
    node.start()
    handles = node.handles()
    objects = json.loads((node.manifests / "objects.json").read_text())
    (ends,) = (item for item in objects["items"] if item["metadata"]["name"] == "web-4a")
    del ends["endpoints"][1]
    (node.manifests / "objects.json").write_text(json.dumps(objects))
    assert wait_for(lambda: "KUBE-SEP-4EX2N4PG4ASNZOBF" not in node.saved()[Family.IPV4], SOON), node.proxy.tail()
    text = node.saved()[Family.IPV4]
    assert "default/web:http -> 10.244.1.2:8080" in text
    if node.backend == "nft":
        written = [rule for handle, rule in node.handles().items() if handle not in handles]
        assert written
        assert {rule.partition(":")[0] for rule in written} == {"KUBE-SVC-CDGGSHYLG3RE2FKL"}


def test_given_back_it_is_as_kube_proxy_left_it(node: Node) -> None:
    """Started with kproxy, the same cluster leads to the rules that kube-proxy had, but for its canaries."""
    choose_backend(node.space, node.backend)
    theirs = node.saved()
    for family in Family:
        for table in ("nat", "filter"):
            node.run(node.tool(family), "-w", "-t", table, "-F")
            node.run(node.tool(family), "-w", "-t", table, "-X")
    node.start()
    ours = node.saved()
    for family in Family:
        expected = {c: rules for c, rules in unordered(theirs[family]).items() if "KUBE-PROXY-CANARY" not in c}
        found = {c: rules for c, rules in unordered(ours[family]).items() if "KUBE-PROXY-CANARY" not in c}
        assert found == expected
