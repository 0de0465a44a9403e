"""Node ports on 127.0.0.1: iptables mode serves them, and keeps neighbours away from loopback."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.model.plans import Family
from tests.model.builders import endpoint, service, slice_
from tests.trace.oracle import DROPPED, REJECTED, UNTOUCHED, Chances
from tests.trace.worlds import Client, World, to

HOME, NEIGHBOUR = Client("127.0.0.1"), Client("192.0.2.77", "eth0")
SERVED = to("10.244.1.7:8080", masqueraded=True)
OFF: dict[str, Any] = {"iptables": {"localhostNodePorts": False}}


@pytest.mark.parametrize(
    ("config", "client", "port", "meets"),
    [
        ({}, HOME, 30080, SERVED),
        ({}, HOME, 22, UNTOUCHED),
        ({}, NEIGHBOUR, 22, DROPPED),
        ({"nodePortAddresses": ["127.0.0.0/8"]}, HOME, 30080, SERVED),
        ({"nodePortAddresses": ["172.18.0.0/16"]}, HOME, 30080, UNTOUCHED),
        (OFF, HOME, 30080, UNTOUCHED),
    ],
)
def test_localhost(config: dict[str, Any], client: Client, port: int, meets: Chances) -> None:
    web = service(type="NodePort", ports=[{"name": "http", "port": 80, "nodePort": 30080}])
    world = World("iptables", (web, slice_("web-1", [endpoint("10.244.1.7")])), **config)
    assert world.ask(client, "127.0.0.1", port) == meets


def test_ipv6_has_no_node_ports_on_loopback() -> None:
    web = service(type="NodePort", clusterIPs=["fd00:96::1"], ports=[{"name": "http", "port": 80, "nodePort": 30080}])
    ends = slice_("web-1", [endpoint("fd00:10:244:1::7")], addressType="IPv6")
    world = World("iptables", (web, ends), Family.IPV6)
    assert world.ask(Client("::1"), "::1", 30080) == UNTOUCHED
    assert world.ask(Client("fd00:18::2"), "fd00:18::2", 30080) == to("[fd00:10:244:1::7]:8080", masqueraded=True)


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
