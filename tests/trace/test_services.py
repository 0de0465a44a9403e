"""Each type of Service, each policy: who reaches which endpoint, and by whose address, and who does so again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest

from kproxy.model.plans import Family, Protocol
from kproxy.trace.outcome import Fate, Probe, Verdict
from tests.model.builders import cidr, endpoint, service, slice_
from tests.trace.oracle import DROPPED, REJECTED, UNTOUCHED, Chances
from tests.trace.worlds import Client, World, to

POD = Client("10.244.1.50", "veth5")
CLIENT = Client("192.0.2.77", "eth0")
NODE = Client("172.18.0.2")
HOME = Client("127.0.0.1")
A, FAR = "10.244.1.7:8080", "10.244.2.9:8080"
ITSELF = Client("10.244.1.7", "veth1")  # endpoint A
HERE, THERE = endpoint("10.244.1.7"), endpoint("10.244.2.9", node="node2")
VIP, EXTERNAL, BALANCER = "10.96.0.1", "198.51.100.1", "203.0.113.1"
NODE_IP, OTHER_IP, LOCALHOST = "172.18.0.2", "192.168.9.7", "127.0.0.1"
NODE_PORT = 30080
OPEN = {"type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": NODE_PORT}]}
LB = {**OPEN, "type": "LoadBalancer", "ingress": [{"ip": BALANCER}]}
LOCAL = {"externalTrafficPolicy": "Local"}
INTERNAL = {"internalTrafficPolicy": "Local"}
BOTH, MASQUERADED = to(A, FAR), to(A, FAR, masqueraded=True)
HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Scenario:
    """One Service and who meets what. asks: client, address, port, what it meets."""

    spec: dict[str, Any]
    ends: tuple[dict[str, Any], ...]
    asks: tuple[tuple[Client, str, int, Chances], ...]
    config: dict[str, Any] = field(default_factory=dict)
    more: tuple[str, ...] = ()


SCENARIOS = {
    "cluster IP": Scenario(
        {},
        (HERE, THERE),
        (
            (POD, VIP, 80, BOTH),
            (CLIENT, VIP, 80, MASQUERADED),
            (NODE, VIP, 80, MASQUERADED),
            (POD, VIP, 81, UNTOUCHED),
            (POD, "10.96.0.2", 80, UNTOUCHED),
        ),
    ),
    "hairpin": Scenario(
        {},
        (HERE, THERE),
        ((ITSELF, VIP, 80, {Verdict(Fate.DELIVERED, A, True): HALF, Verdict(Fate.DELIVERED, FAR): HALF}),),
    ),
    "all traffic masqueraded": Scenario(
        {}, (HERE,), ((POD, VIP, 80, to(A, masqueraded=True)),), {"iptables": {"masqueradeAll": True}}
    ),
    "pods told apart by nothing": Scenario({}, (HERE,), ((CLIENT, VIP, 80, to(A)),), {"clusterCIDR": ""}),
    "pods told apart by their interface": Scenario(
        {},
        (HERE,),
        (
            (Client("192.0.2.7", "veth5"), VIP, 80, to(A)),
            (Client("10.244.1.50", "eth0"), VIP, 80, to(A, masqueraded=True)),
            (NODE, VIP, 80, to(A, masqueraded=True)),
        ),
        {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "veth"}},
    ),
    "no endpoints": Scenario(
        {**LB, "externalIPs": [EXTERNAL]},
        (),
        (
            (POD, VIP, 80, REJECTED),
            (NODE, VIP, 80, REJECTED),
            (CLIENT, EXTERNAL, 80, REJECTED),
            (CLIENT, BALANCER, 80, REJECTED),
            (CLIENT, NODE_IP, NODE_PORT, REJECTED),
            (NODE, NODE_IP, NODE_PORT, REJECTED),
            (HOME, LOCALHOST, NODE_PORT, REJECTED),
            (CLIENT, BALANCER, 81, UNTOUCHED),
        ),
    ),
    "internal policy Local": Scenario(
        {**OPEN, **INTERNAL},
        (HERE, THERE),
        ((POD, VIP, 80, to(A)), (NODE, VIP, 80, to(A, masqueraded=True)), (CLIENT, NODE_IP, NODE_PORT, MASQUERADED)),
    ),
    "internal policy Local without an endpoint here": Scenario(
        INTERNAL, (THERE,), ((POD, VIP, 80, DROPPED), (NODE, VIP, 80, DROPPED))
    ),
    "node port": Scenario(
        OPEN,
        (HERE, THERE),
        (
            (CLIENT, NODE_IP, NODE_PORT, MASQUERADED),
            (CLIENT, OTHER_IP, NODE_PORT, MASQUERADED),
            (POD, NODE_IP, NODE_PORT, MASQUERADED),
            (NODE, NODE_IP, NODE_PORT, MASQUERADED),
            (CLIENT, "172.18.0.3", NODE_PORT, UNTOUCHED),
            (CLIENT, NODE_IP, 80, UNTOUCHED),
        ),
    ),
    "node port, external policy Local": Scenario(
        {**OPEN, **LOCAL},
        (HERE, THERE),
        ((CLIENT, NODE_IP, NODE_PORT, to(A)), (POD, NODE_IP, NODE_PORT, BOTH), (NODE, NODE_IP, NODE_PORT, MASQUERADED)),
    ),
    "node port, external policy Local without an endpoint here": Scenario(
        {**OPEN, **LOCAL},
        (THERE,),
        (
            (CLIENT, NODE_IP, NODE_PORT, DROPPED),
            (POD, NODE_IP, NODE_PORT, to(FAR)),
            (NODE, NODE_IP, NODE_PORT, to(FAR, masqueraded=True)),
        ),
    ),
    "node port on some addresses": Scenario(
        OPEN,
        (HERE,),
        (
            (CLIENT, NODE_IP, NODE_PORT, to(A, masqueraded=True)),
            (CLIENT, OTHER_IP, NODE_PORT, UNTOUCHED),
            (HOME, LOCALHOST, NODE_PORT, UNTOUCHED),
        ),
        {"nodePortAddresses": ["172.18.0.0/16"]},
    ),
    "external IP": Scenario(
        {"externalIPs": [EXTERNAL]},
        (HERE, THERE),
        ((CLIENT, EXTERNAL, 80, MASQUERADED), (POD, EXTERNAL, 80, MASQUERADED), (NODE, EXTERNAL, 80, MASQUERADED)),
    ),
    "external IP that is the node's": Scenario(
        {"externalIPs": [NODE_IP], **LOCAL},
        (HERE, THERE),
        ((CLIENT, NODE_IP, 80, to(A)), (NODE, NODE_IP, 80, MASQUERADED), (CLIENT, NODE_IP, 22, UNTOUCHED)),
    ),
    "load balancer": Scenario(
        LB,
        (HERE, THERE),
        ((CLIENT, BALANCER, 80, MASQUERADED), (POD, BALANCER, 80, MASQUERADED), (NODE, BALANCER, 80, MASQUERADED)),
    ),
    "load balancer, external policy Local": Scenario(
        {**LB, **LOCAL},
        (HERE, THERE),
        ((CLIENT, BALANCER, 80, to(A)), (POD, BALANCER, 80, BOTH), (NODE, BALANCER, 80, MASQUERADED)),
    ),
    "load balancer in mode Proxy": Scenario(
        {**LB, "ingress": [{"ip": BALANCER, "ipMode": "Proxy"}]}, (HERE,), ((POD, BALANCER, 80, UNTOUCHED),)
    ),
    "source ranges": Scenario(
        {**LB, "loadBalancerSourceRanges": ["192.0.2.0/24", "10.1.0.0/16"]},
        (HERE, THERE),
        (
            (CLIENT, BALANCER, 80, MASQUERADED),
            (Client("10.1.2.3", "eth0"), BALANCER, 80, MASQUERADED),
            (Client("198.18.0.1", "eth0"), BALANCER, 80, DROPPED),
            (POD, BALANCER, 80, DROPPED),
            (NODE, BALANCER, 80, DROPPED),
            (Client("198.18.0.1", "eth0"), NODE_IP, NODE_PORT, MASQUERADED),
            (POD, VIP, 80, BOTH),
        ),
    ),
    "source ranges that hold the node, which has the load balancer IP": Scenario(
        {**LB, "loadBalancerSourceRanges": ["172.18.0.0/16"]},
        (HERE,),
        (
            (Client(BALANCER), BALANCER, 80, to(A, masqueraded=True)),
            (NODE, BALANCER, 80, to(A, masqueraded=True)),
            (CLIENT, BALANCER, 80, DROPPED),
        ),
        more=(BALANCER,),
    ),
    "source ranges without endpoints": Scenario(
        {**LB, "loadBalancerSourceRanges": ["10.1.0.0/16"]}, (), ((CLIENT, BALANCER, 80, REJECTED),)
    ),
    "endpoint on the node's own network": Scenario(
        OPEN,
        (endpoint(NODE_IP),),
        (
            (POD, VIP, 80, to(f"{NODE_IP}:8080")),
            (NODE, VIP, 80, to(f"{NODE_IP}:8080", masqueraded=True)),
            (NODE, NODE_IP, 8080, UNTOUCHED),
        ),
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_packets_meet_what_the_service_says(world: Callable[..., World], scenario: Scenario) -> None:
    node = world((service(**scenario.spec), slice_("web-1", scenario.ends)), more=scenario.more, **scenario.config)
    for client, ip, port, meets in scenario.asks:
        assert node.ask(client, ip, port) == node.means(meets, client, ip, port), (client, ip, port)


def test_other_protocols_are_none_of_its_business(world: Callable[..., World]) -> None:
    node = world((service(**LB), slice_("web-1", [HERE])))
    assert node.ask(CLIENT, BALANCER, 80, Protocol.UDP) == UNTOUCHED
    assert node.ask(CLIENT, NODE_IP, NODE_PORT, Protocol.SCTP) == UNTOUCHED


def test_nftables_mode_knows_the_range_of_cluster_ips() -> None:
    node = World("nftables", (service(), slice_("web-1", [HERE]), cidr("kubernetes", "10.96.0.0/16")))
    assert node.ask(POD, VIP) == to(A)
    assert node.ask(POD, VIP, 81) == REJECTED
    assert node.ask(POD, "10.96.0.2") == DROPPED
    assert node.ask(POD, "10.97.0.2") == UNTOUCHED


# ---------------------------------------------------------------- localhost

SERVED = to(A, masqueraded=True)


@pytest.mark.parametrize(
    ("config", "client", "port", "meets"),
    [
        ({}, HOME, NODE_PORT, SERVED),
        ({}, HOME, 22, UNTOUCHED),
        ({}, CLIENT, 22, DROPPED),
        ({"nodePortAddresses": ["127.0.0.0/8"]}, HOME, NODE_PORT, SERVED),
        ({"nodePortAddresses": ["172.18.0.0/16"]}, HOME, NODE_PORT, UNTOUCHED),
        ({"iptables": {"localhostNodePorts": False}}, HOME, NODE_PORT, UNTOUCHED),
    ],
)
def test_localhost(config: dict[str, Any], client: Client, port: int, meets: Chances) -> None:
    node = World("iptables", (service(**OPEN), slice_("web-1", [HERE])), **config)
    assert node.ask(client, LOCALHOST, port) == meets


def test_ipv6_has_no_node_ports_on_loopback() -> None:
    ends = slice_("web-1", [endpoint("fd00:10:244:1::7")], addressType="IPv6")
    node = World("iptables", (service(clusterIPs=["fd00:96::1"], **OPEN), ends), Family.IPV6)
    assert node.ask(Client("::1"), "::1", NODE_PORT) == UNTOUCHED
    own = Client("fd00:18::2")
    assert node.ask(own, own.ip, NODE_PORT) == to("[fd00:10:244:1::7]:8080", masqueraded=True)


# ---------------------------------------------------------------- session affinity

ENDS = (A, "10.244.1.8:8080", FAR)
SLICE = slice_("web-1", [endpoint(e.partition(":")[0]) for e in ENDS])
STICKY = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}
FROM_POD = Probe(POD.ip, VIP, Protocol.TCP, 80, POD.interface)


def test_a_new_client_is_led_anywhere_and_remembered(world: Callable[..., World]) -> None:
    outcome = world((service(**STICKY), SLICE)).trace(FROM_POD, None)
    assert outcome.chances == to(*ENDS)
    assert all(memory.client == POD.ip for branch in outcome.branches for memory in branch.remembers)
    assert len({branch.remembers for branch in outcome.branches}) == len(ENDS)


def test_a_client_that_is_remembered_goes_where_it_went(world: Callable[..., World]) -> None:
    node, other = world((service(**STICKY), SLICE)), Client("10.244.1.51", "veth6")
    for branch in node.trace(FROM_POD, None).branches:
        for age, meets in ((0, to(branch.verdict.endpoint)), (59, to(branch.verdict.endpoint)), (61, to(*ENDS))):
            assert node.ask(POD, VIP, affinity=dict.fromkeys(branch.remembers, age)) == meets
        assert node.ask(other, VIP, affinity=dict.fromkeys(branch.remembers, 0)) == to(*ENDS)


def test_without_affinity_nothing_is_remembered(world: Callable[..., World]) -> None:
    outcome = world((service(), SLICE)).trace(FROM_POD, None)
    assert {branch.remembers for branch in outcome.branches} == {frozenset()}


GATE = {"featureGates": {"KubeProxyNFTablesLocalhostNodePorts": True}}


@pytest.mark.parametrize(
    ("config", "ip", "port", "meets"),
    [
        ({"nodePortAddresses": ["127.0.0.0/8"]}, "127.0.0.1", 30080, UNTOUCHED),
        (GATE, "127.0.0.1", 30080, REJECTED),
        (GATE, "127.0.0.1", 22, UNTOUCHED),
        ({**GATE, "nodePortAddresses": ["127.0.0.0/8"]}, "127.0.0.1", 30080, to("127.0.0.1:30080")),
        ({**GATE, "nodePortAddresses": ["127.0.0.0/8"]}, "127.0.0.5", 30080, to("127.0.0.1:30080")),
        ({**GATE, "nodePortAddresses": ["127.0.0.1/32"]}, "127.0.0.5", 30080, REJECTED),
    ],
)
def test_nftables_mode_leads_to_the_process_that_listens_or_refuses(
    config: dict[str, Any], ip: str, port: int, meets: Chances
) -> None:
    web = service(type="NodePort", ports=[{"name": "http", "port": 80, "nodePort": 30080}])
    world = World("nftables", (web, slice_("web-1", [endpoint("10.244.1.7")])), **config)
    assert world.ask(HOME, ip, port) == meets
