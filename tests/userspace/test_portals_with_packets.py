"""Real packets through portal rules, to plain sockets that listen in the forwarder's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from kproxy.kernel.iptables import Backend, Command, HostTables
from kproxy.lab import probes
from kproxy.lab.clusters import Cluster, Pod, build, node_address
from kproxy.lab.namespaces import unavailable
from kproxy.lab.probes import Answered, Nothing, Outcome
from kproxy.model.node_info import DetectLocal, DetectLocalBy
from kproxy.model.plans import Family, Protocol, ServicePlan
from kproxy.modes.userspace.apply import UserspaceDataplane
from kproxy.modes.userspace.listeners import ListenerKey, Reach
from kproxy.modes.userspace.render import Settings
from tests.fakes.forwarder import FakeForwarder
from tests.network_namespaces import InNamespace
from tests.plans import build_plan, by_key

pytestmark = pytest.mark.root

PODS = {Family.IPV4: "10.244.0.0/16", Family.IPV6: "fd00:244::/32"}
LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
SERVED = {Protocol.TCP: probes.tcp, Protocol.UDP: probes.udp}
PATIENCE, IMPATIENCE = 5.0, 0.3  # seconds


def plan_of(name: str, family: Family, protocol: Protocol) -> ServicePlan:
    number = sorted(PLANS).index(name) + 1
    external = f"203.0.113.{number}" if family is Family.IPV4 else f"2001:db8:113::{number}"
    fields: dict[str, Any] = {"cluster": (99,), "node_port": 30080 + number, "external_ips": (external,)}
    return build_plan(name, protocol, family, **(fields | PLANS[name]))


PLANS: dict[str, dict[str, Any]] = {
    "web": {},
    "local": {"external_local": True, "local": (99,)},
    "elsewhere": {"external_local": True},
    "none": {"cluster": ()},
}


@dataclass(slots=True)
class Lab:
    """A cluster whose node1 has portals for all plans, and something that answers at every proxy port."""

    cluster: Cluster
    forwarder: FakeForwarder
    backend: Backend

    def ask(self, source: str, ip: str, port: int, protocol: Protocol, timeout: float = PATIENCE) -> Outcome:
        return self.asking(source, ip, port, protocol, timeout).result()

    def asking(self, source: str, ip: str, port: int, protocol: Protocol, timeout: float = PATIENCE) -> Future[Outcome]:
        return self.cluster.spaces[source].submit(SERVED[protocol], ip, port, timeout, "")

    def reach(self, outcome: Outcome, plan: ServicePlan) -> Reach | Nothing | None:
        """Which of the plan's listeners answered; None for another plan's."""
        if isinstance(outcome, Nothing):
            return outcome
        ports = self.forwarder.ports
        found = [r for r in Reach if ports.get((plan.family, ListenerKey(plan.key, r))) == outcome.reached_port]
        return found[0] if found else None


@pytest.fixture(scope="module", params=list(Backend))
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if reason := unavailable(("iptables-nft-restore", "iptables-legacy-restore", "ip6tables-nft-restore")):
        pytest.skip(reason)
    forwarder = FakeForwarder()
    with build([Pod("caller", 1, 11)], ()) as cluster:
        node = cluster.spaces["node1"]
        command = Command(request.param, f"-{request.param}", (1, 8, 9))
        for family in Family:
            detect = DetectLocal(DetectLocalBy.CIDR, PODS[family])
            settings = Settings(family, node_address(1, family), detect_local=detect)
            dataplane = UserspaceDataplane(settings, HostTables(InNamespace(node), family, command), forwarder)
            plans = [plan_of(name, family, proto) for name in PLANS for proto in SERVED]
            assert dataplane.apply(by_key(*plans), None).rejected == {}
        for (family, _), port in forwarder.ports.items():
            cluster.servers.add(node, "proxy", ["0.0.0.0" if family is Family.IPV4 else "::"], [port])
        yield Lab(cluster, forwarder, request.param)


Way = Callable[[ServicePlan], tuple[str, int]]
WAYS: dict[str, Way] = {
    "cluster IP": lambda plan: (plan.cluster_ip, plan.port),
    "external IP": lambda plan: (plan.external_ips[0], plan.port),
    "node port": lambda plan: (node_address(1, plan.family), plan.node_port),
    "node port at localhost": lambda plan: (LOOPBACK[plan.family], plan.node_port),
}
C, L, DROPPED, REFUSED = Reach.CLUSTER, Reach.LOCAL, Nothing.TIMED_OUT, Nothing.REFUSED
# name, way, then what a pod, the client and the node meet; the client has no way to another machine's localhost.
MET: list[tuple[str, str, Reach | Nothing, Reach | Nothing | None, Reach | Nothing | None]] = [
    ("web", "cluster IP", C, C, C),
    ("web", "external IP", C, C, C),
    ("web", "node port", C, C, C),
    ("local", "cluster IP", C, C, C),
    ("local", "external IP", C, L, C),
    ("local", "node port", C, L, C),
    ("elsewhere", "cluster IP", C, C, C),
    ("elsewhere", "external IP", C, DROPPED, C),
    ("elsewhere", "node port", C, DROPPED, C),
    ("none", "cluster IP", REFUSED, REFUSED, REFUSED),
    ("none", "external IP", REFUSED, REFUSED, None),
    ("none", "node port", REFUSED, REFUSED, REFUSED),
]
FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
PROTOCOLS = pytest.mark.parametrize("protocol", list(SERVED))


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize(("name", "way", "pod", "client", "node"), MET)
def test_who_meets_what(
    lab: Lab, family: Family, protocol: Protocol, name: str, way: str, pod: Any, client: Any, node: Any
) -> None:
    plan = plan_of(name, family, protocol)
    expected = {source: reach for source, reach in (("caller", pod), ("client", client), ("node1", node)) if reach}
    # At once: the kernel notices some refusals only when it sends its first segment again, a second later.
    asked = {
        source: lab.asking(source, *WAYS[way](plan), protocol, IMPATIENCE if reach is DROPPED else PATIENCE)
        for source, reach in expected.items()
    }
    outcomes = {source: outcome.result() for source, outcome in asked.items()}
    assert {source: lab.reach(outcome, plan) for source, outcome in outcomes.items()} == expected, outcomes


@FAMILIES
def test_node_ports_answer_on_localhost(lab: Lab, family: Family) -> None:
    """Without the sysctl that iptables mode needs, and for IPv6 as well."""
    for name in ("web", "local"):
        plan = plan_of(name, family, Protocol.TCP)
        outcome = lab.ask("node1", *WAYS["node port at localhost"](plan), Protocol.TCP)
        assert lab.reach(outcome, plan) is Reach.CLUSTER


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("source", ["caller", "client", "node1"])
def test_a_proxy_port_is_no_way_around_the_rules(lab: Lab, family: Family, protocol: Protocol, source: str) -> None:
    plan = plan_of("web", family, protocol)
    port = lab.forwarder.ports[family, ListenerKey(plan.key, Reach.CLUSTER)]
    assert lab.ask(source, node_address(1, family), port, protocol) is Nothing.REFUSED
    if source == "node1":
        assert lab.ask(source, LOOPBACK[family], port, protocol) is Nothing.REFUSED


@FAMILIES
@PROTOCOLS
def test_node_ports_pass_an_input_chain_that_is_closed(lab: Lab, family: Family, protocol: Protocol) -> None:
    node = lab.cluster.spaces["node1"]
    restore = [f"ip{'6' if family is Family.IPV6 else ''}tables-{lab.backend}-restore", "--noflush"]
    rules = ["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-j DROP"]
    if family is Family.IPV6:  # neighbours are found by it
        rules.insert(0, "-p ipv6-icmp -j ACCEPT")
    plan = plan_of("local", family, protocol)
    node.run(restore, "*filter\n" + "".join(f"-A INPUT {rule}\n" for rule in rules) + "COMMIT\n")
    try:
        assert lab.reach(lab.ask("client", *WAYS["node port"](plan), protocol), plan) is Reach.LOCAL
        assert lab.reach(lab.ask("caller", *WAYS["node port"](plan), protocol), plan) is Reach.CLUSTER
        assert lab.ask("client", node_address(1, family), 22, protocol, IMPATIENCE) is Nothing.TIMED_OUT, "it is closed"
    finally:
        node.run(restore, "*filter\n" + "".join(f"-D INPUT {rule}\n" for rule in rules) + "COMMIT\n")


@FAMILIES
def test_the_client_sees_the_address_that_it_asked(lab: Lab, family: Family) -> None:
    """The answer of a socket that knows the packet by another address comes back as if from the Service."""
    plan = plan_of("web", family, Protocol.TCP)
    outcome = lab.ask("caller", plan.cluster_ip, plan.port, Protocol.TCP)
    assert isinstance(outcome, Answered)
    assert outcome.source.removeprefix("::ffff:") == lab.cluster.pods["caller"].ip(family)
    assert outcome.reached.removeprefix("::ffff:") != plan.cluster_ip
