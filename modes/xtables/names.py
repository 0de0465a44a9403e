"""Names of chains, as kube-proxy forms them, so that a node can change hands without a chain being renamed. Pure.

Also the names that any mode or release of kube-proxy and kproxy ever used, by which stale rules are found.
"""

from __future__ import annotations

import base64
import hashlib

from kproxy.model.plans import Endpoint, PortKey

SERVICES = "KUBE-SERVICES"
EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
NODE_PORTS = "KUBE-NODEPORTS"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
FORWARD = "KUBE-FORWARD"
FIREWALL = "KUBE-FIREWALL"
MARK_MASQ = "KUBE-MARK-MASQ"
POSTROUTING = "KUBE-POSTROUTING"
ENDPOINT_PREFIX = "KUBE-SEP-"
CANARY = "KUBE-PROXY-CANARY"

NODE_CHAINS = frozenset(
    {
        SERVICES,
        EXTERNAL_SERVICES,
        NODE_PORTS,
        PROXY_FIREWALL,
        FORWARD,
        MARK_MASQ,
        POSTROUTING,
        CANARY,
        # IPVS mode
        "KUBE-LOAD-BALANCER",
        "KUBE-NODE-PORT",
        "KUBE-SOURCE-RANGES-FIREWALL",
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
        # userspace mode
        "KUBE-PORTALS-CONTAINER",
        "KUBE-PORTALS-HOST",
        "KUBE-NODEPORT-CONTAINER",
        "KUBE-NODEPORT-HOST",
        "KUBE-NODEPORT-NON-LOCAL",
        "KUBE-PROXY-PORTS",
    }
)
"""The chains of a node as a whole, of every mode. KUBE-FIREWALL is not among them: the kubelet uses it too."""
PORT_CHAINS = ("KUBE-FW-", "KUBE-XLB-", "KUBE-EXT-", "KUBE-SVC-", "KUBE-SVL-", ENDPOINT_PREFIX)
"""The prefixes of chains of single ports. A chain jumps only to chains with later prefixes, so this is the order in
which they can be deleted. KUBE-XLB- is what kube-proxy before 1.24 had instead of KUBE-EXT- and KUBE-SVL-."""
DISPATCHING = (SERVICES, NODE_PORTS, "KUBE-PORTALS-CONTAINER", "KUBE-NODEPORT-CONTAINER")
"""The chains of the nat table that direct traffic to single ports, in iptables mode and in userspace mode."""


def _hash(text: str) -> str:
    """The 16 characters that make a chain's name unique: xtables allows 28 in a name."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()[:10]).decode()


class PortChains:
    """One Service port's chains: cluster (KUBE-SVC-), local (KUBE-SVL-), external (KUBE-EXT-), firewall (KUBE-FW-)."""

    __slots__ = ("cluster", "external", "firewall", "local")

    def __init__(self, key: PortKey) -> None:
        digest = _hash(f"{key}{key.protocol.lower()}")
        self.cluster = f"KUBE-SVC-{digest}"
        self.local = f"KUBE-SVL-{digest}"
        self.external = f"KUBE-EXT-{digest}"
        self.firewall = f"KUBE-FW-{digest}"


def endpoint_chain(key: PortKey, endpoint: Endpoint) -> str:
    """The chain KUBE-SEP-… of one endpoint of one Service port."""
    return f"{ENDPOINT_PREFIX}{_hash(f'{key}{key.protocol.lower()}{endpoint}')}"
