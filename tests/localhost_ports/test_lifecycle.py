"""The listeners on loopback through the life of a daemon and of its Services, and who else reaches them."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from kproxy.lab import links, probes
from kproxy.lab.clusters import gateway_of, node_address
from kproxy.lab.probes import Nothing
from kproxy.lab.proxies import wait_for
from kproxy.model.plans import Family
from tests.localhost_ports.conftest import BOTH, EXPOSED, FAILURES, LOOPBACK, NODES, SERVED, SOON, V4, by_name

if TYPE_CHECKING:
    from tests.localhost_ports.conftest import Node

pytestmark = [pytest.mark.root, pytest.mark.slow]

PORTS = tuple(sorted(each.node_port for each in SERVED))
CLUSTER = by_name("cluster")
OTHER = 30077


LOOPBACKS = {"127.0.0.1%lo": ("127.0.0.1", "127.0.0.9"), "[::1]%lo": ("::1",)}


def both(*ports: int) -> dict[str, list[int]]:
    return {address: sorted(ports) for address in ("127.0.0.1%lo", "[::1]%lo") if ports}


def without(port: int, *others: int) -> tuple[int, ...]:
    return (*(p for p in PORTS if p != port), *others)


def restart(node: Node, with_signal: signal.Signals = signal.SIGTERM) -> None:
    node.proxy.stop(with_signal)
    node.start()


def restart_with(node: Node, *addresses: str) -> None:
    node.proxy.stop()
    node.configure("nftables", addresses)


def kill_forwarder(node: Node) -> None:
    (pid,) = node.forwarders()
    os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: node.forwarders() not in ([], [pid]), SOON), node.proxy.tail()


def put(*objects: Mapping[str, Any]) -> Callable[[Node], None]:
    return lambda node: node.manifests.put("cluster", objects)


STEPS: list[tuple[str, Callable[[Node], object], dict[str, list[int]]]] = [
    ("loopback is not named", lambda node: node.configure("nftables", NODES), {}),
    ("a restart with loopback newly named", lambda node: restart_with(node, *BOTH), both(*PORTS)),
    ("the daemon is killed, and starts", lambda node: restart(node, signal.SIGKILL), both(*PORTS)),
    ("the forwarder is killed", kill_forwarder, both(*PORTS)),
    ("a Service has another node port", put(*CLUSTER.objects(OTHER)), both(*without(30001, OTHER))),
    ("a Service has no endpoints any more", put(CLUSTER.objects()[0]), both(*without(30001))),
    ("and has some again", put(*CLUSTER.objects()), both(*PORTS)),
    ("a Service is deleted", lambda n: n.manifests.remove("cluster"), both(*without(30001))),
    ("it comes back", put(*CLUSTER.objects()), both(*PORTS)),
    ("another mode", lambda node: node.configure("iptables", BOTH), {"[::1]%lo": [*PORTS]}),
    ("userspace mode, whose rules lead there", lambda node: node.configure("userspace", BOTH), {}),
    ("nftables mode", lambda node: node.configure("nftables", BOTH), both(*PORTS)),
    ("the daemon ends", lambda node: node.proxy.stop(), {}),
]


def test_the_right_ports_are_open_after_every_change(node: Node) -> None:
    for what, change, wanted in STEPS:
        change(node)
        node.comes_to(wanted, what)
        met = [
            node.meets(loopback, p, 1)
            for shown, ports in wanted.items()
            for loopback in LOOPBACKS[shown]
            for p in ports
        ]
        assert set().union(*met) <= {"a", "b", "far"}, (what, met, node.proxy.tail())
        if node.proxy.running() and "userspace" not in what:
            node.runs(bool(wanted))
    assert "Unexpected error" not in node.proxy.tail(1 << 20)


def test_a_port_that_somebody_else_has_costs_itself_alone(node: Node) -> None:
    taken = node.space.call(socket.create_server, ("127.0.0.1", 30001))
    with closing(taken):
        restart_with(node, *BOTH) if node.proxy.running() else node.configure("nftables", BOTH)
        node.comes_to({"127.0.0.1%lo": [*without(30001)], "127.0.0.1": [30001], "[::1]%lo": [*PORTS]})
        assert wait_for(lambda: node.counted(FAILURES).get("IPv4", 0) > 1, SOON), "it is tried again"
        assert node.counted("kproxy_rejected_service_ports") == {"IPv4": 1}
        reason = "default/cluster:TCP: node port not served on 127.0.0.1:30001: Address already in use"
        log = node.proxy.tail(1 << 20)
        assert log.count(reason) == 1, log
        assert node.meets(node_address(1, V4), 30001) == CLUSTER.meets, "only loopback is concerned"
    node.comes_to(both(*PORTS))
    assert wait_for(lambda: node.counted("kproxy_rejected_service_ports") == {}, SOON)


def test_connections_go_on_when_the_last_port_goes(node: Node) -> None:
    node.configure("nftables", BOTH)
    node.comes_to(both(*PORTS))
    held = [node.space.call(probes.Held, ip, 30001) for ip in ("127.0.0.1", "::1")]
    (pid,) = node.forwarders()
    node.configure("nftables", NODES)
    node.comes_to({})
    assert [connection.failure() for connection in held] == [None, None]
    assert node.forwarders() == [pid]
    for connection in held:
        connection.close()
    assert wait_for(lambda: node.forwarders() == [], SOON), "it ends with its last connection"


def test_nobody_reaches_these_listeners_in_another_way(node: Node) -> None:
    node.configure("nftables", LOOPBACK)
    node.comes_to(both(*PORTS))
    ports = [each.node_port for each in EXPOSED[:2]]
    client = node.cluster.spaces["client"]
    # A neighbour that sends to the node's loopback address, with the sysctl that lets such packets in.
    client.sysctl({"ipv4/conf/all/route_localnet": "1"})
    client.run(["ip", "route", "flush", "table", "local", "root", "127.0.0.0/8"])
    links.route(client, "eth0", "127.0.0.0/8", via=node_address(1, V4))
    node.space.sysctl({"ipv4/conf/all/route_localnet": "1"})
    try:
        met = {
            (source, ip, port): node.meets(ip, port, 1, source)
            for source, ips in (
                *((s, [node_address(1, family) for family in Family]) for s in ("client", "caller", "node1")),
                *((s, [gateway_of(1, family) for family in Family]) for s in ("caller", "node1")),
            )
            for ip in ips
            for port in ports
        }
        assert set().union(*met.values()) == {Nothing.REFUSED.value}, met
        with closing(node.space.call(socket.create_server, ("127.0.0.1", 8095))):
            for ip, port in (
                ("127.0.0.1", 8095),
                *(("127.0.0.1", p) for p in ports),
                *(("127.0.0.5", p) for p in ports),
            ):
                client.call(probes.tcp, ip, port, 0.5)
            # The answer cannot find its way, but an ordinary listener has got the packet.
            reached = node.space.run(["ss", "-Htn", "state", "syn-recv"]).split()
            assert [each.rpartition(":")[2] for each in reached if each.startswith("127.")] == ["8095"]
    finally:
        node.space.sysctl({"ipv4/conf/all/route_localnet": "0"})
