"""Interfaces and addresses of a network namespace, the node's own IP, and the monitor of changes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from kproxy.kernel import interfaces
from kproxy.kernel.interfaces import AddressMonitor, Interface
from kproxy.model.plans import Family


@pytest.fixture
def network(shell: Callable[..., str]) -> Callable[..., str]:
    """A veth pair, one end with addresses and default routes."""
    shell("ip link add eth0 type veth peer name eth1")
    shell("ip address add 192.0.2.7/24 dev eth0")
    shell("ip address add 192.0.2.9/24 dev eth0")
    shell("ip address add 10.9.0.1 peer 10.9.0.2/32 dev eth0")
    shell("ip -6 address add fd00:7::7/64 dev eth0 nodad")
    shell("ip link set eth0 addrgenmode none")
    shell("ip link set eth1 addrgenmode none")
    shell("ip link set eth0 up")
    shell("ip link set eth1 up")
    return shell


def test_names_addresses_and_state(network: Callable[..., str]) -> None:
    network("ip link set eth1 down")
    found = {i.name: i for i in interfaces.interfaces()}
    assert found["lo"] == Interface("lo", ("127.0.0.1/8", "::1/128"), up=True)
    assert set(found["eth0"].addresses) == {"192.0.2.7/24", "192.0.2.9/24", "10.9.0.1/32", "fd00:7::7/64"}
    assert (found["eth0"].up, found["eth1"]) == (True, Interface("eth1", (), up=False))
    assert interfaces.own_addresses() == {"127.0.0.1", "::1", "192.0.2.7", "192.0.2.9", "10.9.0.1", "fd00:7::7"}


def test_the_node_ip_is_the_source_of_the_default_route(network: Callable[..., str]) -> None:
    network("ip link set lo up")
    network("ip route add default via 192.0.2.1 src 192.0.2.9")
    network("ip -6 route add default via fd00:7::1 dev eth0")
    assert interfaces.node_ip(Family.IPV4) == "192.0.2.9"
    assert interfaces.node_ip(Family.IPV6) == "fd00:7::7"


def test_without_a_route_there_is_no_node_ip(netns: None) -> None:
    assert [interfaces.node_ip(family) for family in Family] == [None, None]


def test_the_host_can_be_written_as_json_and_has_what_render_reads(network: Callable[..., str]) -> None:
    network("ip route add default via 192.0.2.1")
    host = json.loads(json.dumps(interfaces.host()))
    assert host["nodeIPs"][:1] == ["192.0.2.7"]
    assert {"name": "lo", "addresses": ["127.0.0.1/8", "::1/128"]} in host["interfaces"]


def test_many_addresses_come_in_several_datagrams(shell: Callable[..., str]) -> None:
    lines = "".join(f"address add 10.0.{i // 250}.{i % 250 + 1}/32 dev lo\n" for i in range(2000))
    shell("ip -batch -", lines)
    assert len(interfaces.own_addresses()) == 2002


@pytest.mark.parametrize("address", ["192.0.2.50/24", "fd00:7::50/64"])
def test_a_new_and_a_lost_address_are_noticed_and_nothing_else(network: Callable[..., str], address: str) -> None:
    with AddressMonitor() as monitor:
        assert not monitor.changed()
        network("ip link set eth0 mtu 1400")
        assert not monitor.changed()
        for verb in ("add", "del"):
            network(f"ip address {verb} {address} dev lo")
            assert monitor.changed(timeout=30.0)
            while monitor.changed(timeout=0.05):  # an IPv6 address is announced again when it is known to be ours alone
                pass


def test_addresses_of_services_are_none_of_the_nodes(network: Callable[..., str]) -> None:
    network("ip link add kube-ipvs0 type bridge")
    with AddressMonitor() as monitor:
        network("ip address add 10.96.0.1/32 dev kube-ipvs0")
        assert not monitor.changed()
        assert "10.96.0.1" not in interfaces.own_addresses()
        network("ip address add 10.96.0.2/32 dev lo")
        assert monitor.changed(timeout=30.0)


def test_more_changes_than_can_be_queued_are_still_a_change(shell: Callable[..., str]) -> None:
    with AddressMonitor() as monitor:
        lines = "".join(f"address add 10.0.{i // 250}.{i % 250 + 1}/32 dev lo\n" for i in range(2000))
        shell("ip -batch -", lines)
        assert monitor.changed()
        assert not monitor.changed()
