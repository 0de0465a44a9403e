"""Reading and deleting entries of the real table, and what that does to a client that goes on sending."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from msgspec.structs import replace

from kproxy.conntrack.reconciler import Reconciler
from kproxy.conntrack.table import KernelConntrack
from kproxy.model.plans import Endpoint, Family, PortKey, Protocol, ServicePlan

Shell = Callable[..., str]
UDP, SCTP = Protocol.UDP, Protocol.SCTP


def insert(shell: Shell, source: str, to: str, answers: str, sport: int = 4000, more: str = "-p udp") -> None:
    ports = f"--sport {sport} --dport 53 --reply-port-src 5353 --reply-port-dst {sport}"
    shell(f"conntrack -I {more} -t 100 -s {source} -d {to} -r {answers} -q {source} {ports}")


@pytest.fixture
def table(shell: Shell) -> KernelConntrack:
    shell("conntrack -V")
    return KernelConntrack()


def test_an_entry_reads_as_it_was_made(shell: Shell, table: KernelConntrack) -> None:
    insert(shell, "10.1.1.1", "10.96.0.10", "10.244.0.5")
    insert(shell, "fd00::1", "fd00::10", "fd00::5")
    (four,), (six,) = table.flows(Family.IPV4), table.flows(Family.IPV6)
    assert (four.protocol, four.source, four.source_port) == (UDP, "10.1.1.1", 4000)
    assert (four.destination, four.destination_port) == ("10.96.0.10", 53)
    assert (four.reply_source, four.reply_port, four.zone, four.translated) == ("10.244.0.5", 5353, 0, True)
    assert (six.source, six.destination, six.reply_source) == ("fd00::1", "fd00::10", "fd00::5")
    assert four.id != six.id != 0


def test_other_protocols_are_not_even_sent(shell: Shell, table: KernelConntrack) -> None:
    insert(shell, "10.1.1.1", "10.96.0.10", "10.244.0.5")
    insert(shell, "10.1.1.1", "10.96.0.10", "10.244.0.6", more="-p tcp --state ESTABLISHED -u SEEN_REPLY,ASSURED")
    assert [f.reply_source for f in table.flows(Family.IPV4)] == ["10.244.0.5"]
    assert table.flows(Family.IPV4, {SCTP}) == []
    assert "tcp" in shell("conntrack -L 2>/dev/null")


def test_exactly_the_named_entries_are_deleted(shell: Shell, table: KernelConntrack) -> None:
    for i in range(3):
        insert(shell, f"10.1.1.{i}", "10.96.0.10", "10.244.0.5")
    one, two, three = sorted(table.flows(Family.IPV4), key=lambda f: f.source)
    assert table.delete([two]) == 1
    assert sorted(table.flows(Family.IPV4), key=lambda f: f.source) == [one, three]
    assert table.delete([one, two, three]) == 2
    assert table.delete([one, two, three]) == 0
    assert table.delete([]) == 0


def test_an_entry_with_another_id_is_another_entry(shell: Shell, table: KernelConntrack) -> None:
    insert(shell, "10.1.1.1", "10.96.0.10", "10.244.0.5")
    (here,) = table.flows(Family.IPV4)
    assert table.delete([replace(here, id=here.id ^ 1)]) == 0
    assert table.flows(Family.IPV4) == [here]


@pytest.mark.parametrize(("zones", "of_original"), [("--zone 7", False), ("--orig-zone 7", True)])
def test_an_entry_in_a_zone(shell: Shell, table: KernelConntrack, zones: str, of_original: bool) -> None:
    insert(shell, "10.1.1.1", "10.96.0.10", "10.244.0.5")
    insert(shell, "10.1.1.1", "10.96.0.10", "10.244.0.6", more=f"-p udp {zones}")
    here, there = sorted(table.flows(Family.IPV4), key=lambda f: f.zone)
    assert (here.zone, there.zone, there.zone_of_original) == (0, 7, of_original)
    assert there.reply_source == "10.244.0.6"
    assert table.delete([there]) == 1
    assert table.flows(Family.IPV4) == [here]


def test_more_entries_than_fit_one_datagram(netns: None, shell: Shell, table: KernelConntrack) -> None:
    shell("nft add table ip t")
    shell("nft 'add chain ip t out { type filter hook output priority 0; }'")
    shell("nft add rule ip t out ct state new accept")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for port in range(10_000, 13_000):
            sender.sendto(b"", ("127.0.0.1", port))
    flows = [f for f in table.flows(Family.IPV4) if f.source == f.destination == "127.0.0.1"]
    assert {f.destination_port for f in flows} == set(range(10_000, 13_000))
    assert table.delete(flows) == 3000
    assert table.flows(Family.IPV4) == []


# ---- the purpose of it all

CLUSTER_IP, NODE_PORT = "10.96.0.10", 30053
KEY = PortKey("default", "dns", "", UDP)
FAST = 0.3


@pytest.fixture
def servers(shell: Shell) -> Iterator[dict[int, socket.socket]]:
    """Two endpoints of a Service: sockets at 127.0.0.1, by port."""
    shell(f"ip address add {CLUSTER_IP}/32 dev lo")
    with ExitStack() as stack:
        found = {}
        for port in (5301, 5302):
            found[port] = server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            server.bind(("127.0.0.1", port))
            server.settimeout(FAST)
        yield found


def route_to(shell: Shell, port: int) -> None:
    """The rules that a mode would write for the Service with that one endpoint; 0 for no endpoint."""
    rule = f"udp dport {{ 53, {NODE_PORT} }} dnat to 127.0.0.1:{port}" if port else "udp dport 53 counter"
    chain = f"type nat hook output priority -100; ip daddr {{ {CLUSTER_IP}, 127.0.0.1 }} {rule};"
    shell("nft -f -", f"table ip t\ndelete table ip t\ntable ip t {{ chain out {{ {chain} }}; }}\n")


def plans(port: int) -> dict[PortKey, ServicePlan]:
    endpoints = (Endpoint("127.0.0.1", port),) if port else ()
    return {
        KEY: ServicePlan(
            key=KEY, family=Family.IPV4, cluster_ip=CLUSTER_IP, port=53, node_port=NODE_PORT, reachable=endpoints
        )
    }


def reached(client: socket.socket, to: tuple[str, int], servers: dict[int, socket.socket]) -> int:
    """The server that gets what CLIENT sends, 0 when none does."""
    client.sendto(b"who?", to)
    for port, server in servers.items():
        try:
            server.recv(10)
        except TimeoutError:
            continue
        return port
    return 0


@pytest.mark.parametrize("to", [(CLUSTER_IP, 53), ("127.0.0.1", NODE_PORT)])
def test_a_client_on_one_source_port_follows_a_change(
    shell: Shell, table: KernelConntrack, servers: dict[int, socket.socket], to: tuple[str, int]
) -> None:
    reconciler = Reconciler(Family.IPV4, table)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        route_to(shell, 5301)
        reconciler.reconcile(plans(5301), None, {"127.0.0.1"})
        assert reached(client, to, servers) == 5301

        route_to(shell, 5302)
        assert reached(client, to, servers) == 5301  # this is the trouble
        assert reconciler.reconcile(plans(5302), [KEY], {"127.0.0.1"}).deleted == 1
        assert reached(client, to, servers) == 5302

        # After a restart nothing is known of the past: the flow lives.
        assert Reconciler(Family.IPV4, table).reconcile(plans(5302), None, {"127.0.0.1"}).deleted == 0
        assert reached(client, to, servers) == 5302

        route_to(shell, 0)
        assert reconciler.reconcile(plans(0), [KEY], {"127.0.0.1"}).deleted == 1
        assert reached(client, to, servers) == 0

        route_to(shell, 5301)
        reconciler.reconcile(plans(5301), [KEY], {"127.0.0.1"})
        assert reached(client, to, servers) == 5301
        shell("nft delete table ip t")
        assert reconciler.reconcile({}, [KEY], {"127.0.0.1"}).deleted == 1
        assert reached(client, to, servers) == 0
