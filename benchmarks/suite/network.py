"""The network in which the suite measures: namespaces for a node, a client and all endpoints.

    control 10.255.1.1 (the API server) ──┐
    client  10.255.0.2 ── 10.255.0.1 ──── node ── 10.255.0.5 ── 10.255.0.6 endpoints (every other address)

The endpoints' namespace accepts every address as its own, so each of a million endpoints exists and answers, and what
is sent to a cluster IP that no rule translates is refused there at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from pyroute2 import IPRoute

from kproxy.lab import links
from kproxy.lab.namespaces import Namespace

CLUSTER_CIDR = "10.128.0.0/9"  # the client is a pod of this cluster, so nothing is masqueraded
NODE_ADDRESS, CLIENT_ADDRESS = "10.255.0.1", "10.255.0.2"
NODE_TO_PODS, PODS_ADDRESS = "10.255.0.5", "10.255.0.6"
NODE_TO_API, API_TO_NODE, API_ADDRESS = "10.255.1.6", "10.255.1.5", "10.255.1.1"
SERVICE_PORT, TARGET_PORT = 80, 8080

# Endpoints of a cluster start at 10.128.0.1 (see benchmarks.cluster), those that replace them here.
FIRST_REPLACEMENT = (10 << 24) + (160 << 16)
REPLACEMENTS = 94 << 16  # up to 10.253.255.255
MOST_ENDPOINTS = (32 << 16) - 2

SYSCTLS = links.HOST_SYSCTLS | {
    "ipv4/icmp_ratemask": "0",
    # Closed connections are forgotten soon, so that those of one size do not slow down the next.
    "netfilter/nf_conntrack_tcp_timeout_close": "1",
    "netfilter/nf_conntrack_tcp_timeout_time_wait": "1",
    "ipv4/tcp_tw_reuse": "1",
    "ipv4/tcp_max_syn_backlog": "65536",
    "core/somaxconn": "65536",
}


@dataclass(frozen=True, slots=True)
class World:
    """The namespaces of an empty node, of a pod that is the client, and of all endpoints."""

    node: Namespace
    client: Namespace
    pods: Namespace


@contextlib.contextmanager
def control() -> Iterator[Namespace]:
    """The API server's namespace, which outlives the nodes. Raises KernelError where none can be created."""
    with contextlib.closing(Namespace("control")) as space:
        links.up(space)
        links.address(space, "lo", f"{API_ADDRESS}/32")
        yield space


@contextlib.contextmanager
def around(control: Namespace) -> Iterator[World]:
    """A new world, connected to `control`; removed when the block ends, with everything that runs in it."""
    with contextlib.ExitStack() as stack:
        node, client, pods = (stack.enter_context(contextlib.closing(_space(n))) for n in ("node", "client", "pods"))
        links.connect(node, "to-api", control, "to-node")
        stack.callback(_unplug, control, "to-node")  # the namespace goes some time after its last user
        links.address(node, "to-api", f"{NODE_TO_API}/30")
        links.address(control, "to-node", f"{API_TO_NODE}/30")
        links.route(node, "to-api", f"{API_ADDRESS}/32", via=API_TO_NODE)
        links.connect(node, "to-client", client, "eth0")
        links.address(node, "to-client", f"{NODE_ADDRESS}/30")
        links.address(client, "eth0", f"{CLIENT_ADDRESS}/30")
        links.route(client, "eth0", "0.0.0.0/0", via=NODE_ADDRESS)
        links.connect(node, "to-pods", pods, "eth0")
        links.address(node, "to-pods", f"{NODE_TO_PODS}/30")
        links.address(pods, "eth0", f"{PODS_ADDRESS}/30")
        links.route(node, "to-pods", "0.0.0.0/0", via=PODS_ADDRESS)
        links.route(pods, "eth0", "10.255.0.0/16", via=NODE_TO_PODS)
        pods.call(_take_every_address)
        yield World(node, client, pods)


def _space(name: str) -> Namespace:
    space = Namespace(name)
    space.sysctl(SYSCTLS)
    links.up(space)
    return space


def _take_every_address() -> None:
    with IPRoute() as ip:
        (loopback,) = ip.link_lookup(ifname="lo")
        # In the main table, where a longer prefix wins; the table of local addresses comes before any other.
        ip.route("add", dst="0.0.0.0/0", oif=loopback, type="local", scope="host", table=254)


def _unplug(space: Namespace, interface: str) -> None:
    def work() -> None:
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=interface):
                ip.link("del", index=index)

    space.call(work)
