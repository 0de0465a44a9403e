"""Two nodes with pods, an outside client and a router, all dual stack.

    client 172.30.0.100, .101 ─┐
    router 172.30.0.1 ─────────┼─ one switch ─┬─ node1 172.30.0.11 ── pods 10.244.1.11 … (one veth each)
    (and 203.0.113.250)        ┘              └─ node2 172.30.0.12 ── pods 10.244.2.11 …

kproxy runs on node1, to which the client routes cluster IPs, load balancer IPs and external IPs. The router is the
default gateway of all others, knows none of these addresses, and acts as load balancer at 203.0.113.250. IPv6 is alike:
fd00:30::, fd00:244:N::, fd00:96::, 2001:db8:113::.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kproxy.lab import links
from kproxy.lab.namespaces import Namespace
from kproxy.lab.servers import Servers
from kproxy.model.plans import Family

BOTH = (Family.IPV4, Family.IPV6)
CLUSTER_CIDRS = "10.244.0.0/16,fd00:244::/32"
CLIENT = {Family.IPV4: "172.30.0.100", Family.IPV6: "fd00:30::100"}
CLIENT_OTHER = {Family.IPV4: "172.30.0.101", Family.IPV6: "fd00:30::101"}
ROUTER = {Family.IPV4: "172.30.0.1", Family.IPV6: "fd00:30::1"}
BALANCER = {Family.IPV4: "203.0.113.250", Family.IPV6: "2001:db8:113::250"}
SERVICES = {Family.IPV4: ("10.96.0.0/16", "203.0.113.0/24"), Family.IPV6: ("fd00:96::/112", "2001:db8:113::/64")}
NODE_LEN = {Family.IPV4: 24, Family.IPV6: 64}
HOST_LEN = {Family.IPV4: 32, Family.IPV6: 128}
DEFAULT = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod: its name, the node (1 or 2) that it runs on, and the last part of its addresses (11 or more)."""

    name: str
    node: int
    number: int

    def ip(self, family: Family) -> str:
        """Its address, such as 10.244.1.11."""
        return f"10.244.{self.node}.{self.number}" if family is Family.IPV4 else f"fd00:244:{self.node}::{self.number}"


@dataclass(slots=True)
class Cluster:
    """A running cluster. spaces: its namespaces by name (node1, node2, router, client, and the pods)."""

    pods: dict[str, Pod]
    servers: Servers
    spaces: dict[str, Namespace] = field(default_factory=dict)

    def addresses_of(self, name: str, family: Family) -> frozenset[str]:
        """The addresses that packets of `name` may have as their source."""
        if name in self.pods:
            return frozenset({self.pods[name].ip(family)})
        if name.startswith("node"):
            return frozenset({node_address(int(name[-1]), family), gateway_of(int(name[-1]), family)})
        return frozenset({CLIENT[family]} if name == "client" else {ROUTER[family]})


def node_address(node: int, family: Family) -> str:
    """A node's own IP."""
    return f"172.30.0.1{node}" if family is Family.IPV4 else f"fd00:30::1{node}"


def gateway_of(node: int, family: Family) -> str:
    """The node's address on each of its pods' links."""
    return f"10.244.{node}.1" if family is Family.IPV4 else f"fd00:244:{node}::1"


@contextlib.contextmanager
def build(pods: Sequence[Pod], ports: Mapping[str, Sequence[int]] | Sequence[int] = (8080,)) -> Iterator[Cluster]:
    """A cluster with these pods, removed when the block ends.

    ports: the ports of each pod, or one list for all of them. Raises KernelError where namespaces cannot be created.
    """
    with contextlib.ExitStack() as undo:
        cluster = Cluster({pod.name: pod for pod in pods}, undo.enter_context(contextlib.closing(Servers())))
        for name in ("router", "client", "node1", "node2", *cluster.pods):
            space = cluster.spaces[name] = undo.enter_context(contextlib.closing(Namespace(name)))
            space.sysctl(links.HOST_SYSCTLS)
            links.up(space)
        _join_switch(cluster.spaces)
        _route_outside(cluster.spaces)
        for pod in pods:
            _attach(cluster.spaces, pod)
            served = ports.get(pod.name, ()) if isinstance(ports, Mapping) else ports
            cluster.servers.add(cluster.spaces[pod.name], pod.name, [pod.ip(f) for f in BOTH], served)
        cluster.servers.add(cluster.spaces["router"], "balancer", BALANCER.values(), (80,))
        yield cluster


def _join_switch(spaces: Mapping[str, Namespace]) -> None:
    members = ("client", "node1", "node2")
    for name in members:
        links.connect(spaces[name], "eth0", spaces["router"], f"to-{name}")
    links.bridge(spaces["router"], "switch", [f"to-{name}" for name in members])
    for family in BOTH:
        length = NODE_LEN[family]
        links.address(spaces["router"], "switch", f"{ROUTER[family]}/{length}")
        links.address(spaces["router"], "lo", f"{BALANCER[family]}/{HOST_LEN[family]}")
        links.address(spaces["client"], "eth0", f"{CLIENT[family]}/{length}", f"{CLIENT_OTHER[family]}/{length}")
        for node in (1, 2):
            links.address(spaces[f"node{node}"], "eth0", f"{node_address(node, family)}/{length}")


def _route_outside(spaces: Mapping[str, Namespace]) -> None:
    for family in BOTH:
        pods = {1: "10.244.1.0/24", 2: "10.244.2.0/24"}
        if family is Family.IPV6:
            pods = {1: "fd00:244:1::/64", 2: "fd00:244:2::/64"}
        links.route(spaces["node1"], "eth0", pods[2], via=node_address(2, family))
        links.route(spaces["node2"], "eth0", pods[1], via=node_address(1, family))
        for node, network in pods.items():
            links.route(spaces["router"], "switch", network, via=node_address(node, family))
        for name in ("node1", "node2", "client"):
            links.route(spaces[name], "eth0", DEFAULT[family], via=ROUTER[family])
        links.route(spaces["client"], "eth0", *SERVICES[family], via=node_address(1, family))
        links.route(spaces["client"], "eth0", f"{BALANCER[family]}/{HOST_LEN[family]}", via=ROUTER[family])


def _attach(spaces: Mapping[str, Namespace], pod: Pod) -> None:
    """Connect a pod by a link of its own, not a switch, so that replies between pods of a node pass its rules too."""
    node, own, outer = spaces[f"node{pod.node}"], spaces[pod.name], f"veth{pod.number}"
    links.connect(node, outer, own, "eth0")
    for family in BOTH:
        length, gateway = HOST_LEN[family], gateway_of(pod.node, family)
        links.address(node, outer, f"{gateway}/{length}")
        links.route(node, outer, f"{pod.ip(family)}/{length}")
        links.address(own, "eth0", f"{pod.ip(family)}/{length}")
        links.route(own, "eth0", f"{gateway}/{length}")
        links.route(own, "eth0", DEFAULT[family], via=gateway)
