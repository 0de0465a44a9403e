"""What kproxy reads of its own Node."""

from __future__ import annotations

from dataclasses import dataclass

from kproxy.model import objects
from kproxy.model.addresses import canonical_cidr, canonical_ip
from kproxy.model.hosts import family_of
from kproxy.model.plans import Family

__all__ = ["AUTOSCALER_TAINT", "NodeView", "parse"]

ZONE_LABEL = "topology.kubernetes.io/zone"
AUTOSCALER_TAINT = "ToBeDeletedByClusterAutoscaler"


@dataclass(frozen=True, slots=True)
class NodeView:
    """The node as its Node object shows it.

    ips: its addresses, one a family, InternalIP before ExternalIP. pod_cidrs: canonical, as allocated to it.
    eligible: it should take new connections of load balancers (not being deleted, not about to be scaled away).
    """

    name: str
    zone: str = ""
    ips: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    eligible: bool = True

    def ip(self, family: Family) -> str:
        """The node's address in a family, "" when it has none."""
        return next((ip for ip in self.ips if family_of(ip) is family), "")


def parse(node: objects.Node) -> NodeView:
    """The view of a Node; what is missing or unreadable in it is left out."""
    spec = node.spec or objects.NodeSpec()
    cidrs = spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])
    tainted = any(t.key == AUTOSCALER_TAINT for t in spec.taints or ())
    return NodeView(
        node.metadata.name,
        (node.metadata.labels or {}).get(ZONE_LABEL) or "",
        _ips(node),
        tuple(c for text in cidrs if (c := canonical_cidr(text))),
        not tainted and node.metadata.deletion_timestamp is None,
    )


def _ips(node: objects.Node) -> tuple[str, ...]:
    addresses = (node.status.addresses if node.status else None) or []
    found: dict[Family, str] = {}
    for kind in ("InternalIP", "ExternalIP"):
        for address in addresses:
            if address.type == kind and (ip := canonical_ip(address.address)):
                found.setdefault(family_of(ip), ip)
    return tuple(found.values())
