"""Clients with affinity while their endpoints come and go, and while another daemon takes the table over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from msgspec.structs import replace

from kproxy.lab import probes
from kproxy.lab.clusters import CLIENT, CLIENT_OTHER, Cluster, build
from kproxy.lab.namespaces import unavailable
from kproxy.lab.probes import Answered
from kproxy.lab.scenarios import PODS, PORTS
from kproxy.model.plans import Endpoint, Family, ServicePlan
from tests.nftables.plans import build_plan, settings
from tests.nftables_mode.test_real_kernel import Rig

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable(("nft",))), reason=unavailable(("nft",)))]

TRIES = 12
VIP = {Family.IPV4: "10.96.0.9", Family.IPV6: "fd00:96::9"}
FAMILIES = pytest.mark.parametrize("family", Family)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with build(PODS, PORTS) as made:
        yield made


def plan(family: Family, *pods: str, seconds: int = 60) -> ServicePlan:
    ends = tuple(Endpoint(pod.ip(family), 8080, pod.node == 1) for pod in PODS if pod.name in pods)
    return replace(
        build_plan("sticky", family=family, cluster=(), cluster_ip=VIP[family], affinity_seconds=seconds),
        cluster=ends,
        reachable=ends,
        has_endpoints=bool(ends),
    )


class Sticky:
    """A client's view of one Service."""

    def __init__(self, cluster: Cluster, family: Family) -> None:
        self._space, self._family = cluster.spaces["client"], family

    def pod(self, own: str = "") -> str:
        found = self._space.call(probes.tcp, VIP[self._family], 80, 5.0, own or CLIENT[self._family])
        assert isinstance(found, Answered), found
        return found.pod

    def pods(self, own: str = "") -> set[str]:
        """Who answers over many connections."""
        return {self.pod(own) for _ in range(TRIES)}


@FAMILIES
def test_a_client_keeps_its_endpoint_until_it_is_removed(cluster: Cluster, family: Family) -> None:
    node, client = cluster.spaces["node1"], Sticky(cluster, family)
    with closing(node.call(Rig, settings(family))) as rig:
        everyone = ("a", "b", "far")
        node.call(rig.want, plan(family, *everyone))
        (first,) = client.pods()
        others = tuple(pod for pod in everyone if pod != first)
        node.call(rig.want, plan(family, *others))
        (second,) = client.pods()
        assert second in others
        node.call(rig.want, plan(family, first, second))
        assert len(client.pods()) == 1  # one of the two that it has known
        node.call(rig.want, plan(family, first))
        assert client.pods() == {first}
        node.call(rig.drop, plan(family, first))
        node.call(rig.remove)


@FAMILIES
def test_clients_keep_their_endpoints_across_a_restart(cluster: Cluster, family: Family) -> None:
    node, client = cluster.spaces["node1"], Sticky(cluster, family)
    with closing(node.call(Rig, settings(family))) as rig:
        node.call(rig.want, plan(family, "a", "b", "far"))
        known = {own: client.pod(own) for own in (CLIENT[family], CLIENT_OTHER[family])}
    with closing(node.call(Rig, settings(family))) as heir:
        heir.plans = {plan(family).key: plan(family, "a", "b", "far")}
        node.call(heir.check)
        assert {own: client.pods(own) for own in known} == {own: {pod} for own, pod in known.items()}
        node.call(heir.remove)


@FAMILIES
def test_a_client_is_forgotten_after_the_timeout(cluster: Cluster, family: Family) -> None:
    node, client = cluster.spaces["node1"], Sticky(cluster, family)
    with closing(node.call(Rig, settings(family))) as rig:
        node.call(rig.want, plan(family, "a", "b", "far", seconds=1))
        (first,) = client.pods()
        seen = {first}
        for _ in range(10):
            if len(seen) > 1:
                break
            time.sleep(1.1)
            seen.add(client.pod())
        assert len(seen) > 1
        node.call(rig.remove)
