"""Without any proxy, everyone reaches every pod, and the pod sees who it was."""

from __future__ import annotations

import pytest

from kproxy.lab import probes
from kproxy.lab.clusters import BALANCER, CLIENT_OTHER, Cluster, node_address
from kproxy.lab.probes import Answered, Nothing
from kproxy.model.plans import Family

FAMILIES = pytest.mark.parametrize("family", list(Family))


@FAMILIES
@pytest.mark.parametrize("source", ["one", "far", "node1", "node2", "client", "router"])
@pytest.mark.parametrize("ask", [probes.tcp, probes.udp])
def test_everyone_reaches_every_pod(cluster: Cluster, family: Family, source: str, ask: probes.Ask) -> None:
    for name, pod in cluster.pods.items():
        outcome = cluster.spaces[source].call(ask, pod.ip(family), 8081, 2, "")
        assert isinstance(outcome, Answered), name
        assert (outcome.pod, outcome.reached, outcome.reached_port) == (name, pod.ip(family), 8081)
        assert outcome.source in cluster.addresses_of(source, family)


@FAMILIES
def test_the_client_may_choose_its_second_address(cluster: Cluster, family: Family) -> None:
    outcome = cluster.spaces["client"].call(probes.tcp, cluster.pods["one"].ip(family), 8080, 2, CLIENT_OTHER[family])
    assert isinstance(outcome, Answered)
    assert outcome.source == CLIENT_OTHER[family]


@FAMILIES
def test_the_balancer_of_the_outside_is_reached_from_a_pod(cluster: Cluster, family: Family) -> None:
    outcome = cluster.spaces["one"].call(probes.tcp, BALANCER[family], 80)
    assert isinstance(outcome, Answered)
    assert outcome.pod == "balancer"


@pytest.mark.parametrize(
    ("ip", "port", "expected"),
    [
        ("10.244.1.11", 9, Nothing.REFUSED),
        ("fd00:244:1::11", 9, Nothing.REFUSED),
        ("10.99.0.1", 80, Nothing.UNREACHABLE),
        ("fd00:99::1", 80, Nothing.UNREACHABLE),
    ],
)
def test_no_answer_says_why(cluster: Cluster, ip: str, port: int, expected: Nothing) -> None:
    assert cluster.spaces["client"].call(probes.tcp, ip, port) is expected


@FAMILIES
def test_a_refused_datagram_says_so(cluster: Cluster, family: Family) -> None:
    assert cluster.spaces["client"].call(probes.udp, cluster.pods["far"].ip(family), 9) is Nothing.REFUSED


def test_a_dropped_packet_times_out(cluster: Cluster) -> None:
    # An address of the node network that nobody has: the packet waits for a neighbour longer than we do.
    assert cluster.spaces["client"].call(probes.tcp, "172.30.0.77", 80, 0.2) is Nothing.TIMED_OUT


@FAMILIES
def test_a_udp_client_keeps_its_port(cluster: Cluster, family: Family) -> None:
    def ask_twice() -> list[object]:
        with probes.udp_client(cluster.pods["one"].ip(family), 8080) as client:
            return [client.ask(), client.ask()]

    first, second = cluster.spaces["client"].call(ask_twice)
    assert isinstance(first, Answered)
    assert first == second


@FAMILIES
def test_a_held_connection_lives_until_it_is_cut(cluster: Cluster, family: Family) -> None:
    held = cluster.spaces["far"].call(probes.Held, cluster.pods["one"].ip(family), 8080)
    assert isinstance(held.first, Answered)
    assert held.alive()
    held.close()
    assert not held.alive()


def test_there_is_no_http_where_nobody_listens(cluster: Cluster) -> None:
    assert cluster.spaces["client"].call(probes.http_status, node_address(1, Family.IPV4), 30999)[0] == 0
