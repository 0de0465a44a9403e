"""Corner cases of nftables mode: a Service or two, the node's configuration, and what each client must see.

Addresses are named, so that a corner is written once for both families. Where the table of scenarios
(kproxy.lab.scenarios) has something already, it is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kproxy.lab.clusters import CLIENT, CLIENT_OTHER, CLUSTER_CIDRS, gateway_of, node_address
from kproxy.lab.probes import Nothing
from kproxy.lab.scenarios import PODS
from kproxy.model.plans import Family, Protocol

HOST_PORT = 8090  # where node1 itself serves, as "host"
PORT, NODE_PORT = 80, 30080
VIP, OTHER_VIP, NOBODY, EXTERNAL, HELD = "vip", "other-vip", "nobody", "external", "held"
ADDRESSES: Mapping[str, tuple[str, str]] = {
    VIP: ("10.96.3.1", "fd00:96::301"),
    OTHER_VIP: ("10.96.3.2", "fd00:96::302"),
    NOBODY: ("10.96.200.200", "fd00:96::c8c8"),
    EXTERNAL: ("203.0.113.90", "2001:db8:113::90"),
    HELD: ("203.0.113.99", "2001:db8:113::99"),  # of the node's loopback interface
}


def address(name: str, family: Family) -> str:
    """The address of a pod, a node, a client, or a Service."""
    if name in ADDRESSES:
        return ADDRESSES[name][family is Family.IPV6]
    own = {
        "node1": node_address(1, family),
        "node2": node_address(2, family),
        "gateway": gateway_of(1, family),
        "client": CLIENT[family],
        "client-other": CLIENT_OTHER[family],
    }
    return own.get(name) or next(pod.ip(family) for pod in PODS if pod.name == name)


@dataclass(frozen=True)
class Service:
    """ends: pods, or "host" for node1 itself. external, balancer: names of addresses. spec: more of its spec."""

    ends: tuple[str, ...]
    name: str = "web"
    vip: str = VIP
    port: int = PORT
    node_port: int = 0
    external: tuple[str, ...] = ()
    balancer: tuple[str, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)


class Ask(NamedTuple):
    """source: a pod, node1 or client, by its address `own` if that is another. seen: what the endpoint must see as the
    source ("" for anything), when one of `meets` answers."""

    source: str
    target: str
    port: int
    meets: tuple[str, ...] | Nothing
    seen: str = ""
    own: str = ""
    protocols: tuple[Protocol, ...] = (Protocol.TCP, Protocol.UDP)


@dataclass(frozen=True)
class Corner:
    name: str
    services: tuple[Service, ...]
    asks: tuple[Ask, ...]
    config: Mapping[str, Any] = field(default_factory=dict)


REFUSED, DROPPED = Nothing.REFUSED, Nothing.TIMED_OUT
LOCAL = {"externalTrafficPolicy": "Local"}
BY_NAME = {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "veth"}}
BY_BRIDGE = {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "veth13"}}

CORNERS = (
    Corner(
        "pods known by their address: the node's own address of the pod network is one of them",
        (Service(("far",)),),
        (
            Ask("caller", VIP, PORT, ("far",), "caller"),
            Ask("client", VIP, PORT, ("far",), "node1"),
            Ask("node1", VIP, PORT, ("far",), "gateway", own="gateway"),
        ),
    ),
    Corner(
        "pods known by their interfaces' prefix: what the node sends comes from none",
        (Service(("far",)),),
        (
            Ask("caller", VIP, PORT, ("far",), "caller"),
            Ask("client", VIP, PORT, ("far",), "node1"),
            Ask("node1", VIP, PORT, ("far",), "node1", own="gateway"),
        ),
        BY_NAME,
    ),
    Corner(
        "pods known by one interface",
        (Service(("far",), external=(EXTERNAL,), spec=LOCAL),),
        (
            Ask("caller", VIP, PORT, ("far",), "caller"),
            Ask("b", VIP, PORT, ("far",), "node1"),
            Ask("node1", VIP, PORT, ("far",), "node1", own="gateway"),
            Ask("caller", EXTERNAL, PORT, ("far",), "caller"),
            Ask("b", EXTERNAL, PORT, DROPPED),
            Ask("node1", EXTERNAL, PORT, ("far",), "node1", own="gateway"),
        ),
        BY_BRIDGE,
    ),
    Corner(
        "pods are not known, and nothing is masqueraded",
        (Service(("a",)),),
        (Ask("client", VIP, PORT, ("a",), "client"), Ask("caller", VIP, PORT, ("a",), "caller")),
        {"clusterCIDR": ""},
    ),
    Corner(
        "all is masqueraded",
        (Service(("far",)),),
        (Ask("caller", VIP, PORT, ("far",), "node1"), Ask("client", VIP, PORT, ("far",), "node1")),
        {"nftables": {"masqueradeAll": True}},
    ),
    Corner(
        "an endpoint on the node's own network",
        (Service(("host",), node_port=NODE_PORT, spec=LOCAL),),
        (
            Ask("caller", VIP, PORT, ("host",), "caller"),
            Ask("client", VIP, PORT, ("host",)),
            Ask("node1", VIP, PORT, ("host",)),
            Ask("client", "node1", NODE_PORT, ("host",), "client"),
            Ask("node1", "node1", NODE_PORT, ("host",)),
            Ask("caller", "node1", NODE_PORT, ("host",), "caller"),
        ),
    ),
    Corner(
        "a pod that reaches itself from outside",
        (Service(("a",), node_port=NODE_PORT, external=(EXTERNAL,), spec=LOCAL),),
        (
            Ask("a", "node1", NODE_PORT, ("a",), "gateway"),
            Ask("a", EXTERNAL, PORT, ("a",), "gateway"),
            Ask("b", EXTERNAL, PORT, ("a",), "b"),
        ),
    ),
    Corner(
        "node ports on all addresses of the node",
        (Service(("a",), node_port=NODE_PORT),),
        (
            *(Ask("client", to, NODE_PORT, ("a",), "gateway") for to in ("node1", "gateway", HELD)),
            *(Ask("node1", to, NODE_PORT, ("a",)) for to in ("node1", "gateway", HELD)),
            Ask("node1", "node2", NODE_PORT, REFUSED),
            Ask("client", "node1", NODE_PORT + 1, REFUSED),
        ),
        {"nodePortAddresses": ["0.0.0.0/0", "::/0"]},
    ),
    Corner(
        "node ports on the node's own addresses, unless configured otherwise",
        (Service(("a",), node_port=NODE_PORT),),
        (
            Ask("client", "node1", NODE_PORT, ("a",)),
            Ask("client", "gateway", NODE_PORT, REFUSED),
            Ask("client", HELD, NODE_PORT, REFUSED),
        ),
    ),
    Corner(
        "node ports on addresses of the pods' network alone",
        (Service(("a",), node_port=NODE_PORT),),
        (
            Ask("caller", "gateway", NODE_PORT, ("a",)),
            Ask("client", "gateway", NODE_PORT, ("a",)),
            Ask("client", "node1", NODE_PORT, REFUSED),
            Ask("node1", "node1", NODE_PORT, REFUSED),
            Ask("client", HELD, NODE_PORT, REFUSED),
        ),
        {"nodePortAddresses": CLUSTER_CIDRS.split(",")},
    ),
    Corner(
        "an external IP that is the node's",
        (Service(("a",), external=("node1",)),),
        (
            *(Ask(source, "node1", PORT, ("a",)) for source in ("client", "caller", "node1")),
            Ask("client", "node1", HOST_PORT, ("host",), "client"),
            Ask("client", "node1", PORT + 1, REFUSED),
        ),
    ),
    Corner(
        "an external IP that two Services share by their ports",
        (
            Service(("a",), external=(EXTERNAL,), spec=LOCAL),
            Service(("far",), "web2", OTHER_VIP, 90, external=(EXTERNAL,)),
            Service((), "web3", OTHER_VIP, 91, external=(EXTERNAL,)),
        ),
        (
            Ask("client", EXTERNAL, PORT, ("a",), "client"),
            Ask("client", EXTERNAL, 90, ("far",), "node1"),
            Ask("client", EXTERNAL, 91, REFUSED),
        ),
    ),
    Corner(
        "an external IP and port that two Services share: the first by name has it",
        (
            Service(("a",), external=(EXTERNAL,)),
            Service(("far",), "web2", OTHER_VIP, external=(EXTERNAL,), spec=LOCAL),
        ),
        (
            Ask("client", EXTERNAL, PORT, ("a",), "gateway"),
            Ask("caller", OTHER_VIP, PORT, ("far",), "caller"),
        ),
    ),
    Corner(
        "source ranges that hold the node, which has the load balancer's address",
        (Service(("a",), balancer=(HELD,), spec={"loadBalancerSourceRanges": ["172.30.0.8/29", "fd00:30::10/124"]}),),
        (
            Ask("node1", HELD, PORT, ("a",)),
            Ask("client", HELD, PORT, DROPPED),
            Ask("caller", HELD, PORT, DROPPED),
            Ask("caller", VIP, PORT, ("a",), "caller"),
        ),
    ),
    Corner(
        "source ranges that overlap, of which one is within the other",
        (
            Service(
                ("a",),
                balancer=(EXTERNAL,),
                spec={"loadBalancerSourceRanges": ["172.30.0.100/32", "172.30.0.96/30", "fd00:30::100/128", "::/1"]},
            ),
        ),
        (Ask("client", EXTERNAL, PORT, ("a",), "gateway"), Ask("caller", EXTERNAL, PORT, DROPPED)),
    ),
    Corner(
        "source ranges without endpoints",
        (Service((), balancer=(EXTERNAL,), spec={"loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8:9::/64"]}),),
        (Ask("client", EXTERNAL, PORT, REFUSED), Ask("caller", EXTERNAL, PORT, REFUSED)),
    ),
    Corner(
        "addresses that no Service has, and ports",
        (Service(("a",)),),
        (
            *(Ask(source, VIP, PORT + 1, REFUSED) for source in ("caller", "client", "node1")),
            *(Ask(source, NOBODY, PORT, DROPPED) for source in ("caller", "client")),
            Ask("client", EXTERNAL, PORT, Nothing.UNREACHABLE, protocols=(Protocol.TCP,)),
        ),
    ),
)
