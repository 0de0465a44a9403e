"""Traffic follows a change of the cluster at once: the proxy's periodic sync is an hour away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.lab import probes
from kproxy.lab.deployment import Deployment
from kproxy.lab.probes import Answered, Nothing, Outcome
from kproxy.lab.proxies import wait_for
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import End, Scenario, Via
from kproxy.model.plans import Family

FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda f: f.value)
SOON = 60  # seconds; a change takes a fraction of one, but the machine may be busy


@pytest.fixture
def moving(running: Deployment) -> Iterator[Scenario]:
    """A Service whose endpoints the test may change; as in the table again afterwards."""
    scenario = next(s for s in SCENARIOS if s.name == "several-ports")
    yield scenario
    running.manifests.put(scenario.name, scenario.objects())


def pod_of(outcome: Outcome) -> str | Nothing:
    return outcome.pod if isinstance(outcome, Answered) else outcome


def come_to(client: probes.UdpClient, expected: str | Nothing) -> bool:
    """Whether the client's datagrams come to be answered so. Its socket is bound to its namespace already."""
    return wait_for(lambda: pod_of(client.ask(0.2)) == expected, SOON)


def lead_to(running: Deployment, address: str, port: int, pod: str) -> bool:
    """Whether new connections of the calling pod come to be answered by `pod`."""
    caller = running.cluster.spaces["caller"]
    return wait_for(lambda: pod_of(caller.call(probes.tcp, address, port)) == pod, SOON)


@FAMILIES
@pytest.mark.parametrize("source", ["caller", "client", "node1"])
def test_a_udp_client_on_one_source_port_follows_its_endpoint(
    running: Deployment, moving: Scenario, family: Family, source: str
) -> None:
    dns = moving.ports[2]
    via = Via.NODE_PORT if source == "client" else Via.CLUSTER_IP
    context = probes.udp_client(moving.address(via, family), moving.port(via, dns))
    client = running.cluster.spaces[source].call(context.__enter__)
    try:
        for pod in ("a", "far", "b"):
            running.manifests.put(moving.name, moving.objects((End(pod),)))
            assert come_to(client, pod)
        running.manifests.put(moving.name, moving.objects(()))
        assert come_to(client, Nothing.REFUSED)
        running.manifests.put(moving.name, moving.objects((End("a"),)))
        assert come_to(client, "a")
    finally:
        context.__exit__(None, None, None)


@FAMILIES
def test_a_deleted_service_is_gone_for_a_udp_client_too(running: Deployment, moving: Scenario, family: Family) -> None:
    dns = moving.ports[2]
    context = probes.udp_client(moving.address(Via.CLUSTER_IP, family), dns.port)
    client = running.cluster.spaces["caller"].call(context.__enter__)
    try:
        assert wait_for(lambda: isinstance(client.ask(0.2), Answered), SOON)
        running.manifests.remove(moving.name)
        assert wait_for(lambda: not isinstance(client.ask(0.2), Answered), SOON)
        running.manifests.put(moving.name, moving.objects())
        assert wait_for(lambda: isinstance(client.ask(0.2), Answered), SOON)
    finally:
        context.__exit__(None, None, None)


@FAMILIES
def test_new_connections_follow_and_the_old_one_stays(running: Deployment, moving: Scenario, family: Family) -> None:
    web, caller = moving.ports[0], running.cluster.spaces["caller"]
    address = moving.address(Via.CLUSTER_IP, family)
    held = caller.call(probes.Held, address, web.port)
    try:
        for pod in ("b", "far"):
            running.manifests.put(moving.name, moving.objects((End(pod),)))
            assert lead_to(running, address, web.port, pod)
            assert held.alive()
    finally:
        held.close()


@FAMILIES
def test_a_service_taken_out_and_put_back(running: Deployment, moving: Scenario, family: Family) -> None:
    caller = running.cluster.spaces["caller"]
    target = moving.address(Via.CLUSTER_IP, family), moving.ports[0].port
    running.manifests.remove(moving.name)
    assert wait_for(lambda: not isinstance(caller.call(probes.tcp, *target, 0.5), Answered), SOON)
    running.manifests.put(moving.name, moving.objects())
    assert wait_for(lambda: isinstance(caller.call(probes.tcp, *target, 0.5), Answered), SOON)
