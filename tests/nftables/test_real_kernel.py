"""Packets that meet the rendered text are treated as the table of scenarios requires."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kproxy.config.files import from_text
from kproxy.lab import probes
from kproxy.lab.clusters import CLUSTER_CIDRS, build
from kproxy.lab.deployment import Deployment
from kproxy.lab.namespaces import unavailable
from kproxy.lab.probes import Nothing
from kproxy.lab.proxies import Manifests, Proxy
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import PODS, PORTS, Scenario, Via, node_objects
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import TYPES, Kind, Object
from kproxy.model.plans import Family
from kproxy.modes.preview import Preview, load

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable(("nft",))), reason=unavailable(("nft",)))]

CIDRS = {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]}}


def cluster_state() -> Preview:
    """Node1's view of a cluster with all scenarios at once."""
    kinds: dict[Kind, list[Object]] = {Kind.SERVICE_CIDR: [msgspec.convert(CIDRS, TYPES[Kind.SERVICE_CIDR])]}
    for item in (*node_objects(), *(o for s in SCENARIOS for o in s.objects())):
        kind = Kind(item["kind"])
        kinds.setdefault(kind, []).append(msgspec.convert(item, TYPES[kind]))
    state, problems = load("node1", kinds)
    assert {p.field.partition("[")[0] for p in problems} <= {"spec.loadBalancerSourceRanges"}
    header = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
    config = from_text(json.dumps({**header, "mode": "nftables", "clusterCIDR": CLUSTER_CIDRS}))
    node = ("172.30.0.11", "fd00:30::11")
    return Preview(state, config, NodeInfo(ips=node, addresses=node))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The lab's cluster with the rendered tables on node1, and no proxy at work."""
    folder: Path = tmp_path_factory.mktemp("deployment")
    preview = cluster_state()
    with build(PODS, PORTS) as cluster:
        node = cluster.spaces["node1"]
        for family in Family:
            node.run(["nft", "-f", "-"], preview.nftables(family))
        idle = Proxy(node, folder, folder / "log")
        yield Deployment(cluster, idle, Manifests(folder), "nft", "nftables")


@pytest.mark.slow
@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_packets_are_treated_as_the_scenarios_require(
    deployment: Deployment, scenario: Scenario, family: Family
) -> None:
    assert deployment.faults(scenario, family) == {}


@pytest.mark.slow
@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("source", ["caller", "node1", "client"])
def test_ports_of_no_service_are_refused_at_a_cluster_ip_and_dropped_elsewhere(
    deployment: Deployment, family: Family, source: str
) -> None:
    ip, space = SCENARIOS[0].address(Via.CLUSTER_IP, family), deployment.cluster.spaces[source]
    assert space.call(probes.tcp, ip, 81, 5.0, "") is Nothing.REFUSED
    assert space.call(probes.udp, ip, 81, 5.0, "") is Nothing.REFUSED
    nobody = "10.96.200.200" if family is Family.IPV4 else "fd00:96::c8c8"
    assert space.call(probes.tcp, nobody, 80, 0.3, "") is Nothing.TIMED_OUT


@pytest.mark.slow
def test_one_endpoint_remembers_a_client_for_as_long_as_the_service_asks(deployment: Deployment) -> None:
    scenario = next(s for s in SCENARIOS if s.name == "affinity")
    assert deployment.fault(scenario.probes[0], scenario, Family.IPV4, scenario.ports[0]) == ""
    caller = deployment.cluster.pods["caller"].ip(Family.IPV4)
    held = json.loads(deployment.cluster.spaces["node1"].run(["nft", "-j", "list", "sets", "ip"]))
    sets = {item["set"]["name"]: item["set"] for item in held["nftables"] if "set" in item}
    clients = sets["clients-60s"]
    assert clients["timeout"] == 60
    # TCP and UDP are two ports of the Service, and each may have been asked by now.
    assert len([e for e in clients["elem"] if e["elem"]["val"]["concat"][0] == caller]) in (1, 2)
