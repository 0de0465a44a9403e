"""Node ports on loopback in IPVS mode: the forwarder serves those that nodePortAddresses names, by TCP."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing

import pytest

from kproxy.clocks import SystemClock
from kproxy.config.files import from_text
from kproxy.containment import Containment
from kproxy.kernel.commands import Commands
from kproxy.lab import links, probes
from kproxy.lab.namespaces import Namespace
from kproxy.lab.probes import Answered, Nothing
from kproxy.lab.servers import Servers
from kproxy.metrics.registry import Metrics
from kproxy.model.node_info import NodeInfo
from kproxy.model.plan_store import FamilyPlans
from kproxy.model.plans import Endpoint, Family, PortKey, Protocol, ServicePlan
from kproxy.modes.drivers import Equipment
from kproxy.modes.ipvs.driver import IpvsDriver
from kproxy.modes.settings import Features
from tests.ipvs.nodes import NFT, PATIENCE, TARGET

pytestmark = pytest.mark.ipvs_kernel

POD = {Family.IPV4: "10.244.1.11", Family.IPV6: "fd00:244:1::11"}
LOOPBACK = {Family.IPV4: ("127.0.0.1", "127.0.0.5"), Family.IPV6: ("::1",)}


def plan(family: Family, protocol: Protocol) -> ServicePlan:
    end = (Endpoint(POD[family], TARGET, local=True),)
    return ServicePlan(
        key=PortKey("default", "web", "", protocol),
        family=family,
        cluster_ip="10.96.0.1" if family is Family.IPV4 else "fd00:96::1",
        port=80,
        node_port=30080,
        cluster=end,
        reachable=end,
        has_endpoints=True,
    )


def test_a_process_serves_tcp_on_the_address_it_listens_on(space: Namespace) -> None:
    fields = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "ipvs"}
    gate = {"featureGates": {"KubeProxyNFTablesLocalhostNodePorts": True}}
    named = {"nodePortAddresses": ["127.0.0.0/8", "::1/128"]}
    with ExitStack() as stack, closing(Servers()) as servers:
        for family in Family:
            links.address(space, "lo", f"{POD[family]}/{32 if family is Family.IPV4 else 128}")
            servers.add(space, "pod", [POD[family]], [TARGET])
        containment = Containment(SystemClock())
        metrics = Metrics(tuple(Family), "ipvs", "", containment)
        config = from_text(json.dumps({**fields, **gate, **named}))
        equipment = Equipment(config, Commands(), NFT, Features(), metrics, containment, stack)
        driver = space.call(IpvsDriver, equipment)
        dataplanes = {family: space.call(driver.dataplane, family) for family in Family}
        node = NodeInfo(addresses=(*POD.values(), "127.0.0.1", "::1"))
        plans = {f: {made.key: made for made in (plan(f, Protocol.TCP), plan(f, Protocol.UDP))} for f in Family}
        for serves in (True, False):
            equipment.config = from_text(json.dumps({**fields, **named, **(gate if serves else {})}))
            for family in Family:
                driver.configure(family, node, FamilyPlans())
                assert space.call(dataplanes[family].apply, plans[family], set(plans[family])).rejected == {}
                for number, ip in enumerate(LOOPBACK[family]):
                    found = space.call(probes.tcp, ip, 30080, PATIENCE)
                    assert isinstance(found, Answered) == (serves and not number), (ip, found)
                    assert isinstance(found, Answered) or found is Nothing.REFUSED
                    assert space.call(probes.udp, ip, 30080, PATIENCE) is Nothing.REFUSED
