"""Virtual servers, sets, addresses and rules of other programs stay; excludeCIDRs."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from kproxy.lab.namespaces import Namespace
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.model.plans import Family, Protocol
from tests.ipvs.nodes import Node, server, with_pods
from tests.ipvs.readers import by_ipvsadm, gnlpy_client, shown

pytestmark = pytest.mark.ipvs_kernel

SERVERS = """\
-A -t 192.0.2.77:443 -s wlc -p 60
-a -t 192.0.2.77:443 -r 10.244.1.12:443 -g -w 5
-a -t 192.0.2.77:443 -r 10.244.1.13:8443 -m -w 0
-A -u [2001:db8:77::1]:53 -s rr -o
-A -t 172.30.0.11:30999 -s rr
-A -f 7 -s rr
"""
GNLPYS = (("192.0.2.78", "10.244.1.12"), ("2001:db8:78::1", "fd00:244:1::c"))
SETS = "create SOMEONES hash:ip\nadd SOMEONES 192.0.2.77\ncreate KUBE-SOMEONES hash:ip family inet6\n"
RULE = "INPUT -s 192.0.2.99/32 -m set --match-set SOMEONES dst -j DROP"


@pytest.fixture
def others(node: Node) -> Iterator[Namespace]:
    """The node with what others made, and nothing of ours."""
    for family in Family:
        node.cleanup(family)
    space = node.space
    space.run(["ipvsadm", "-R"], SERVERS)
    with gnlpy_client(space) as client:
        for vip, real in GNLPYS:
            client.add_service(vip, 53, socket.IPPROTO_UDP, "nq")
            client.add_dest(vip, 53, real, 5353, socket.IPPROTO_UDP, weight=7)
    space.run(["ipset", "restore"], SETS)
    space.run(["iptables-nft", "-A", *RULE.split()])
    space.run(["ip", "link", "add", "others", "type", "dummy"])
    space.run(["ip", "address", "add", "192.0.2.77/32", "dev", "others"])
    yield space
    space.run(["ip", "link", "delete", "others"])
    space.run(["iptables-nft", "-D", *RULE.split()])
    for name in ("SOMEONES", "KUBE-SOMEONES"):
        space.run(["ipset", "destroy", name])
    for line in SERVERS.splitlines():
        if line.startswith("-A "):
            space.run(["ipvsadm", "-D", *line.split()[1:3]])
    with gnlpy_client(space) as client:
        for vip, _ in GNLPYS:
            client.del_service(vip, 53, socket.IPPROTO_UDP)


def test_it_survives_all_that_the_mode_does(node: Node, others: Namespace) -> None:
    before = shown(others)
    assert len(before.servers) == len(SERVERS.splitlines()) + 2 * len(GNLPYS)
    assert before.addresses == frozenset()
    for family in Family:
        plans = node.all_kinds(family)
        node.serve(family, *plans)
        node.change(with_pods(plans[0], ["a"]))
        node.check(family)
        node.restart(family)
        assert not node.notices(family, 2)
        node.serve(family, *plans[1:])
    during = shown(others)
    assert before.servers < during.servers
    assert before.sets < during.sets
    for family in Family:
        node.cleanup(family)
    assert shown(others) == before
    rules = others.run(["iptables-nft-save"])
    assert f"-A {RULE}" in rules
    assert "KUBE-" not in rules + others.run(["ip6tables-nft-save"])
    links = others.run(["ip", "address"])
    assert SERVICE_DEVICE not in links
    assert "192.0.2.77/32" in links


def test_servers_in_excluded_networks_stay_when_nobody_needs_them(node: Node) -> None:
    family = Family.IPV4
    spared, gone = (node.plan(family, protocol) for protocol in (Protocol.TCP, Protocol.UDP))
    excluding = {"exclude_cidrs": (f"{spared.cluster_ip}/32",)}
    node.serve(family, spared, gone, **excluding)
    before = {line for line in by_ipvsadm(node.space) if spared.cluster_ip in line}
    assert len(before) == 4
    node.serve(family, **excluding)
    node.restart(family)
    assert {line for line in by_ipvsadm(node.space) if "10.96.0." in line} == before
    node.cleanup(family)
    assert {line for line in by_ipvsadm(node.space) if "10.96.0." in line} == before
    node.space.run(["ipvsadm", "-D", "-t", f"{server(spared).key.address}:80"])
