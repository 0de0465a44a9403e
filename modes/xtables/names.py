"""Names of chains, as kube-proxy forms them, so that a node can change hands without a chain being renamed."""

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


def _hash(text: str) -> str:
    """The 16 characters that tell a chain from all others: xtables allows 28 in a name."""
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
