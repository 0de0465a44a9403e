"""The namespaces that a measurement needs: see `addresses` for the picture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from pyroute2 import IPRoute

from benchmarks.suite import addresses as at
from kproxy.lab import links
from kproxy.lab.namespaces import Namespace

SYSCTLS = links.HOST_SYSCTLS | {
    "ipv4/icmp_ratemask": "0",
    # Closed connections are forgotten soon: what one size left behind would slow down the next.
    "netfilter/nf_conntrack_tcp_timeout_close": "1",
    "netfilter/nf_conntrack_tcp_timeout_time_wait": "1",
    "ipv4/tcp_tw_reuse": "1",
    "ipv4/tcp_max_syn_backlog": "65536",
    "core/somaxconn": "65536",
}


@dataclass(frozen=True, slots=True)
class World:
    """A node with nothing on it yet, a pod that is the client, and the place where all endpoints are."""

    node: Namespace
    client: Namespace
    pods: Namespace


@contextlib.contextmanager
def control() -> Iterator[Namespace]:
    """Where the API server is reached. It outlives the nodes. Raises KernelError where namespaces cannot be had."""
    with contextlib.closing(Namespace("control")) as space:
        links.up(space)
        links.address(space, "lo", f"{at.API_ADDRESS}/32")
        yield space


@contextlib.contextmanager
def around(control: Namespace) -> Iterator[World]:
    """A new world, joined to CONTROL, gone when the block ends with all that runs in it."""
    with contextlib.ExitStack() as stack:
        node, client, pods = (stack.enter_context(contextlib.closing(_space(n))) for n in ("node", "client", "pods"))
        links.connect(node, "to-api", control, "to-node")
        stack.callback(_unplug, control, "to-node")  # a namespace goes some time after its last user does
        links.address(node, "to-api", f"{at.NODE_TO_API}/30")
        links.address(control, "to-node", f"{at.API_TO_NODE}/30")
        links.route(node, "to-api", f"{at.API_ADDRESS}/32", via=at.API_TO_NODE)
        links.connect(node, "to-client", client, "eth0")
        links.address(node, "to-client", f"{at.NODE_ADDRESS}/30")
        links.address(client, "eth0", f"{at.CLIENT_ADDRESS}/30")
        links.route(client, "eth0", "0.0.0.0/0", via=at.NODE_ADDRESS)
        links.connect(node, "to-pods", pods, "eth0")
        links.address(node, "to-pods", f"{at.NODE_TO_PODS}/30")
        links.address(pods, "eth0", f"{at.PODS_ADDRESS}/30")
        links.route(node, "to-pods", "0.0.0.0/0", via=at.PODS_ADDRESS)
        links.route(pods, "eth0", "10.255.0.0/16", via=at.NODE_TO_PODS)
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
        # In the main table, where a narrower route wins; the table of local addresses is asked before any other.
        ip.route("add", dst="0.0.0.0/0", oif=loopback, type="local", scope="host", table=254)


def _unplug(space: Namespace, interface: str) -> None:
    def work() -> None:
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=interface):
                ip.link("del", index=index)

    space.call(work)
