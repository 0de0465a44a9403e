"""The forwarder behind rules that translate, as the portal rules do, in a network namespace of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kproxy.lab.namespaces import Namespace
from kproxy.model.plans import Family
from kproxy.modes.userspace.messages import Settings
from tests.network_namespaces import fresh_namespace
from tests.userspace.peers import (
    DNS,
    LOOPBACK,
    NUMBER,
    PATIENCE,
    datagrams,
    endpoint,
    forwarding,
    read_all,
    say,
    was_reset,
)

VIRTUAL = {Family.IPV4: "10.96.0.1", Family.IPV6: "fd00:96::1"}
NODE = {Family.IPV4: "192.0.2.1", Family.IPV6: "fd00:1::1"}
SETTINGS = Settings(translated_only=True)


@pytest.fixture
def netns() -> Iterator[Namespace]:
    with fresh_namespace("forwarder", "iptables", "ip6tables", "ip") as made:
        made.run(["ip", "link", "set", "lo", "up"])
        made.run(["ip", "address", "add", "192.0.2.1/32", "dev", "lo"])
        made.run(["ip", "route", "add", "10.96.0.0/16", "dev", "lo"])
        made.run(["ip", "address", "add", "fd00:1::1/128", "dev", "lo", "nodad"])
        made.run(["ip", "route", "add", "fd00:96::/112", "dev", "lo"])
        yield made


def lead(netns: Namespace, family: Family, protocol: str, port: int, virtual: int = 80) -> None:
    """The virtual address's port VIRTUAL leads to PORT of the node."""
    command = "iptables" if family is Family.IPV4 else "ip6tables"
    node = NODE[family] if family is Family.IPV4 else f"[{NODE[family]}]"
    rule = f"-p {protocol} -d {VIRTUAL[family]} --dport {virtual} -j DNAT --to-destination {node}:{port}"
    netns.run([command, "-w", "-t", "nat", "-A", "OUTPUT", *rule.split()])


@pytest.mark.parametrize("family", list(Family))
def test_only_translated_connections_are_taken(netns: Namespace, family: Family) -> None:
    def scenario() -> None:
        with endpoint(say(b"here"), LOOPBACK[family]) as one, forwarding(one, settings=SETTINGS, family=family) as port:
            lead(netns, family, "tcp", port.number)
            with socket.create_connection((VIRTUAL[family], 80), PATIENCE) as client:
                assert read_all(client) == b"here"
            # A Service's port may by chance have the number of its proxy port.
            lead(netns, family, "tcp", port.number, port.number)
            with socket.create_connection((VIRTUAL[family], port.number), PATIENCE) as client:
                assert read_all(client) == b"here"
            for direct in (NODE[family], LOOPBACK[family]):
                with socket.socket(NUMBER[family]) as client:
                    client.settimeout(PATIENCE)
                    assert client.connect_ex((direct, port.number)) != 0 or was_reset(client)
            counted = port.forwarder.statistics()
            assert (counted.accepted, counted.refused) == (4, {"not-translated": 2})

    netns.call(scenario)


@pytest.mark.parametrize("family", list(Family))
def test_the_answer_to_a_translated_datagram_comes_from_the_virtual_address(netns: Namespace, family: Family) -> None:
    def scenario() -> None:
        with (
            datagrams(lambda data: data[::-1], LOOPBACK[family]) as one,
            forwarding(one, family=family, key=DNS) as port,
            socket.socket(NUMBER[family], socket.SOCK_DGRAM) as client,
        ):
            lead(netns, family, "udp", port.number)
            client.settimeout(PATIENCE)
            for text in (b"abc", b"def"):
                client.sendto(text, (VIRTUAL[family], 80))
                data, sender = client.recvfrom(100)
                assert (data, sender[:2]) == (text[::-1], (VIRTUAL[family], 80))

    netns.call(scenario)


def test_the_process_runs_where_the_thread_that_started_it_was(netns: Namespace) -> None:
    def scenario() -> int:
        with endpoint(say(b"inside")) as one, forwarding(one) as port:
            assert port.fetch() == b"inside"
            with pytest.raises(ConnectionRefusedError):
                outside.submit(socket.create_connection, ("127.0.0.1", port.number), PATIENCE).result()
            return port.number

    with ThreadPoolExecutor(1) as outside:
        outside.submit(int).result()  # its thread is started here, outside
        assert netns.call(scenario) > 0
