"""What kproxy knows of its own node, from the Node object and from the host.

What the node itself contributes to the rules: which traffic counts as local, and which addresses take node ports.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from kproxy.errors import InvalidObject
from kproxy.model import objects
from kproxy.model.addresses import canonical_cidr, canonical_ip
from kproxy.model.plans import Family

ZONE_LABEL = "topology.kubernetes.io/zone"
AUTOSCALER_TAINT = "ToBeDeletedByClusterAutoscaler"
_IP_TYPES = ("InternalIP", "ExternalIP")  # the first has precedence


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """This node, as far as plans and rules depend on it: what its Node object and the host itself show.

    zone: "" for none. ips: the node's own addresses, at most one a family. pod_cidrs: canonical, as allocated to it.
    eligible: it should take new connections of load balancers (it is not being deleted, nor about to be scaled away).
    addresses: every address of the host, without prefix lengths. service_cidrs: the cluster's ranges of cluster IPs, of
    both families, as far as they are known. uid: of the Node object, another one after it was made anew.
    """

    name: str = ""
    zone: str = ""
    ips: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    eligible: bool = True
    addresses: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] = ()
    uid: str = ""

    def ip(self, family: Family) -> str:
        """The node's own address in a family, "" when it has none."""
        return next((ip for ip in self.ips if family_of(ip) is family), "")

    @property
    def decides_plans(self) -> tuple[str, str, tuple[str, ...]]:
        """The part of the node that plans depend on; only rules depend on the rest."""
        return self.name, self.zone, self.ips


def merged(name: str, node: NodeInfo | None, host: NodeInfo, service_cidrs: tuple[str, ...] = ()) -> NodeInfo:
    """Combines the Node object (None when there is none) with what the host shows (`ips`, `addresses`)."""
    node = node or NodeInfo()
    return replace(node, name=name, ips=host.ips, addresses=host.addresses, service_cidrs=service_cidrs)


def parse(node: objects.Node) -> NodeInfo:
    """What a Node object shows of the node; what is missing or unreadable in it is left out."""
    spec = node.spec or objects.NodeSpec()
    cidrs = spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])
    tainted = any(t.key == AUTOSCALER_TAINT for t in spec.taints or ())
    return NodeInfo(
        node.metadata.name,
        (node.metadata.labels or {}).get(ZONE_LABEL) or "",
        _ips(node),
        tuple(c for text in cidrs if (c := canonical_cidr(text))),
        not tainted and node.metadata.deletion_timestamp is None,
        uid=node.metadata.uid or "",
    )


def problems(node: objects.Node) -> list[InvalidObject]:
    """What `parse` leaves out of NODE because it cannot be read."""
    spec, status = node.spec or objects.NodeSpec(), node.status or objects.NodeStatus()
    named = [(f"spec.podCIDRs[{i}]", text) for i, text in enumerate(spec.pod_cidrs or ())]
    if spec.pod_cidr and not named:
        named = [("spec.podCIDR", spec.pod_cidr)]
    wrong = [(field, f"{text!r} is not a CIDR") for field, text in named if canonical_cidr(text) is None]
    wrong += [
        (f"status.addresses[{i}].address", f"{address.address!r} is not an IP address")
        for i, address in enumerate(status.addresses or ())
        if address.type in _IP_TYPES and canonical_ip(address.address) is None
    ]
    return [InvalidObject("Node", node.metadata.name, field, reason) for field, reason in wrong]


def _ips(node: objects.Node) -> tuple[str, ...]:
    addresses = (node.status.addresses if node.status else None) or []
    found: dict[Family, str] = {}
    for kind in _IP_TYPES:
        for address in addresses:
            if address.type == kind and (ip := canonical_ip(address.address)):
                found.setdefault(family_of(ip), ip)
    return tuple(found.values())


SERVICE_DEVICE = "kube-ipvs0"
"""The device that holds Services' addresses in IPVS mode. What is on it is none of the node's own addresses."""


class DetectLocalBy(StrEnum):
    """How traffic from this node's pods is recognised."""

    NOTHING = "Nothing"
    CIDR = "CIDR"
    INTERFACE = "Interface"


@dataclass(frozen=True, slots=True)
class DetectLocal:
    """Traffic whose source lies in CIDR `value`, or that enters by interface `value` ("veth+" stands for a prefix)."""

    by: DetectLocalBy = DetectLocalBy.NOTHING
    value: str = ""

    def __bool__(self) -> bool:
        return self.by is not DetectLocalBy.NOTHING


@dataclass(frozen=True, slots=True)
class NodePortAddresses:
    """Where node ports answer: on every address of the node (match_all), or only on `ips`, in numeric order.

    loopback: 127.0.0.1 is among the addresses that the operator asked for.
    """

    match_all: bool = True
    ips: tuple[str, ...] = ()
    loopback: bool = True


def family_of(text: str) -> Family:
    """The family of an address or CIDR, by its text alone."""
    return Family.IPV6 if ":" in text else Family.IPV4


def node_port_addresses(
    family: Family, asked: Iterable[str], node_ips: Iterable[str], addresses: Iterable[str]
) -> NodePortAddresses:
    """Which of the host's `addresses` (without a prefix length) take node ports under --nodeport-addresses.

    asked: CIDRs and the keywords "primary" (the node's own IPs), "localhost" and "all", in any combination. CIDRs of
    the other family alone mean all of this one. A keyword is about both families: "primary" means nothing in a family
    of which the node has no IP, where kube-proxy would take all.
    """
    asked = tuple(asked)
    networks = [ipaddress.ip_network(c) for c in _cidrs(family, asked, node_ips)]
    concerned = any(text in KEYWORDS or family_of(text) is family for text in asked)
    if not concerned or any(n.prefixlen == 0 for n in networks):
        return NodePortAddresses()
    matched = sorted(
        {a for a in addresses if family_of(a) is family and any(ipaddress.ip_address(a) in n for n in networks)},
        key=ipaddress.ip_address,
    )
    loopback = family is Family.IPV4 and any(
        n.network_address.is_loopback or ipaddress.ip_address("127.0.0.1") in n for n in networks
    )
    return NodePortAddresses(False, tuple(matched), loopback)


KEYWORDS = frozenset({"primary", "localhost", "all"})
_LOCALHOST = {Family.IPV4: "127.0.0.0/8", Family.IPV6: "::1/128"}
_ALL = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}


def _cidrs(family: Family, asked: Iterable[str], node_ips: Iterable[str]) -> Iterator[str]:
    """The CIDRs of one family that CIDRs and keywords stand for."""
    for text in asked:
        match text:
            case "primary":
                yield from (str(ipaddress.ip_network(ip)) for ip in node_ips if family_of(ip) is family)
            case "localhost":
                yield _LOCALHOST[family]
            case "all":
                yield _ALL[family]
            case _ if (cidr := canonical_cidr(text)) and family_of(cidr) is family:
                yield cidr
