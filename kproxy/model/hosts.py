"""What the node itself contributes to the rules: which traffic counts as local, and which addresses take node ports."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from kproxy.model.plans import Family

__all__ = [
    "SERVICE_DEVICE",
    "DetectLocal",
    "DetectLocalBy",
    "NodePortAddresses",
    "family_of",
    "node_port_addresses",
]

SERVICE_DEVICE = "kube-ipvs0"
"""The device that holds Services' addresses in IPVS mode. What is on it is none of the node's own addresses."""


class DetectLocalBy(StrEnum):
    """How traffic from this node's pods is told apart."""

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
    family: Family, cidrs: Iterable[str], node_ips: Iterable[str], addresses: Iterable[str]
) -> NodePortAddresses:
    """Which of the host's `addresses` (without a prefix length) take node ports under --nodeport-addresses `cidrs`.

    No CIDR of the family means all; the single word "primary" means the node's own IPs. A zero CIDR means all as well.
    """
    asked = [f"{ip}/{128 if ':' in ip else 32}" for ip in node_ips] if "primary" in cidrs else list(cidrs)
    networks = [ipaddress.ip_network(c, strict=False) for c in asked if family_of(c) is family]
    if not networks or any(n.prefixlen == 0 for n in networks):
        return NodePortAddresses()
    matched = sorted(
        {a for a in addresses if family_of(a) is family and any(ipaddress.ip_address(a) in n for n in networks)},
        key=ipaddress.ip_address,
    )
    loopback = family is Family.IPV4 and any(
        n.network_address.is_loopback or ipaddress.ip_address("127.0.0.1") in n for n in networks
    )
    return NodePortAddresses(False, tuple(matched), loopback)
