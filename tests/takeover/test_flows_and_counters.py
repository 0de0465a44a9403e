"""What lives in the kernel beside the rules: UDP flows over a restart, and kube-proxy's packet counters."""

from __future__ import annotations

import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from kproxy.conntrack.table import KernelConntrack
from kproxy.kernel import nfacct
from kproxy.lab import probes
from kproxy.lab.clusters import CLIENT
from kproxy.lab.deployment import Deployment, deployment
from kproxy.lab.namespaces import unavailable
from kproxy.lab.probes import Answered
from kproxy.lab.proxies import wait_for
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import PODS, Scenario, Via
from kproxy.model.plans import Family, Protocol

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
STAYING, GOING, NODE_PORT = BY_NAME["cluster-ip"], BY_NAME["hairpin"], BY_NAME["node-port"]
LONG = ["--iptables-sync-period=1h", "--iptables-min-sync-period=50ms"]
SOON = 60.0
INVALID = "kubeproxy_iptables_ct_state_invalid_dropped_packets_total"
LOCALHOST = "kubeproxy_iptables_localhost_nodeports_accepted_packets_total"
SYN_AND_RESET = 0x06  # TCP flags that never come together, so that connection tracking calls the packet invalid


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    if reason := unavailable(("iptables-nft-restore", "ip6tables-nft-restore")):
        pytest.skip(reason)
    with deployment(tmp_path_factory.mktemp("flows"), "nft", LONG, (GOING, NODE_PORT, STAYING)) as under_way:
        yield under_way
        assert under_way.proxy.running(), under_way.proxy.tail()


# ---------------------------------------------------------------- UDP flows over a restart


def flows(running: Deployment, family: Family, scenario: Scenario) -> list[int]:
    """The kernel's numbers of the UDP flows to the Service's cluster IP."""
    found = running.cluster.spaces["node1"].call(KernelConntrack().flows, family, [Protocol.UDP])
    address = scenario.address(Via.CLUSTER_IP, family)
    return [flow.id for flow in found if flow.destination == address]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_flows_of_a_service_deleted_meanwhile_go_and_those_that_lead_somewhere_stay(
    running: Deployment, ending: signal.Signals
) -> None:
    port, caller = STAYING.ports[1].port, running.cluster.spaces["caller"]
    with ExitStack() as stack:
        for scenario in (STAYING, GOING):
            for family in Family:
                context = probes.udp_client(scenario.address(Via.CLUSTER_IP, family), port)
                client = caller.call(context.__enter__)
                stack.push(context)
                assert isinstance(client.ask(), Answered)
        staying = {family: flows(running, family, STAYING) for family in Family}
        assert all(staying.values())
        assert all(flows(running, family, GOING) for family in Family)
        running.proxy.stop(ending)
        running.manifests.remove(GOING.name)
        running.proxy.start()
        assert wait_for(lambda: not any(flows(running, family, GOING) for family in Family), SOON), running.proxy.tail()
        assert {family: flows(running, family, STAYING) for family in Family} == staying
    running.manifests.put(GOING.name, GOING.objects())
    running.proxy.await_ready(lambda: running.serves(GOING))


# ---------------------------------------------------------------- counters


def exported(running: Deployment, name: str) -> float:
    node = running.cluster.spaces["node1"]
    _, _, text = node.call(probes.http_status, "127.0.0.1", 10249, "/metrics")
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


def test_node_ports_on_localhost_are_counted(running: Deployment) -> None:
    before = exported(running, LOCALHOST)
    port = NODE_PORT.port(Via.LOCALHOST, NODE_PORT.ports[0])
    for _ in range(3):
        assert isinstance(running.cluster.spaces["node1"].call(probes.tcp, "127.0.0.1", port), Answered)
    assert exported(running, LOCALHOST) == before + 3


def test_dropped_invalid_packets_are_counted(running: Deployment) -> None:
    before = exported(running, INVALID)
    source, target = CLIENT[Family.IPV4], PODS[0].ip(Family.IPV4)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            raw.sendto(segment(source, target, SYN_AND_RESET), (target, 0))

    for _ in range(5):
        running.cluster.spaces["client"].call(send)
    assert wait_for(lambda: exported(running, INVALID) == before + 5, SOON)


def segment(source: str, target: str, flags: int) -> bytes:
    """A TCP header with these `flags` and a checksum that is right (RFC 9293)."""
    header = struct.pack(">HHIIBBHHH", 40000, 8080, 1, 0, 5 << 4, flags, 1024, 0, 0)
    pseudo = struct.pack(">4s4sBBH", socket.inet_aton(source), socket.inet_aton(target), 0, 6, len(header))
    total = sum(struct.unpack(f">{len(pseudo + header) // 2}H", pseudo + header))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return header[:16] + struct.pack(">H", checksum) + header[18:]


def test_the_counters_are_kube_proxys_and_outlive_a_restart(running: Deployment) -> None:
    node = running.cluster.spaces["node1"]
    before = node.call(nfacct.counters)
    assert before.keys() == {"ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"}
    assert running.proxy.stop() == 0
    running.proxy.start()
    running.proxy.await_ready(lambda: node.call(probes.http_status, "127.0.0.1", 10249, "/healthz")[0] == 200)
    assert node.call(nfacct.counters) == before
    assert exported(running, LOCALHOST) == before["localhost_nps_accepted_pkts"].packets
