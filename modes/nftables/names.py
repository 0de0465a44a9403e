"""Names of the table, its sets, maps and chains. Pure."""

from __future__ import annotations

import base64
import hashlib
from enum import StrEnum
from typing import NamedTuple

from kproxy.model.plans import Endpoint, PortKey

TABLE = "kproxy"
KUBE_PROXY_TABLE = "kube-proxy"  # of its nftables mode

SERVICES = "services"  # the map, and the chain that looks into it
NODE_PORTS = "node-ports"
ENDPOINTS = "endpoints"
NODE_PORT_ENDPOINTS = "node-port-endpoints"
SOURCES = "sources"
CLUSTER_IPS = "cluster-ips"
HAIRPINS = "hairpins"
SERVICE_CIDRS = "service-cidrs"
NODE_PORT_ADDRESSES = "node-port-addresses"
LOCALHOST_PORTS = "localhost-ports"  # the map of node ports on loopback that a process serves
LOCALHOST_REFUSED = "localhost-refused"  # the node ports to refuse there
LOCALHOST, LOCALHOST_REFUSE = "localhost", "localhost-refuse"  # chains

REFUSE = "refuse"  # "reject" is a word of nft's language


class Kind(StrEnum):
    """How traffic to a frontend is treated; the name of its chain begins with the value."""

    CLUSTER = "cluster"  # a cluster IP: masqueraded when it comes from outside the cluster
    EXTERNAL = "external"  # an external address under policy Cluster: always masqueraded
    LOCAL = "local"  # an external address under policy Local: only sources within the cluster may use all endpoints
    NODE_EXTERNAL = "node"  # the same two for node ports
    NODE_LOCAL = "node-local"

    @property
    def of_node_port(self) -> bool:
        return self in (Kind.NODE_EXTERNAL, Kind.NODE_LOCAL)

    @property
    def local(self) -> bool:
        return self in (Kind.LOCAL, Kind.NODE_LOCAL)


class Balancer(NamedTuple):
    """A chain that all frontends of one kind with as many endpoints share.

    anywhere: how many endpoints there are in slots 0, 1, …. here: how many follow for policy Local (local kinds only).
    firewall: only some sources are let through.
    """

    kind: Kind
    anywhere: int
    here: int = 0
    firewall: bool = False

    @property
    def name(self) -> str:
        """cluster-3, external-3-firewall, local-3-1 (1 of them on this node), node-3, node-local-3-0"""
        here = f"-{self.here}" if self.kind.local else ""
        return f"{self.kind.value}-{self.anywhere}{here}{'-firewall' if self.firewall else ''}"


def clients(seconds: int) -> str:
    """The set of clients with this timeout: clients-10800s"""
    return f"clients-{seconds}s"


class PortNames:
    """Names of the chains of a Service port with client IP affinity. anywhere, here: those that choose an endpoint."""

    __slots__ = ("_key", "_prefix", "anywhere", "here")

    def __init__(self, key: PortKey) -> None:
        self._key = f"{key}{key.protocol.lower()}"
        digest = hashlib.sha256(self._key.encode()).digest()[:10]
        self._prefix = f"affinity-{base64.b32encode(digest).decode()}"
        self.anywhere = f"{self._prefix}-anywhere"
        self.here = f"{self._prefix}-here"

    def entry(self, kind: Kind, firewall: bool) -> str:
        """The chain that traffic to frontends of this kind enters."""
        return f"{self._prefix}-{kind.value}{'-firewall' if firewall else ''}"

    def number(self, endpoint: Endpoint) -> int:
        """The number of the port's endpoint in the set of clients: 32 bits of a hash.

        Should two be the same (one in 10**9 pairs), clients of one may be taken for clients of the other.
        """
        return int.from_bytes(hashlib.sha256(f"{self._key}{endpoint}".encode()).digest()[:4], "big")
