"""What nftables mode's rules depend on besides the plans. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from kproxy.model.hosts import DetectLocal, NodePortAddresses
from kproxy.model.plans import Family

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """All that rules depend on besides the plans.

    masquerade_mark: the bit of the packet mark that asks for masquerading, as a mask (1 << masqueradeBit).
    node_port_addresses: where node ports answer; loopback never does, in either family.
    service_cidrs: the ranges of cluster IPs in this family; traffic to an address in them that no Service has is
    dropped. Empty when they are not known.
    """

    family: Family
    masquerade_mark: int = 1 << 14
    masquerade_all: bool = False
    detect_local: DetectLocal = field(default_factory=DetectLocal)
    node_port_addresses: NodePortAddresses = field(default_factory=NodePortAddresses)
    service_cidrs: tuple[str, ...] = ()
    tcp_be_liberal: bool = False
    random_fully: bool = True
